"""`edgellm run`: text, JSON lines, tools, schema, seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from cli_harness import cli

from edgellm.cli.render import escape


def test_same_seed_same_text(model: Path) -> None:
    words = ("run", "-m", model, "--seed", 5, "--max-tokens", 12, "--no-tools", "Hello")
    first, second = cli(*words), cli(*words)
    assert first.code == 0
    assert first.out == second.out
    assert first.out.strip()
    assert "--max-tokens raises that" in first.err


def test_json_lines_are_the_events(model: Path) -> None:
    outcome = cli("run", "--json", "-m", model, "--seed", 5, "--max-tokens", 12, "--no-tools", "Hello")
    assert outcome.err == ""
    assert outcome.of("prefill_progress")[-1]["done"] == outcome.of("prefill_progress")[-1]["total"]
    (end,) = outcome.of("turn_finished")
    assert "".join(event["text"] for event in outcome.of("text_delta")) == end["text"]
    assert end["finish_reason"] == "length"
    usage = end["usage"]
    (leg,) = usage["legs"]
    assert usage["prefill_tokens"] == leg["prefill_tokens"] == outcome.of("prefill_progress")[-1]["total"]
    assert usage["decode_tokens"] == leg["decode_tokens"] == 12
    assert usage["reused_tokens"] == 0
    assert outcome.out.isascii()


def test_a_call_and_its_result_as_events_and_nothing_prefilled_twice(model: Path, tools: Path) -> None:
    outcome = cli(
        *("run", "--json", "-m", model, "--seed", 1, "--max-tokens", 100, "--tools", tools, "--tool", "flip"),
        *("--tool-choice", "required", "Flip"),
    )
    assert outcome.code == 0
    (ready,) = outcome.of("tool_call_ready")
    assert ready["name"] == "flip"
    assert set(ready["arguments"]) == {"is_heads"}
    (finished,) = outcome.of("tool_finished")
    assert finished["arguments"] == ready["arguments"]
    assert finished["ok"] is True
    assert finished["result"].startswith("it was")
    kinds = [event["type"] for event in outcome.events]
    order = [
        "tool_call_started",
        "tool_call_name",
        "tool_call_ready",
        "tool_approved",
        "tool_running",
        "tool_finished",
    ]
    assert [kind for kind in kinds if kind in order] == order
    first, second = outcome.of("turn_finished")[0]["usage"]["legs"]
    # Tokens that the grammar forced may be pending, too: they were not computed yet.
    pending = first["prefill_tokens"] + first["decode_tokens"] - second["reused_tokens"]
    assert 1 <= pending <= first["forced_tokens"]
    assert second["rebuilt_tokens"] == 0
    # What was pending, the result and its glue; far less than the first prompt.
    assert pending < second["prefill_tokens"] < first["prefill_tokens"]


def test_the_answer_goes_to_stdout_and_the_call_to_stderr_escaped(model: Path, tools: Path) -> None:
    outcome = cli(
        *("run", "-m", model, "--seed", 1, "--max-tokens", 100, "--tools", tools, "--tool", "flip"),
        *("--tool-choice", "required", "Flip"),
    )
    assert outcome.code == 0
    assert "→ flip {" in outcome.err
    assert "← it was" in outcome.err
    assert "\\x1b[31m" in outcome.err
    assert "\x1b" not in outcome.err + outcome.out
    assert "→" not in outcome.out


def test_an_asking_tool_is_denied_where_nobody_is_there_and_runs_when_allowed(
    model: Path, tools: Path
) -> None:
    words = (
        *(
            "run",
            "--json",
            "-m",
            model,
            "--seed",
            1,
            "--max-tokens",
            100,
            "--tools",
            tools,
            "--tool",
            "launch",
        ),
        *("--tool-choice", "launch", "Go"),
    )
    outcome = cli(*words)
    assert outcome.code == 0
    assert outcome.of("tool_denied")
    assert not outcome.of("tool_running")
    assert outcome.of("tool_finished")[0]["ok"] is False
    allowed = cli(*words, "--allow", "launch")
    assert allowed.of("tool_finished")[0]["result"] == "launched"


def test_without_tool_only_calculator_and_clock_are_offered(model: Path, tools: Path) -> None:
    outcome = cli("run", "-m", model, "--tool-choice", "shell", "Hello")
    assert outcome.code == 1
    assert "one of: calculator, clock." in outcome.err
    outcome = cli("run", "-m", model, "--tools", tools, "--tool-choice", "shell", "Hello")
    assert "one of: flip, launch, calculator, clock." in outcome.err
    outcome = cli("run", "-m", model, "--tools", tools, "--tool", "clock", "--tool-choice", "shell", "Hello")
    assert "one of: flip, launch, clock." in outcome.err
    outcome = cli("run", "-m", model, "--tools", tools, "--tool", "flip", "--tool-choice", "shell", "Hello")
    assert "one of: flip." in outcome.err


def test_stdin_is_appended_to_the_prompt(model: Path) -> None:
    words = ("run", "--json", "-m", model, "--seed", 1, "--max-tokens", 1, "--no-tools")
    alone = cli(*words, "one").of("turn_finished")[0]["usage"]["prefill_tokens"]
    both = cli(*words, "one", stdin="Q" * 50).of("turn_finished")[0]["usage"]["prefill_tokens"]
    piped = cli(*words, stdin="Q" * 50).of("turn_finished")[0]["usage"]["prefill_tokens"]
    assert both == alone + 50 + 2  # two newlines between
    assert piped == alone - 3 + 50


def test_a_schema_constrains_the_answer(model: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    )
    outcome = cli("run", "--json", "-m", model, "--seed", 1, "--schema", schema, "Hello")
    assert outcome.code == 0, outcome.err
    (end,) = outcome.of("turn_finished")
    assert isinstance(end["value"]["ok"], bool)
    assert json.loads(end["text"]) == end["value"]
    text = cli("run", "-m", model, "--seed", 1, "--schema", schema, "Hello")
    assert isinstance(json.loads(text.out)["ok"], bool)


def test_an_answer_cut_off_before_it_fits_its_schema_is_an_error(model: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    )
    outcome = cli("run", "--json", "-m", model, "--seed", 1, "--schema", schema, "--max-tokens", 3, "Hello")
    assert outcome.code == 1
    assert "Raise --max-tokens" in outcome.err
    assert outcome.of("turn_finished")[0]["finish_reason"] == "length"


def test_logprobs_show_alternatives(model: Path) -> None:
    words = ("run", "-m", model, "--seed", 1, "--max-tokens", 3, "--no-tools", "--logprobs", 4, "Hello")
    drawn = cli(*words, "--json").of("token_drawn")
    assert len(drawn) == 3
    for event in drawn:
        assert len(event["top"]) == 4
        assert event["top"][0]["p"] >= event["top"][1]["p"] > 0
        assert event["logprob"] <= 0
    assert drawn[0]["top"][0]["piece"]
    assert cli(*words).err.count("%") == 12
    assert not cli(*(word for word in words if word not in ("--logprobs", 4)), "--json").of("token_drawn")


def test_template_and_format_are_taken_by_name_and_file(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    words = ("run", "--json", "-m", model, "--max-tokens", 1, "--no-tools", "QQQ")
    plain = cli(*words, "--template", file).of("turn_finished")[0]["usage"]["prefill_tokens"]
    chatml = cli(*words, "--template", "chatml").of("turn_finished")[0]["usage"]["prefill_tokens"]
    assert plain == 3
    assert chatml > plain
    assert cli(*words, "--format", "hermes").code == 0


def test_settings_reach_the_tool(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("milk", encoding="utf-8")
    outcome = cli(
        "tools", "call", "read_file", '{"path": "todo.txt"}', "--set", f"files.root={tmp_path / 'notes'}"
    )
    assert outcome.code == 0, outcome.err
    assert "milk" in outcome.out


def test_escape_spells_out_what_could_fool_a_terminal() -> None:
    assert escape("a\x1b[2Jb\r\x9b\u202ec\td\n") == "a\\x1b[2Jb\\r\\x9b\\u202ec\td\n"
    assert escape("héllo 👩‍👩‍👧 مرحبا") == "héllo 👩‍👩‍👧 مرحبا"


def test_adapters_are_laid_over_the_weights(model: Path, tmp_path: Path) -> None:
    lora = tiny_models.build_lora(tmp_path / "mine.gguf")
    vector = tiny_models.build_control_vector(tmp_path / "calm.gguf")
    words = ("run", "-m", model, "--sampler", "greedy", "--max-tokens", 12, "--no-tools", "Hello")
    plain, adapted = cli(*words), cli(*words, "--lora", lora)
    steered = cli(*words, "--control-vector", f"{vector}:2")
    assert (plain.code, adapted.code, steered.code) == (0, 0, 0)
    assert len({plain.out, adapted.out, steered.out}) == 3
    assert cli(*words, "--lora", f"{lora}:0", "--control-vector", f"{vector}:0.0").out == plain.out
    assert cli(*words, "--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5").out == adapted.out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lora", "none.gguf", "there is no LoRA adapter at none.gguf"),
        ("--control-vector", "none.gguf:0.5", "there is no control vector at none.gguf"),
        ("--lora", "{lora}:half", "the scale 'half' of"),
        ("--control-vector", "{lora}", "is no control vector"),
        ("--lora", "{model}", "is no LoRA adapter"),
        ("--lora", "{foreign}", "made for a qwen3 model, this one is llama"),
    ],
)
def test_adapter_that_does_not_fit_is_one_line_with_a_remedy(
    model: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    files = {
        "lora": tiny_models.build_lora(tmp_path / "mine.gguf"),
        "foreign": tiny_models.build_lora(tmp_path / "foreign.gguf", arch="qwen3"),
        "model": model,
    }
    outcome = cli("run", "-m", model, "--no-tools", option, value.format(**files), "Hello")
    assert outcome.code != 0
    assert outcome.out == ""
    (line,) = outcome.err.strip().splitlines()
    assert message in line


def test_guesses_from_a_file_change_no_text(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "quoted.txt"
    file.write_text("one two three four " * 20, encoding="utf-8")
    words = ("run", "--json", "-m", model, "--sampler", "greedy", "--max-tokens", 12, "--no-tools", "Hello")
    plain = cli(*words)
    guessed = cli(*words, "--speculate", "ngram", "--speculate-from", file)
    assert guessed.code == 0
    assert guessed.of("turn_finished")[0]["text"] == plain.of("turn_finished")[0]["text"]
    assert cli(*words, "--speculate-from", tmp_path / "gone.txt").code != 0
    assert "Leave one of them out" in cli(*words, "--speculate", "off", "--speculate-from", file).err
    assert "did you mean 'ngram'" in cli(*words, "--speculate", "ngrams").err


def test_draft_model_that_is_missing_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    refused = cli("run", "-m", tmp_path / "gone.gguf", "--speculate", "draft", "Hello")
    assert refused.code != 0
    assert "--draft-model NAME" in refused.err and "gone.gguf" not in refused.err
