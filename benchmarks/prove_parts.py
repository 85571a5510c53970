"""The parts of the evidence: what each runs, and how it is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUESTION = "What is 23 * 17 + 4?"
RECORD = "EDGELLM_RECORD"

_LAW_FILES = (
    "tests/test_engine_session.py", "tests/test_chat_parser.py", "tests/test_chat_utf8.py",
    "tests/test_chat_formats.py", "tests/test_chat_marked.py",
)  # fmt: skip
_FORMAT_FILES = (
    "tests/test_formats_corpus.py", "tests/test_formats_laws.py", "tests/test_formats_templates.py",
    "tests/test_formats_differential.py", "tests/test_agent_legs.py", "tests/test_agent_repair.py",
)  # fmt: skip
_BAD_INPUT_FILES = ("tests/test_bad_input.py", "tests/test_cli_interrupt.py", "tests/test_toolbox_runner.py")


@dataclass(frozen=True, slots=True)
class Options:
    """What the run was asked for. `folder` is for files on the way."""

    model: str
    bfcl: Path | None
    count: int
    scale: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Evidence:
    """One page: the claim in words, whether the run shows it, Markdown, and the commands that were run."""

    title: str
    claim: str
    is_shown: bool
    body: str
    commands: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    command: str
    code: int
    out: str
    err: str

    @property
    def figures(self) -> dict[str, Any]:
        """The JSON object in the last line; empty where there is none."""
        lines = self.out.strip().splitlines()
        try:
            found = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def table(self) -> str:
        """What stands before the last line, as a block."""
        return block("\n".join(self.out.strip().splitlines()[:-1] or [self.err.strip()]))


def block(text: str, kind: str = "text") -> str:
    """Markdown of a block of code."""
    return f"```{kind}\n{text}\n```\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def run(*words: object, env: Mapping[str, str] | None = None) -> Ran:
    """Runs Python with some arguments from the project's folder; what it says on stderr is passed on, too."""
    arguments = [str(word) for word in words]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    settings = "".join(f"{name}={value} " for name, value in (env or {}).items() if name != RECORD)
    command = f"{settings}python {shown}".replace("python -m edgellm.cli.main", "edgellm")
    return Ran(command, done.returncode, done.stdout, done.stderr)


def pytest(files: Sequence[str], options: Options, *words: object, env: Mapping[str, str]) -> Ran:
    """Runs test files, with the model where it is in the store."""
    from edgellm.models.store import Store

    path = Store().path_of(options.model) or Path(options.model)
    known = {"EDGELLM_TEST_MODEL": str(path)} if path.is_file() else {}
    files = [file for file in files if (ROOT / file).is_file()]
    ran = run("-m", "pytest", "-q", "--timeout", 7200, *words, *files, env={**known, **env})
    return Ran(ran.command.replace(str(Path.home()), "~"), ran.code, ran.out, ran.err)


# -- a question, a call, its result, an answer ----------------------------------------------------------------------


def first_call(options: Options) -> Evidence:
    """One question through the command line, as events and as a chat; the second prefill counted by hand."""
    main = ("-m", "edgellm.cli.main")
    events_run = run(*main, "run", "--json", "-m", options.model, QUESTION)
    chat_run = run(*main, "chat", "-m", options.model, "--prompt", QUESTION)
    events = [json.loads(line) for line in events_run.out.splitlines()]
    by_type = {event["type"]: event for event in events}
    legs = by_type.get("turn_finished", {}).get("usage", {}).get("legs", [])
    ready, finished = by_type.get("tool_call_ready", {}), by_type.get("tool_finished", {})
    glue, expected = _second_prefill(options.model, str(finished.get("result")))
    first, second = [*legs, {}, {}][:2]
    reused = first.get("prefill_tokens", 0) + first.get("decode_tokens", 0) - 1
    rows = [
        ("the model calls the calculator", ready.get("name"), "calculator"),
        ("with the expression", ready.get("arguments"), {"expression": "23 * 17 + 4"}),
        ("its result", finished.get("result"), "395"),
        ("legs (uninterrupted decodes)", len(legs), 2),
        ("prefill tokens of the second leg", second.get("prefill_tokens"), expected),
        ("tokens it finds in the KV cache", second.get("reused_tokens"), reused),
        ("tokens computed again", sum(leg.get("rebuilt_tokens", 0) for leg in legs), 0),
    ]
    answer = by_type.get("turn_finished", {}).get("text", "")
    holds = "395" in answer and "395" in chat_run.out.split("395", 1)[-1]
    told = [event for event in events if event["type"] not in ("tool_call_delta", "text_delta")]
    body = (
        table(("", "measured", "expected"), rows)
        + f"\nThe answer: {json.dumps(answer)}. The second prefill is one pending token, the one that ended the call's "
        + f"leg, and the {expected - 1} tokens of this text, tokenized here by itself:\n\n"
        + block(json.dumps(glue))
        + "\n`edgellm chat --prompt`:\n\n"
        + block(chat_run.out.strip())
        + "\nThe events, without the pieces of text and arguments:\n\n"
        + block("\n".join(map(json.dumps, told)), "json")
    )
    is_shown = all(measured == wanted for _, measured, wanted in rows) and holds
    is_shown = is_shown and events_run.code == chat_run.code == 0
    return Evidence(
        "A question, a call, its result, an answer",
        "The model calls a tool in the middle of its turn; the result is appended to the same KV cache, and nothing "
        "that is on the tape is computed twice.",
        is_shown,
        body,
        (events_run.command, chat_run.command),
    )


def _second_prefill(model: str, result: str) -> tuple[str, int]:
    """The text between call and answer in ChatML, and how many tokens are new with it."""
    import edgellm

    glue = (
        "\n<|im_start|>user\n<tool_response>\n",
        result,
        "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    )
    with edgellm.load(model, n_ctx=256) as runtime:
        count = sum(
            len(runtime.tokenize(text, parse_special=is_template))
            for text, is_template in zip(glue, (True, False, True), strict=True)
        )
    return "".join(glue), 1 + count


# -- benchmarks ------------------------------------------------------------------------------------------------------


def decode_speed(options: Options) -> Evidence:
    """benchmarks/decode.py."""
    ran = run("benchmarks/decode.py", "--model", options.model)
    figures = ran.figures
    goals = [
        ("ratio_vs_bare", "with a tap of 20 rows, against the bare loop", 0.97),
        ("ratio_vs_bare_busy", "the same beside one busy Python thread", 0.97),
        ("ratio_python_stage", "with a Python stage behind top_k, against without", 0.98),
        ("ratio_vs_llama_cpp_python", "against llama-cpp-python's own stream", 1.0),
    ]
    rows = [(what, figures.get(name, "not measured"), f"at least {goal}") for name, what, goal in goals]
    return Evidence(
        "Decode speed",
        "Our speed divided by the other's, pairs run in turn in one process: above 1 we are faster.",
        ran.code == 0 and all(figures.get(name, 0) >= goal for name, _, goal in goals),
        table(("speed", "ratio", "goal"), rows)
        + "\n"
        + ran.table
        + "\n"
        + block(json.dumps(figures), "json"),
        (ran.command,),
    )


def valid_calls(options: Options) -> Evidence:
    """benchmarks/valid_calls.py."""
    return valid_calls_page(
        run("benchmarks/valid_calls.py", "--model", options.model, "--count", options.count)
    )


def valid_calls_page(ran: Ran) -> Evidence:
    """The page of a run of benchmarks/valid_calls.py."""
    count = ran.figures.get("schemas", 0)
    size = "" if count >= 1000 else f"This run offered {count} schemas; the full size is 1,000.\n\n"
    return Evidence(
        "Every call is valid",
        "Random tool schemas, the model at temperature 1.5, `guided` off, tool choice `required`: every call that is "
        "emitted parses and is valid against its tool's own schema (jsonschema, Draft 2020-12). Where llguidance "
        "cannot enforce a keyword, a call that violates it is refused, or mended, before the tool's code runs.",
        ran.code == 0 and bool(ran.figures),
        size + ran.table + "\n" + block(json.dumps(ran.figures), "json"),
        (ran.command,),
    )


def guided_tools(options: Options) -> Evidence:
    """benchmarks/guided.py, and benchmarks/toolcalls.py where its data is there."""
    ran = [run("benchmarks/guided.py", "--model", options.model, "--split", "held")]
    names = ["Our own cases, the half held apart"]
    if options.bfcl is not None:
        ran.append(run("benchmarks/toolcalls.py", "--model", options.model, "--data", options.bfcl))
        names.append("BFCL v4, simple_python and multiple, by the official checker's rules")
    parts = [
        f"## {name}\n\n{one.table}\n{block(json.dumps(one.figures), 'json')}\n"
        for name, one in zip(names, ran, strict=True)
    ]
    return Evidence(
        "Guided tools",
        "How often the model, with the `guided` strategy, calls the right tool with the right arguments, and only "
        "where a tool helps. Shares of all cases.",
        all(one.code == 0 and one.figures for one in ran),
        "\n".join(parts),
        tuple(one.command for one in ran),
    )


# -- tests at full size ----------------------------------------------------------------------------------------------


def session_laws(options: Options) -> Evidence:
    """The property tests of sessions and of the output parser, with many more examples."""
    ran = pytest(
        _LAW_FILES, options, "--hypothesis-show-statistics", env={"EDGELLM_EXAMPLES": str(options.scale)}
    )
    laws = read_statistics(ran.out)
    rows = [(f"`{name}`", passing, failing) for name, passing, failing in laws]
    summary = ran.out.strip().splitlines()[-1]
    return Evidence(
        "Laws of sessions and of the output parser",
        "Any sequence of extend, step, rewind, fork, save, load, cancel and failure leaves tape and KV memory equal "
        "(checked on one thread, on six architectures, by the memory's own positions and by the logits after the same "
        "tape computed from nothing, within 0.05 or 2 %: other batch shapes move the last bits); any split of the "
        "model's output gives the same events. Examples are drawn by hypothesis.",
        ran.code == 0 and bool(laws) and not any(failing for _, _, failing in laws),
        table(("law", "examples that hold", "that do not"), rows)
        + f"\nAll tests of these files: {summary}\n",
        (ran.command,),
    )


def tool_call_formats(options: Options) -> Evidence:
    """The laws and the corpus of wire formats, and what repair, parsing and constraining cost and give."""
    tests = pytest(_FORMAT_FILES, options, env={})
    ran = [
        run("benchmarks/repair.py", "--model", options.model),
        run("benchmarks/parsing.py", "--model", options.model),
        run("benchmarks/constraint.py", "--model", options.model),
    ]
    names = ("Damaged calls, repaired", "What reading an answer costs", "What a constrained token costs")
    parts = [
        f"## {name}\n\n{one.table}\n{block(json.dumps(one.figures), 'json')}\n"
        for name, one in zip(names, ran, strict=True)
    ]
    recovered = ran[0].figures.get("recovered", 0)
    share = ran[1].figures.get("worst_share", 1)
    return Evidence(
        "Tool-call formats",
        "Every family's outputs are read the same however they are cut (at each byte, at each token, at random), and "
        "nothing of them is lost; at least 95 % of damaged calls end as a valid call of the same tool; reading a long "
        "answer costs under 1 % of decoding it.",
        tests.code == 0 and recovered >= 0.95 and share < 0.01,
        f"All tests of these files: {tests.out.strip().splitlines()[-1]}\n\n" + "\n".join(parts),
        (tests.command, *(one.command for one in ran)),
    )


def read_statistics(text: str) -> list[tuple[str, int, int]]:
    """(test, examples that passed, that failed) from hypothesis' statistics, over all its phases."""
    found: dict[str, tuple[int, int]] = {}
    name = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(tests/\S.*?::.*):", line.strip()):
            name = heading.group(1)
        counted = re.search(r"- (\d+) passing(?: examples)?, (\d+) failing", line)
        if counted and name:
            passing, failing = found.get(name, (0, 0))
            found[name] = (passing + int(counted.group(1)), failing + int(counted.group(2)))
    return [(name, *counts) for name, counts in found.items()]


def bad_input(options: Options) -> Evidence:
    """The tests of bad input, and what each command printed."""
    record = options.folder / "bad_input.jsonl"
    ran = pytest(
        _BAD_INPUT_FILES, options, "-p", "record_cli", env={RECORD: str(record), "PYTHONPATH": "benchmarks"}
    )
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    seen = [json.loads(line) for line in lines]
    rows: list[tuple[str, str, str, str]] = []
    others: list[str] = []
    for test in seen:
        name = re.sub(r"^test_bad_input\[(.*)\]$", r"\1", test["name"]) + (
            "" if test["passed"] else " **(failed)**"
        )
        told = [command for command in test["commands"] if command["code"]]
        rows += [(name, f"`{command['words']}`", command["err"], command["code"]) for command in told]
        if not told:
            others.append(f"- `{test['file']}`: {name.removeprefix('test_').replace('_', ' ')}\n")
    summary = ran.out.strip().splitlines()[-1]
    return Evidence(
        "Bad input",
        "Each gives an error in a line, with a remedy, a non-zero exit code, and loses nothing: files, saved chats and "
        "the store are as before (the tests check that, too). TMP stands for the test's own folder.",
        ran.code == 0 and len(rows) >= 40,
        f"{len(rows)} commands that fail as they should; {len(seen)} tests in all: {summary}\n\n"
        + table(("what", "command", "stderr", "exit code"), rows)
        + "\n## At a terminal, and inside a session\n\n"
        + "Ctrl-C in every phase, and tools that raise, hang, flood or print:\n\n"
        + "".join(others),
        (ran.command,),
    )


def saved_chats(options: Options) -> Evidence:
    """benchmarks/resume.py."""
    kills = 200 if options.count >= 1000 else 20
    ran = run("benchmarks/resume.py", "--model", options.model, "--kills", kills)
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
    return long_chat_page(run("benchmarks/long_chat.py", "--model", options.model))


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
    ran = run("benchmarks/speculation.py", "--model", options.model)
    tests = pytest(("tests/test_engine_speculation.py",), options, env={})
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
    ran = run("-m", "edgellm.cli.main", "optimize", options.model, "--json")
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


PARTS: dict[str, Callable[[Options], Evidence]] = {
    "first-call": first_call,
    "decode-speed": decode_speed,
    "valid-calls": valid_calls,
    "speculation": speculation,
    "quick-weights": quick_weights,
    "session-laws": session_laws,
    "bad-input": bad_input,
    "saved-chats": saved_chats,
    "guided-tools": guided_tools,
    "tool-call-formats": tool_call_formats,
    "long-chat": long_chat,
}
