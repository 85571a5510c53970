"""`edgellm chat`: the REPL over a pipe and at a terminal."""

from __future__ import annotations

import errno
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cli_harness import Outcome, cli, terminal

import edgellm
from edgellm.cli.chat import _history
from edgellm.types import Resumed


@pytest.fixture
def chat(model: Path) -> Callable[..., Outcome]:
    def run(*lines: str, options: tuple[object, ...] = ("--no-tools",)) -> Outcome:
        words = ("chat", "-m", model, "--seed", 3, "--max-tokens", 6, *options)
        return cli(*words, stdin="".join(f"{line}\n" for line in lines))

    return run


def test_prompt_is_one_turn(model: Path) -> None:
    words = ("-m", model, "--seed", 3, "--max-tokens", 6, "--no-tools")
    assert cli("chat", *words, "--prompt", "Hello").out == cli("run", *words, "Hello").out


def test_prompt_prints_call_result_and_answer_on_stdout(model: Path, tools: Path) -> None:
    outcome = cli(
        *("chat", "-m", model, "--seed", 1, "--max-tokens", 100, "--tools", tools, "--tool", "launch"),
        *("--tool-choice", "required", "--allow", "launch", "--prompt", "Go"),
    )
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith('→ launch {"is_sure": ')
    assert lines[1] == "← launched"
    assert len("".join(lines[2:])) > 0


def test_piped_lines_are_turns_without_prompts(chat: Callable[..., Outcome]) -> None:
    outcome = chat("Hello", "", "again\\", "and on", "/stats")
    assert outcome.code == 0
    assert "4 messages" in outcome.out
    assert "> " not in outcome.out
    one = chat("Hello")
    assert outcome.out.startswith(one.out)


def test_a_piped_line_that_is_no_text_is_told_and_the_others_are_answered(model: Path) -> None:
    words = ("chat", "-m", model, "--seed", 3, "--max-tokens", 6, "--no-tools")
    outcome = cli(*words, stdin=b"caf\xe9\nHello\n/stats\n")
    assert outcome.code == 1
    assert "that line is not UTF-8 text. Convert it first" in outcome.err
    assert "2 messages" in outcome.out
    assert outcome.out.startswith(cli(*words, stdin=b"Hello\n").out)


def test_a_last_line_that_ends_in_a_backslash_is_sent(chat: Callable[..., Outcome]) -> None:
    assert chat("Hello\\").out == chat("Hello").out != ""


def test_context_shows_who_owns_it(chat: Callable[..., Outcome]) -> None:
    outcome = chat("Hello", "/context", "/stats")
    lines = outcome.out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("owner "))
    owners = {line.split("  ")[0] for line in lines[head + 1 :]}
    assert {"user", "text", "glue", "free"} <= owners
    used = next(line for line in lines if " tokens" in line and " of " in line).split(" of ")[0]
    assert f"context     {used} of" in outcome.out


def test_what_goes_when_the_context_fills_is_said(model: Path) -> None:
    lines = "\n".join(f"Question {turn}? " + "why " * 30 for turn in range(8))
    options = ("chat", "-m", model, "--seed", 1, "--no-tools", "--max-tokens", 20, "--ctx", 512)
    outcome = cli(*options, "--when-full", "evict", stdin=lines)
    assert outcome.code == 0
    assert "taken out to make room (" in outcome.err
    stopped = cli(*options, stdin=lines)
    assert stopped.code != 0 and "/when-full evict" in stopped.err
    chosen = cli(*options, stdin=f"{lines}\n/when-full\n/when-full evict\nQuestion 9? {'why ' * 30}")
    assert "\nstop\nevict\n" in chosen.out
    assert "taken out to make room (" in chosen.err.partition("/when-full evict")[2]


def test_a_pinned_turn_stays_when_the_context_fills(model: Path) -> None:
    questions = [f"Question {turn}? " + "why " * 30 for turn in range(8)]
    pins = ["/pin", "I am Ada.", "Hello", "/pin 2", "/pin 1", "/unpin 2", "/context"]
    lines = "\n".join([*pins, *questions, "/pin"])
    options = ("chat", "-m", model, "--seed", 1, "--no-tools", "--max-tokens", 20, "--ctx", 512)
    outcome = cli(*options, "--when-full", "evict", stdin=lines)
    assert outcome.code == 0 and "taken out to make room (" in outcome.err
    listed = [line for line in outcome.out.splitlines() if line[1:7].strip().isdigit() and line[0] in "* "]
    assert "*   2  Hello" in listed and "*   1  I am Ada." in listed
    # At the end the pinned one is still there; the other has gone.
    last = listed[max(place for place, line in enumerate(listed) if line.endswith("I am Ada.")) :]
    assert last[0] == "*   1  I am Ada." and not any("Hello" in line or line[0] == "*" for line in last[1:])
    assert "\npinned: turn 1 (I am Ada.)\n" in outcome.out and "No turns." in outcome.out


def test_what_is_said_again_is_answered_as_before_and_retry_draws_anew(chat: Callable[..., Outcome]) -> None:
    first = chat("Hello").out
    outcome = chat("Hello", "/rewind", "Hello")
    assert outcome.out == f"{first}Back to before: Hello\n{first}"
    retried = chat("Hello", "/retry").out
    assert retried.startswith(first)
    assert retried != first + first


def test_branches_go_their_own_ways(chat: Callable[..., Outcome]) -> None:
    outcome = chat("Hello", "/branch side", "more", "/branch main", "/branch", "/branch side", "/stats")
    assert outcome.code == 0
    assert "A new branch side begins here" in outcome.out
    assert "* main  (2 messages" in outcome.out
    assert "  side  (4 messages" in outcome.out


def test_a_saved_chat_goes_on_without_prefilling_again(chat: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "a.chat"
    whole = chat("Hello", "more", "/stats")
    saved = chat("Hello", f"/save {file}")
    assert saved.code == 0
    loaded = chat("more", "/stats", options=("--no-tools", "--load", str(file)))
    answer = whole.out.split("context     ")[0].removeprefix(chat("Hello").out)
    assert loaded.out.startswith(answer)
    assert "reused 0," not in loaded.out
    assert loaded.err.startswith("The saved memory of this chat is exact: the same logits, to the bit.\n")
    within = chat(f"/load {file}", "more")
    assert "Loaded: 2 messages" in within.out
    assert within.out.endswith(answer)
    assert within.err == loaded.err


def test_a_saved_chat_keeps_its_system_turn(
    chat: Callable[..., Outcome], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.chat"
    chat("Hello", f"/save {file}", options=("--no-tools", "--system", "Be brief."))
    other = ("--no-tools", "--system", "Be long.")
    loaded = chat(f"/load {file}", "/system", "/new", "/system", options=other)
    assert loaded.code == 0
    before, _, after = loaded.out.partition("A new chat.")
    assert "Be brief." in before and "Be long." in after
    refused = cli("chat", "-m", model, "--load", file, *other)
    assert refused.code == 2 and "keeps its system turn" in refused.err


@pytest.mark.parametrize("is_plain", [False, True])
def test_saved_memory_that_is_of_no_use_is_told_once_and_before_anything_is_sent(
    chat: Callable[..., Outcome], tmp_path: Path, is_plain: bool
) -> None:
    file = tmp_path / "a.chat"
    chat("Hello", f"/save {file}")
    options = ("--no-tools", "--kv-type", "f32", *(["--plain"] if is_plain else []))
    told = "The saved memory of this chat is not used: its KV memory is of type f16/f16. "
    for lines, more in (([f"/load {file}"], ()), ([], ("--load", file))):
        waiting = chat(*lines, options=(*options, *more))
        answered = chat(*lines, "more", options=(*options, *more))
        for outcome in (waiting, answered):
            assert outcome.code == 0
            assert (outcome.out if is_plain else outcome.err).count(told) == 1


def test_how_a_chat_was_resumed_in_words() -> None:
    assert str(Resumed("within tolerance", "other threads", 0.0123)) == (
        "The saved memory of this chat is within tolerance: its logits differ by 0.012 at most (other threads)."
    )


def test_branches_are_saved_and_loaded_with_their_names(chat: Callable[..., Outcome], tmp_path: Path) -> None:
    file, again = tmp_path / "two words.chat", tmp_path / "again.chat"
    saved = chat("Hello", "/branch side", "more", f'/save "{file}"')
    assert f"All 2 branches saved in {file};" in saved.out
    loaded = chat("/branch", f"/save {again}", options=("--no-tools", "--load", str(file)))
    assert "* side  (4 messages" in loaded.out
    assert "  main  (2 messages" in loaded.out
    within = chat(f"/load '{again}'", "/branch main", "/branch")
    assert "Branches: side, main;" in within.out
    assert "* main  (2 messages" in within.out
    assert "  side  (4 messages" in within.out


def test_retry_of_a_loaded_chat_draws_anew(chat: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "a.chat"
    first = chat("Hello", f"/save {file}").out.partition("Saved in")[0].strip()
    retried = chat("/retry", options=("--no-tools", "--load", str(file)))
    assert retried.out.strip() not in ("", first)


def test_chats_without_names_get_some(model: Path, chat: Callable[..., Outcome], tmp_path: Path) -> None:
    """Those that a script has saved; and a name of a file that is none for a branch is made one."""
    file = tmp_path / "a.chat"
    with edgellm.load(model, n_ctx=512, threads=1) as runtime:
        forks = [runtime.chat() for _ in range(4)]
        forks[2].name = forks[3].name = "fork 2\x1b[2J"
        forks[0].save(file, branches=forks[1:])
    assert "Branches: main, branch, fork-2-2J, fork-2-2J-2;" in chat(f"/load {file}").out


def test_sampler_is_shown_and_set_and_a_bad_one_changes_nothing(chat: Callable[..., Outcome]) -> None:
    outcome = chat("/sampler greedy", "/sampler top_q(3)", "/sampler", "/sampler top_a(0.3)")
    assert outcome.out.count("greedy   (seed") == 2
    assert "Did you mean 'top_p'?" in outcome.err
    assert "top_a(0.3) | dist" in outcome.out
    assert outcome.code == 1


def test_tape_shows_each_span_and_escapes_it(chat: Callable[..., Outcome]) -> None:
    outcome = chat("He\x1b[2Jllo", "/tape", "/tape all")
    assert "user" in outcome.out
    assert "He\\x1b[2Jllo" in outcome.out
    assert "<|im_start|>" in outcome.out
    assert "\x1b" not in outcome.out


def test_system_and_new_begin_anew(chat: Callable[..., Outcome]) -> None:
    outcome = chat("/system", "/system Be kind.", "Hello", "/system", "/new", "/stats")
    assert "No system turn." in outcome.out
    assert "\nBe kind.\n" in outcome.out
    assert "0 messages" in outcome.out


def test_tools_and_help(chat: Callable[..., Outcome]) -> None:
    outcome = chat("/tools", "/help", "/quit", "never said", options=())
    assert "calculator  auto" in outcome.out
    assert "/rewind [N]" in outcome.out
    assert outcome.code == 0
    assert "No tools." in chat("/tools").out


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("/rewnd", "Did you mean /rewind?"),
        ("/rewind x", "/rewind 2"),
        ("/speculate often", "ngram, draft, off"),
        ("/speculate draft", "--draft-model NAME"),
        ("/rewind 3", "There is no turn to take back. Say something first."),
        ("/retry", "Say something first"),
        ("/save", "/save FILE"),
        ("/save ''", "/save FILE"),
        ("/save one two.chat", '/save "one two.chat"'),
        ("/save 'one.chat", "Close the quotation"),
        ("/save ./nowhere/a.chat", "there is no folder nowhere"),
        ("/load", "/load FILE"),
        ("/load one two.chat", '/load "one two.chat"'),
        ("/load ~nobody-here/a.chat", "Check the path"),
        ("/load /nowhere/a.chat", "Check the path"),
        ("/save /proc/none/a.chat", "folder you can write to"),
        ("/save /proc/a.chat", "folder you can write to"),
        ("/tape x", "/tape all"),
        ("/branch a/b", "letters"),
        ("/sampler (", "top_k(40)"),
        ("/save .", "Name a file, not a folder."),
        ("/load .", "Name the file of a saved chat."),
        ("/pin 1", "/pin lists them"),
        ("/pin x", "/pin 1"),
        ("/unpin", "/unpin N"),
        ("/new Hello", "/new takes nothing behind it. /help lists"),
        ("/when-full evit", "Did you mean 'evict'?"),
    ],
)
def test_a_bad_command_is_told_and_the_chat_goes_on(
    chat: Callable[..., Outcome], line: str, remedy: str
) -> None:
    outcome = chat(line, "/stats")
    assert outcome.code == 1
    assert remedy in outcome.err
    assert "Traceback" not in outcome.err
    assert "0 messages" in outcome.out


@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama", n_ctx=32768)
    with terminal(
        "chat", "-m", model, "--ctx", 32768, "--no-tools", "--sampler", "logit_bias({0: -inf, 2: -inf})"
    ) as tty:
        tty.wait_for("Ctrl-D leaves.")
        tty.wait_for("> ")
        tty.type("Hello\n")
        tty.wait_for("name")
        tty.type("\x03")
        tty.wait_for("(stopped)")
        tty.wait_for("> ")
        tty.type("/stats\n")
        tty.wait_for("2 messages")
        tty.wait_for("> ")
        tty.ctrl_c_at_prompt()
        tty.wait_for("(once more")
        tty.wait_for("> ")
        tty.type("\x04")
        assert tty.code() == 0
    history = tmp_path / "home" / "state" / "history"
    assert history.read_text(encoding="utf-8").splitlines() == ["Hello", "/stats"]
    assert os.stat(history).st_mode & 0o777 == 0o600


def test_twice_ctrl_c_at_the_prompt_leaves(model: Path) -> None:
    with terminal("chat", "-m", model, "--no-tools") as tty:
        tty.wait_for("> ")
        tty.ctrl_c_at_prompt()
        tty.wait_for("(once more")
        tty.ctrl_c_at_prompt()
        assert tty.code() == 120


def test_history_that_cannot_be_kept_is_said_once(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "history").mkdir(parents=True)
    with terminal("chat", "-m", model, "--no-tools", env={"EDGELLM_STATE_DIR": str(state)}) as tty:
        tty.wait_for("> ")
        tty.type("/stats\n")
        tty.wait_for("0 messages")
        tty.wait_for("> ")
        tty.type("\x04")
        assert tty.code() == 0
        assert tty.text.count("lines are not kept") == 1


@pytest.mark.slow
def test_approvals_are_asked_and_always_is_remembered(model: Path, tools: Path, tmp_path: Path) -> None:
    words = (
        *("chat", "-m", model, "--seed", 1, "--max-tokens", 100, "--tools", tools, "--tool", "launch"),
        *("--tool-choice", "required"),
    )
    with terminal(*words) as tty:
        tty.wait_for("> ")
        for answer, result in (("n", "← Not run"), ("y", "← launched"), ("a", "← launched")):
            tty.type("Go\n")
            tty.wait_for("[n]o: ")
            tty.type(f"{answer}\n")
            tty.wait_for(result)
            tty.wait_for("> ")
        tty.type("Go\n")
        assert "[n]o: " not in tty.wait_for("← launched")
        tty.wait_for("> ")
        tty.type("\x04")
        assert tty.code() == 0
    assert "launch" in (tmp_path / "config" / "grants.json").read_text(encoding="utf-8")
    outcome = cli(*words, "--prompt", "Go")
    assert "← launched" in outcome.out
    # The same name from another file is another tool.
    other = tools.with_name("other.py")
    other.write_bytes(tools.read_bytes())
    outcome = cli(*(other if word == tools else word for word in words), "--prompt", "Go")
    assert "← Not run" in outcome.out


@pytest.mark.slow
def test_the_end_of_input_while_asked_is_a_no(model: Path, tools: Path) -> None:
    words = ("run", "-m", model, "--seed", 1, "--max-tokens", 100, "--tools", tools, "--tool", "launch")
    with terminal(*words, "--tool-choice", "required", "Go") as tty:
        tty.wait_for("[n]o: ")
        tty.type("\x04")
        tty.wait_for("← Not run")
        assert tty.code() == 0


def test_adapters_are_shown_and_changed_in_mid_chat(chat: Callable[..., Outcome], tmp_path: Path) -> None:
    lora = tiny_models.build_lora(tmp_path / "mine.gguf")
    vector = tiny_models.build_control_vector(tmp_path / "my calm.gguf")
    outcome = chat(
        "/adapters",
        "Hello",
        f"/adapters {lora} '{vector}:0.5'",
        "Hello",
        "/adapters none",
        "/adapters nowhere.gguf",
    )
    lines = outcome.out.splitlines()
    assert lines[0] == "No adapters."
    assert lines[-1] == "No adapters."
    assert f"LoRA adapter {lora}, scale 1" in lines
    assert f"control vector {vector}, scale 0.5" in lines
    assert sum(line.startswith("The next turn computes ") for line in lines) == 2
    assert "The adapters of this chat were changed: " in outcome.err + outcome.out
    assert "there is no LoRA adapter at nowhere.gguf" in outcome.err


def test_way_of_guessing_is_shown_and_chosen(chat: Callable[..., Outcome]) -> None:
    outcome = chat("/speculate", "/stats", "/speculate ngram", "Hello", "/speculate", "/stats")
    shown = [line for line in outcome.out.splitlines() if "came free" in line]
    assert [line.split()[0] for line in shown] == ["off", "ngram", "ngram"]
    assert "0 of 0 tokens" in shown[1] and "0 of 0 tokens" not in shown[2]


def test_free_tokens_are_in_the_figures_where_there_are_any(chat: Callable[..., Outcome]) -> None:
    assert "came free" not in chat("Hello", "/stats").out
    # One token again and again: what follows is easily guessed.
    options = ("--no-tools", "--speculate", "ngram", "--sampler", "logit_bias(bias={65: 99}) | greedy")
    outcome = chat("Hello", "/stats", options=options)
    assert re.search(r"last turn .* decoded 6 .*, [1-5] of them came free, reused", outcome.out)


@pytest.mark.parametrize("is_libedit", [True, False])
def test_history_is_kept_with_either_library_that_reads_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_libedit: bool
) -> None:
    """libedit refuses to read an empty file, and may lack a way to append."""
    lines: list[str] = []
    bound: list[str] = []

    def read(path: Path) -> None:
        kept = path.read_text(encoding="utf-8").splitlines()
        if is_libedit and not kept:
            raise OSError(errno.EINVAL, "Invalid argument")
        lines[:] = kept

    def append(count: int, path: Path) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines[len(lines) - count :])

    module = types.ModuleType("readline", "with libedit readline" if is_libedit else "with GNU readline")
    functions: dict[str, Any] = {
        "read_history_file": read,
        "get_current_history_length": lambda: len(lines),
        "write_history_file": lambda path: path.write_text("".join(f"{line}\n" for line in lines), "utf-8"),
        "clear_history": lines.clear,
        "set_completer": lambda _completer: None,
        "set_completer_delims": lambda _marks: None,
        "parse_and_bind": bound.append,
    }
    if not is_libedit:
        functions["append_history_file"] = append
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "readline", module)
    monkeypatch.setenv("EDGELLM_STATE_DIR", str(tmp_path))
    for line in ("one", "two"):
        with _history(True, []):
            lines.append(line)
        lines.clear()
    assert (tmp_path / "history").read_text(encoding="utf-8") == "one\ntwo\n"
    assert set(bound) == {"bind ^I rl_complete" if is_libedit else "tab: complete"}
