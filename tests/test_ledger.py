"""The ledger: whose the tokens of a context are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scripted_chats import ADD_2_AND_3, TEMPLATE, add, script

import edgellm
from edgellm.ledger import Pace
from edgellm.usage import Leg, Usage

if TYPE_CHECKING:
    pass

WITH_TOOLS = (
    "{%- if tools -%}{{ '<|im_start|>system\\nTools:' }}{%- for t in tools -%}{{ t | tojson }}{%- endfor -%}"
    "{{ '<|im_end|>\\n' }}{%- endif -%}" + TEMPLATE
)


@edgellm.tool(permission="auto")
def shout(text: str) -> str:
    """Says it loudly, so that all can hear it, near and far.

    Args:
        text: What to say; as long as one likes, and a little longer than that.
    """
    return text.upper()


def test_every_token_has_an_owner_and_every_tool_its_price(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(
        sampler=script(runtime, ADD_2_AND_3, "Five."),
        template=WITH_TOOLS,
        tools=[add, shout],
        system="Be brief.",
    )
    assert chat.ledger().used_tokens == 0
    list(chat.send("What is 2 + 3?"))
    ledger = chat.ledger()
    assert ledger.used_tokens == len(chat.tape)
    assert ledger.free_tokens == 4096 - len(chat.tape)
    tokens = {(entry.owner, entry.name): entry.tokens for entry in ledger.entries}
    assert tokens["system", ""] == len(runtime.tokenize("Be brief."))
    assert tokens["user", ""] == len(runtime.tokenize("What is 2 + 3?"))
    assert {"tool_call", "tool_result", "text", "glue"} <= {owner for owner, _ in tokens}
    # A tool costs what the prompt is longer by; the words that introduce them all are nobody's.
    alone = runtime.chat(template=WITH_TOOLS, tools=[add], system="Be brief.").conversation
    both = chat.conversation
    said = [edgellm.Message("user", "?")]
    assert tokens["tool", "shout"] == len(both.first_prompt(said)) - len(alone.first_prompt(said))
    assert tokens["tool", "shout"] > tokens["tool", "add"] > 0 < tokens["tool", ""]
    # The first prompt was long enough to be measured.
    assert ledger.prefill_tok_s
    assert all(
        entry.price_s == pytest.approx(entry.tokens / ledger.prefill_tok_s) for entry in ledger.entries
    )
    chat.close()


def test_worked_turns_of_the_runtime_are_not_the_users(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(
        sampler=script(runtime, "Hello."), template=WITH_TOOLS, tools=[add], strategy="guided"
    )
    list(chat.send("Good morning", tool_choice="none"))
    tokens = {entry.owner: entry.tokens for entry in chat.ledger().entries}
    assert tokens["examples"] > 50
    assert tokens["user"] == len(runtime.tokenize("Good morning"))
    assert sum(tokens.values()) == len(chat.tape)
    chat.close()


def test_no_price_before_anything_was_measured() -> None:
    pace = Pace()
    pace.note(Usage((Leg(prefill_tokens=8, reused_tokens=0, decode_tokens=3, prefill_s=0.1),)))
    assert pace.prefill_tok_s is None
    for rate in (100.0, 400.0):
        for _ in range(20):
            pace.note(
                Usage((Leg(prefill_tokens=1000, reused_tokens=0, decode_tokens=3, prefill_s=1000 / rate),))
            )
    # The newest few thousand tokens count.
    assert pace.prefill_tok_s is not None and 300 < pace.prefill_tok_s <= 400
