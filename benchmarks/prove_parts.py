"""The parts of the evidence: what each runs, and how it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import evidence
import prove_machine
from evidence import RECORD, Evidence, Options, Ran, block, table

QUESTION = "What is 23 * 17 + 4?"

_LAW_FILES = (
    "tests/test_engine_session.py", "tests/test_chat_parser.py", "tests/test_chat_utf8.py",
    "tests/test_chat_formats.py", "tests/test_chat_marked.py",
)  # fmt: skip
_FORMAT_FILES = (
    "tests/test_formats_corpus.py", "tests/test_formats_laws.py", "tests/test_formats_templates.py",
    "tests/test_formats_differential.py", "tests/test_agent_legs.py", "tests/test_agent_repair.py",
)  # fmt: skip
_BAD_INPUT_FILES = ("tests/test_bad_input.py", "tests/test_cli_interrupt.py", "tests/test_toolbox_runner.py")


# -- a question, a call, its result, an answer ----------------------------------------------------------------------


def first_call(options: Options) -> Evidence:
    """One question through the command line, as events and as a chat; the second prefill counted by hand."""
    main = ("-m", "edgellm.cli.main")
    events_run = evidence.run(*main, "run", "--json", "-m", options.model, QUESTION)
    chat_run = evidence.run(*main, "chat", "-m", options.model, "--prompt", QUESTION)
    events = [json.loads(line) for line in events_run.out.splitlines()]
    by_type = {event["type"]: event for event in events}
    legs = by_type.get("turn_finished", {}).get("usage", {}).get("legs", [])
    ready, finished = by_type.get("tool_call_ready", {}), by_type.get("tool_finished", {})
    glue, expected = _second_prefill(options.model, str(finished.get("result")))
    first, second = [*legs, {}, {}][:2]
    # Of the first prompt what a former run left on the disk is found as well.
    held = sum(first.get(f"{what}_tokens", 0) for what in ("prefill", "reused", "decode")) - 1
    rows = [
        ("the model calls the calculator", ready.get("name"), "calculator"),
        ("with the expression", ready.get("arguments"), {"expression": "23 * 17 + 4"}),
        ("its result", finished.get("result"), "395"),
        ("legs (uninterrupted decodes)", len(legs), 2),
        (
            "prefill tokens of the second leg, with those computed while the tool ran",
            second.get("prefill_tokens", 0) + second.get("ahead_tokens", 0),
            expected,
        ),
        ("tokens it finds in the KV cache", second.get("reused_tokens"), held),
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
    ran = evidence.run("benchmarks/decode.py", "--model", options.model)
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
        evidence.run("benchmarks/valid_calls.py", "--model", options.model, "--count", options.count)
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
    ran = [evidence.run("benchmarks/guided.py", "--model", options.model, "--split", "held")]
    names = ["Our own cases, the half held apart"]
    if options.bfcl is not None:
        ran.append(evidence.run("benchmarks/toolcalls.py", "--model", options.model, "--data", options.bfcl))
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
    ran = evidence.pytest(
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
    tests = evidence.pytest(_FORMAT_FILES, options, env={})
    ran = [
        evidence.run("benchmarks/repair.py", "--model", options.model),
        evidence.run("benchmarks/parsing.py", "--model", options.model),
        evidence.run("benchmarks/constraint.py", "--model", options.model),
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
    ran = evidence.pytest(
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


PARTS: dict[str, Callable[[Options], Evidence]] = {
    "first-call": first_call,
    "decode-speed": decode_speed,
    "valid-calls": valid_calls,
    "speculation": prove_machine.speculation,
    "quick-weights": prove_machine.quick_weights,
    "session-laws": session_laws,
    "bad-input": bad_input,
    "saved-chats": prove_machine.saved_chats,
    "guided-tools": guided_tools,
    "tool-call-formats": tool_call_formats,
    "long-chat": prove_machine.long_chat,
    "neighbours": prove_machine.neighbours,
}
