"""The parts of the evidence that are about small machines: kept chats, long ones, guesses, weights, neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import evidence
from evidence import Evidence, Options, Ran, block, table


def saved_chats(options: Options) -> Evidence:
    """benchmarks/resume.py."""
    kills = 200 if options.count >= 1000 else 20
    ran = evidence.run("benchmarks/resume.py", "--model", options.model, "--kills", kills)
    figures = ran.figures
    quick = figures.get("speedup", 0)
    rows = [
        ("tokens of the chat", figures.get("tokens", "not measured"), "4,000"),
        ("prefill to the first token ÷ resume to the first token", quick, "at least 20"),
        ("times the writer was killed", figures.get("kills", "not measured"), kills),
        ("states that were neither the former nor a newer one", figures.get("lost", "not measured"), 0),
    ]
    return Evidence(
        "Saved chats",
        "A chat is saved while its writer is killed at random moments: every file is the former or a newer state, its "
        "memory gives the logits it gave, and taking it up is at least 20 times quicker than computing it.",
        ran.code == 0 and quick >= 20 and figures.get("kills", 0) >= kills,
        table(("what", "measured", "goal"), rows) + "\n" + block(json.dumps(figures), "json"),
        (ran.command,),
    )


def long_chat(options: Options) -> Evidence:
    """A conversation of four times its context under each policy."""
    return long_chat_page(evidence.run("benchmarks/long_chat.py", "--model", options.model))


def long_chat_page(ran: Ran) -> Evidence:
    """The page of what benchmarks/long_chat.py printed."""
    return Evidence(
        "Conversations of four times their context",
        "Under each policy the conversation goes on (under `stop` it ends, says so, and a new chat begins): no error, "
        "the tape never longer than the context, memory flat, and every question and tool result that left the tape "
        "in exactly one `ContextEvicted` event (`untold` counts those that are in none).",
        ran.code == 0 and bool(ran.figures.get("is_shown")),
        ran.table,
        (ran.command,),
    )


# -- weights and guesses ---------------------------------------------------------------------------------------------


def speculation(options: Options) -> Evidence:
    """benchmarks/speculation.py, and the χ² test of sampled tokens."""
    ran = evidence.run("benchmarks/speculation.py", "--model", options.model)
    tests = evidence.pytest(("tests/test_engine_speculation.py",), options, env={})
    figures = ran.figures
    modes = ("ngram", "auto")
    same = bool(figures) and all(figures[f"{m}_differing"] == figures[f"{m}_near_ties"] for m in modes)
    kinds = [figures.get(f"auto_{kind}_speed", 0) for kind in ("free", "quoted")]
    return Evidence(
        "Guessing ahead",
        "Greedy text with guesses is the text without, but for near-ties: the two likeliest tokens are nearer than "
        "what logits differ by between batches of one row and of several (`batch_difference`). Sampled tokens have "
        "the same distribution (χ² over 10,000 draws). `auto` is at most 2 % slower than `off`, on text that "
        "repeats nothing and on text that is quoted.",
        ran.code == tests.code == 0 and same and min(kinds) >= 0.98,
        ran.table
        + "\n"
        + block(json.dumps(figures), "json")
        + f"\nTests: {tests.out.strip().splitlines()[-1]}\n",
        (ran.command, tests.command),
    )


def quick_weights(options: Options) -> Evidence:
    """`edgellm optimize`: the types with quick kernels beside the original."""
    ran = evidence.run("-m", "edgellm.cli.main", "optimize", options.model, "--json")
    figures = ran.figures
    rows = [
        (
            Path(file["path"]).name,
            f"{file['size_bytes'] / 1e6:.0f} MB",
            f"{file['prefill_tok_s']:.0f}",
            f"{file['decode_tok_s']:.1f}",
            f"{file['turn_s']:.1f}",
            f"{file['kl']:.4f} ± {file['kl_error']:.4f}",
            f"{100 * file['same_top']:.1f} %",
        )
        for file in figures.get("files", ())
    ]
    return Evidence(
        "Which quantization to run here",
        "The model's own file and copies in types with quick kernels, measured in turn; a turn is 500 tokens in, "
        f"100 out. Best within {figures.get('bound')} nats a token: {figures.get('best') or 'the original'}.",
        ran.code == 0 and len(rows) > 1,
        table(
            ("file", "size", "prefill tokens/s", "decode tokens/s", "turn s", "KL, nats", "same top"), rows
        ),
        (ran.command,),
    )


def neighbours(options: Options) -> Evidence:
    """benchmarks/neighbour.py: idle, and beside processes that only count."""
    return neighbours_page(evidence.run("benchmarks/neighbour.py", "--model", options.model))


def neighbours_page(ran: Ran) -> Evidence:
    """The page of what benchmarks/neighbour.py printed."""
    figures = ran.figures
    return Evidence(
        "Decode beside neighbours",
        "Against a bare loop with libgomp's defaults: at least 93 % of its tokens a second where nothing else runs, "
        "and at least ten times as many where every core is busy with several others "
        f"({figures.get('busy_processes')} counting processes in all). Beside fewer the bare loop keeps more, and the "
        "table has the smaller ratios: who shares two cores with two others cannot have more than half of them.",
        ran.code == 0 and figures.get("idle_ratio", 0) >= 0.93 and figures.get("busy_ratio", 0) >= 10,
        ran.table + "\n" + block(json.dumps(figures), "json"),
        (ran.command,),
    )
