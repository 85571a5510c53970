"""What a chat and a turn are made with is looked at before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edgellm
from edgellm.chat_options import checked_options
from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "options",
    [
        {"system": 5},
        {"trace": "5"},
        {"trace": -1},
        {"template": 5},
        {"template_kwargs": "x"},
        {"approve": "once"},
        {"permissions": "deny"},
        {"settings": 5},
        {"strategy": "giuded"},
        {"constraint": "forced"},
        {"thinking": "yes"},
        {"effort": 3},
        {"reasoning_policy": "drop"},
        {"check_exactness": "no"},
        {"limits": 4},
        {"limits": edgellm.AgentLimits(max_steps=0)},
        {"limits": edgellm.AgentLimits(max_tokens="9")},  # pyright: ignore[reportArgumentType]
        {"history": [{"role": "user", "content": "Hi"}]},
        {"speculate_from": "a text, not a list of texts"},
        {"adapters": "pirate.gguf"},
    ],
)
def test_impossible_value_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))[:5]}.* is not "):
        checked_options(options)


def test_what_the_fields_say_is_taken() -> None:
    checked_options({"system": None, "trace": np.int64(3), "approve": print, "history": []})
    checked_options({"thinking": True, "speculate_from": ["a"], "adapters": edgellm.AdapterSet()})


@pytest.mark.parametrize("text", [b"Hello", 5, ["Hello"], {"role": "user"}])
def test_message_that_is_no_text_is_refused(runtime: edgellm.Runtime, text: Any) -> None:
    chat = runtime.chat()
    with pytest.raises(ConfigError, match="no text"):
        chat.ask(text)
    assert chat.tape == ()


@pytest.mark.parametrize("max_tokens", ["5", 2.5, -1])
def test_budget_that_is_no_count_is_refused_before_the_prompt(
    runtime: edgellm.Runtime, max_tokens: Any
) -> None:
    chat = runtime.chat()
    with pytest.raises(ConfigError, match="max_tokens"):
        chat.ask("Hello", max_tokens=max_tokens)
    assert chat.tape == ()
    with pytest.raises(ConfigError, match="max_tokens"):
        list(runtime.complete("Hello", max_tokens=max_tokens))


def test_steering_with_other_types_is_refused(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat()
    refused: list[Any] = [
        lambda: chat.set_trace("5"),  # pyright: ignore[reportArgumentType]
        lambda: chat.set_adapters("pirate.gguf"),  # pyright: ignore[reportArgumentType]
        lambda: chat.set_speculation("ngram", "text"),
        lambda: runtime.complete(b"Hello"),  # pyright: ignore[reportArgumentType]
        lambda: runtime.embed([b"Hello"]),  # pyright: ignore[reportArgumentType]
    ]
    for use in refused:
        with pytest.raises(ConfigError):
            use()
    assert chat.speculation == "off"


def test_numbers_of_numpy_do_not_spoil_a_saved_chat(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    chat = runtime.chat(seed=1)
    chat.ask("Hello", max_tokens=4)
    chat.pin(np.int64(1))  # pyright: ignore[reportArgumentType]
    chat.pin(False)
    other = chat.branch(len(chat.tape) - 1, np.int32(40))  # pyright: ignore[reportArgumentType]
    for number, one in enumerate((chat, other)):
        one.save(tmp_path / f"{number}.chat")
        with runtime.open_chat(tmp_path / f"{number}.chat") as opened:
            assert opened.pinned == (0, 1)
            assert opened.tape == one.tape
