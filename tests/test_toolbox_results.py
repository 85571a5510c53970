"""Long tool results: the model gets the beginning, and reads on where it wants to."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import edgellm
from edgellm.scripted import Scripted
from edgellm.toolbox.results import ResultStore
from edgellm.types import ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LINES = "\n".join(f"line {number} of the report, zwölf Wörter" for number in range(120))


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama", n_ctx=8192), n_ctx=8192, n_seq_max=4, threads=1) as runtime:
        yield runtime


@edgellm.tool(permission="auto", max_result_tokens=500)
def report() -> str:
    """The report."""
    return LINES


def call(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def results_of(turn: Iterator[Any]) -> list[edgellm.ToolResult]:
    return [event.result for event in turn if isinstance(event, edgellm.ToolFinished)]


def open_chat(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    options.setdefault("tools", [report])
    return runtime.chat(sampler=[Scripted(list(answers), end)], **options)


@pytest.mark.slow
def test_a_result_is_read_to_its_end(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    chat = open_chat(runtime, call("report", {}), "So.")
    (first,) = results_of(chat.send("Read it."))
    assert first.is_truncated and len(runtime.tokenize(first.text)) <= 500
    whole, notice = first.text.rsplit("\n[cut: ", 1)
    reads = 0
    while notice:
        found = re.search(r"call read_more with (\{.*\})\]$", notice)
        assert found is not None, notice
        end = runtime.vocabulary.special_tokens["<|im_end|>"]
        chat.set_sampler([Scripted([call("read_more", json.loads(found.group(1))), "Go on."], end)])
        (part,) = results_of(chat.send("More."))
        assert part.is_ok
        text, _, notice = part.text.partition("\n[cut: ")
        whole += text
        reads += 1
    assert whole == LINES and reads > 1
    file = tmp_path / "a.chat"
    chat.save(file)
    chat.close()
    opened = runtime.open_chat(
        file,
        tools=[report],
        sampler=[Scripted([call("read_more", {"result": "r1", "start": 5}), "So."], end)],
    )
    (again,) = results_of(opened.send("Once more?"))
    assert again.text.startswith(LINES[5:100])
    opened.close()


@pytest.mark.parametrize("is_cut", [True, False])
def test_the_grammar_knows_the_tool_once_something_was_cut(runtime: edgellm.Runtime, is_cut: bool) -> None:
    read = call("read_more", {"result": "r1", "start": 900})
    chat = open_chat(runtime, *([call("report", {})] if is_cut else []), read, "So.", constraint="force")
    list(chat.send("Read it."))
    called = [one.name for message in chat.messages for one in message.tool_calls]
    assert (called[:2] == ["report", "read_more"]) if is_cut else "read_more" not in called
    chat.close()


def test_a_tool_of_that_name_is_the_users(runtime: edgellm.Runtime) -> None:
    @edgellm.tool(permission="auto", max_result_tokens=200)
    def read_more() -> str:
        """Mine."""
        return "mine " * 3

    chat = open_chat(runtime, call("report", {}), call("read_more", {}), "So.", tools=[report, read_more])
    _, mine = results_of(chat.send("Read it."))
    assert mine.text == "mine mine mine "
    chat.close()


def test_what_is_kept_is_bounded_and_says_so() -> None:
    store = ResultStore(max_characters=100)
    notices = [store.cut(ToolCall(str(n), "x", {}), letter * 40, 10) for n, letter in enumerate("abc")]
    assert notices[2] == '; to read on, call read_more with {"result": "r3", "start": 10}'
    assert store.state() == {"r2": "b" * 40, "r3": "c" * 40}
    assert store.cut(ToolCall("3", "x", {}), "d" * 101, 10) == "; it is too long to be kept"
    with pytest.raises(edgellm.ToolError, match="no result 'r1' any more"):
        store.read("r1", 0)
    with pytest.raises(edgellm.ToolError, match="ends at 40"):
        store.read("r2", 40)
    assert store.read("r2", 38) == "bb"
    again = ResultStore(max_characters=100)
    again.restore({**store.state(), "odd": 3})
    again.cut(ToolCall("4", "x", {}), "e", 1)
    assert set(again.state()) == {"r2", "r3", "r1"}


def test_what_was_never_saved_is_not_taken_up() -> None:
    store = ResultStore()
    for state in ([1], 3, None, {"r1": 3}):
        store.restore(state)
    assert len(store) == 0
