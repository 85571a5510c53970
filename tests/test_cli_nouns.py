"""inspect, tokenize, parse, tools, samplers, quantize, trust, doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cli_harness import cli

import edgellm
from edgellm import examination
from edgellm.machine import MemoryInfo

CALL = '<think>hm</think>Hi\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "zwei é"}}\n</tool_call>'


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


# -- inspect ------------------------------------------------------------------------------------------------


def test_inspect_tells_the_facts_and_renders_a_chat_with_a_tool(model: Path) -> None:
    outcome = cli("inspect", model)
    assert outcome.code == 0, outcome.err
    for text in (
        "llama",
        "GQA 2",
        "bytes a token at f16",
        "generic: its template knows nothing of tools",
        "weather",
    ):
        assert text in outcome.out
    assert "<|im_start|>" in outcome.out
    record = json.loads(cli("inspect", "-m", model, "--json").out)
    assert record["architecture"] == "llama"
    assert record["format"] == "generic"
    assert "weather" in record["example"]
    assert record["gqa_ratio"] == 2


@pytest.mark.parametrize("arch", ["moe", "gemma3", "mamba"])
def test_inspect_of_other_architectures(tiny_model: Callable[..., Path], arch: str) -> None:
    outcome = cli("inspect", tiny_model(arch), "--metadata")
    assert outcome.code == 0, outcome.err
    assert "general.architecture" in outcome.out


def test_inspect_of_a_model_without_a_template_says_so(tiny_model: Callable[..., Path]) -> None:
    bare = tiny_model("llama", chat_template=None)
    outcome = cli("inspect", bare)
    assert outcome.code == 0
    assert "no chat template" in outcome.out
    assert cli("inspect", bare, "--template").code == 1


def test_a_template_that_fails_is_a_fact_not_a_failure(tiny_model: Callable[..., Path]) -> None:
    outcome = cli("inspect", tiny_model("llama", chat_template="{{ raise_exception('never') }}"))
    assert outcome.code == 0
    assert "never" in outcome.out


def test_names_in_a_model_file_cannot_write_to_the_terminal(tiny_model: Callable[..., Path]) -> None:
    outcome = cli("inspect", tiny_model("llama", name="evil\x1b]0;owned\x07"), "--metadata")
    assert "\x1b" not in outcome.out
    assert "evil\\x1b" in outcome.out


def test_inspect_gives_valid_json_of_odd_metadata_and_all_of_it_when_asked(
    tiny_model: Callable[..., Path],
) -> None:
    odd = tiny_model("llama", metadata={"llama.rope.freq_base": float("nan"), "a.list": [1.0, float("inf")]})
    record = strict_json(cli("inspect", odd, "--json").out)
    assert record["rope"]["base"] is None
    assert "metadata" not in record
    metadata = strict_json(cli("inspect", odd, "--json", "--metadata").out)["metadata"]
    assert metadata["general.architecture"] == "llama"
    assert metadata["a.list"] == [1.0, None]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_template_is_printed_alone(model: Path) -> None:
    outcome = cli("inspect", model, "--template", "--json")
    assert outcome.code == 2
    assert "printed alone" in outcome.err


# -- tokenize -----------------------------------------------------------------------------------------------


def test_tokens_join_to_the_text(model: Path) -> None:
    text = "the name of é 👍\n"
    records = json.loads(cli("tokenize", "-m", model, "--json", stdin=text).out)
    assert b"".join(bytes.fromhex(record["bytes"]) for record in records).decode() == text
    ids = cli("tokenize", "-m", model, "--ids", stdin=text).out.split()
    assert ids == [str(record["id"]) for record in records]
    table = cli("tokenize", "-m", model, text).out
    assert f"{len(records)} tokens, {len(text)} characters" in table


def test_control_tokens_only_when_asked_for(model: Path) -> None:
    plain = json.loads(cli("tokenize", "-m", model, "--json", "<|im_end|>").out)
    special = json.loads(cli("tokenize", "-m", model, "--json", "--special", "<|im_end|>").out)
    assert not any(record["is_control"] for record in plain)
    assert [record["piece"] for record in special if record["is_control"]][-1] == "<|im_end|>"


# -- parse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 2, 7, 1000])
def test_parse_gives_the_same_whatever_the_chunks(chunk: int | None) -> None:
    words = ["parse", "--format", "hermes", *(["--chunk", chunk] if chunk else [])]
    found = json.loads(cli(*words, stdin=CALL).out)
    assert found["content"] == "Hi"
    assert found["reasoning"] == "hm"
    assert found["calls"] == [{"name": "add", "arguments": {"a": 1, "b": "zwei é"}}]


def test_parse_by_template_and_tools_and_as_events(tmp_path: Path, model: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ tools }}<think><tool_call>{{ messages }}", encoding="utf-8")
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "add"}}]', encoding="utf-8")
    outcome = cli("parse", "--template", template, "--tools", tools, stdin=CALL)
    assert json.loads(outcome.out)["calls"][0]["name"] == "add"
    assert json.loads(cli("parse", "-m", model, stdin="plain").out)["content"] == "plain"
    events = cli("parse", "--format", "hermes", "--events", stdin=CALL).events
    assert events[0]["type"] == "reasoning_delta"
    assert events[-1]["type"] == "tool_call_ready"
    assert json.loads(cli("parse", "--format", "hermes").out) == {"content": "", "reasoning": "", "calls": []}


def test_front_door_parse_agrees_with_the_command() -> None:
    parsed = edgellm.parse(CALL, format="hermes")
    assert (parsed.content, parsed.reasoning) == ("Hi", "hm")


# -- tools and samplers -------------------------------------------------------------------------------------


def test_tools_list_show_call(tmp_path: Path) -> None:
    assert "calculator" in cli("tools", "list").out
    assert {"name", "permission", "origin"} <= set(json.loads(cli("tools", "list", "--json").out)[0])
    assert '"expression"' in cli("tools", "show", "calculator").out
    assert json.loads(cli("tools", "show", "calculator", "--json").out)["function"]["name"] == "calculator"
    called = cli("tools", "call", "calculator", '{"expression": "23 * 17 + 4"}')
    assert (called.code, called.out, called.err) == (0, "395\n", "")
    piped = cli("tools", "call", "calculator", "-", "--json", stdin='{"expression": "2 ** 10"}')
    assert json.loads(piped.out)["result"] == "1024"


def test_what_a_grammar_cannot_enforce_is_said(tmp_path: Path) -> None:
    file = tmp_path / "codes.py"
    file.write_text(
        "from typing import Annotated\nimport edgellm, msgspec\n\n"
        "@edgellm.tool\ndef check(code: Annotated[str, msgspec.Meta(pattern='^(?=a)..$')]) -> str:\n"
        '    """Checks a code."""\n    return code\n',
        encoding="utf-8",
    )
    outcome = cli("tools", "show", "check", "--tools", file)
    assert outcome.code == 0, outcome.err
    assert "only checked afterwards" in outcome.out


def test_a_tool_that_asks_needs_allow_and_what_it_prints_is_talk(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import edgellm\n\n@edgellm.tool\ndef greet(name: str) -> str:\n    '''Greets.'''\n"
        "    print('noise')\n    return f'hello {name}'\n",
        encoding="utf-8",
    )
    words = ("tools", "call", "greet", '{"name": "you\\u001b[2J"}', "--tools", file)
    refused = cli(*words)
    assert (refused.code, refused.out) == (1, "")
    assert "--allow greet" in refused.err
    allowed = cli(*words, "--allow", "greet")
    assert (allowed.code, allowed.out) == (0, "hello you\\x1b[2J\n")
    assert allowed.err == "noise\n"


def test_a_discovered_plugin_that_does_not_load_only_warns(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "tools"
    folder.mkdir(parents=True)
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    listed = cli("tools", "list")
    assert listed.code == 0
    assert "calculator" in listed.out
    assert "warning: Tool plugin 'broken' does not load: ZeroDivisionError" in listed.err
    assert cli("tools", "call", "calculator", '{"expression": "1"}').err == ""


def test_samplers_list_and_show() -> None:
    listed = cli("samplers", "list")
    assert "top_k(k=40)" in listed.out
    assert "antislop" in listed.out
    assert "The default chain: " in listed.out
    shown = cli("samplers", "show", "min_p")
    assert "arXiv" in shown.out
    assert "a number from 0 to 1" in shown.out


# -- quantize -----------------------------------------------------------------------------------------------


def test_quantize_writes_a_model_that_runs(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "q8.gguf"
    outcome = cli("quantize", model, target, "q8_0")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(target)
    assert "Q8_0" in json.loads(cli("inspect", target, "--json").out)["quantization"]
    assert cli("run", "-m", target, "--no-tools", "--max-tokens", 2, "Hello").code == 0
    again = cli("quantize", model, target, "q8_0")
    assert again.code == 1
    assert "exists already" in again.err


# -- doctor -------------------------------------------------------------------------------------------------


def test_doctor_is_well_here() -> None:
    outcome = cli("doctor")
    assert outcome.code == 0, outcome.out
    for word in ("llama-cpp-python", "backends", "CPU", "wait policy", "store", "config", "memory"):
        assert word in outcome.out
    report = json.loads(cli("doctor", "--json").out)
    assert report["is_well"] is True
    assert "CPU" in report["backends"]
    assert report["memory"]["total_bytes"] > 0
    assert report["usable_cores"] >= 1
    assert "tool calculator" in report["plugins"]


def test_doctor_says_of_memory_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, words in ((MemoryInfo(8_000_000_000), "8.0 GB"), (MemoryInfo(), "unknown")):
        monkeypatch.setattr(examination, "memory", lambda found=found: found)
        (line,) = (line for line in cli("doctor").out.splitlines() if line.startswith("memory"))
        assert line.split(maxsplit=1)[1] == words


def test_doctor_names_a_broken_plugin_and_a_broken_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "samplers"
    folder.mkdir(parents=True)
    (folder / "odd.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    (tmp_path / "config" / "models.toml").write_text("[models\n", encoding="utf-8")
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "odd" in outcome.out
    assert "nowhere_to_be_found" in outcome.out
    assert "not valid TOML" in outcome.out
    assert outcome.out.count("broken ") == 2


def test_doctor_notes_an_untested_llama_cpp_python(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(package: str) -> str:
        return "0.4.0" if package == "llama-cpp-python" else real(package)

    monkeypatch.setattr(metadata, "version", version)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "0.4.0 is installed; edgellm is tested with 0.3.36" in outcome.out
    assert 'pip install "llama-cpp-python==0.3.36"' in outcome.out


def test_doctor_finds_a_store_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "file" / "home"))
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "EDGELLM_HOME" in outcome.out


def test_doctor_sees_an_untrusted_folder_as_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".edgellm" / "tools").mkdir(parents=True)
    (tmp_path / ".edgellm" / "tools" / "x.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "is not trusted" in outcome.out
