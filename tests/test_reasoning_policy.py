"""Earlier reasoning at the next user turn: kept, cut out, or rendered anew; and the check against a full render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edgellm
from edgellm.scripted import Scripted

if TYPE_CHECKING:
    pass

# As Qwen3 and DeepSeek do: reasoning of earlier turns is dropped once the user speaks again.
DROPS = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages if m.role == 'user' -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.reasoning_content and loop.index0 > ns.last -%}{{ '<think>' + m.reasoning_content + '</think>' }}"
    "{%- endif -%}{{ m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
THOUGHT = "<think>Hm, hm.</think>Four."


def talk(runtime: edgellm.Runtime, policy: str, **options: Any) -> tuple[edgellm.Chat, list[Any]]:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    script = Scripted([THOUGHT, "Six."], end)
    chat = runtime.chat(sampler=[script], template=DROPS, reasoning_policy=policy, **options)
    list(chat.send("2 + 2?"))
    return chat, list(chat.send("3 + 3?"))


def text_of(chat: edgellm.Chat) -> str:
    return chat.runtime.vocabulary.text_of(chat.tape).decode()


def assert_sound(chat: edgellm.Chat) -> None:
    session = chat.conversation.session
    assert session.check_memory()
    assert len(session.tape) - 1 <= session.kv_length <= len(session.tape)


def test_keep_only_appends(runtime: edgellm.Runtime) -> None:
    chat, events = talk(runtime, "keep")
    assert "<think>Hm, hm.</think>Four." in text_of(chat)
    assert not any(isinstance(event, edgellm.HistoryRewritten) for event in events)
    assert_sound(chat)
    chat.close()


def test_render_computes_from_the_first_difference(runtime: edgellm.Runtime) -> None:
    chat, events = talk(runtime, "render")
    assert "<think>" not in text_of(chat)
    assert "Four.<|im_end|>" in text_of(chat)
    (rewritten,) = (event for event in events if isinstance(event, edgellm.HistoryRewritten))
    assert (rewritten.policy, rewritten.is_approximate) == ("render", False)
    assert rewritten.removed_tokens == chat.usage.legs[1].removed_tokens > 0
    # The first turn up to the reasoning was not computed again.
    assert chat.usage.legs[1].reused_tokens > 5
    assert_sound(chat)
    chat.close()


@pytest.mark.parametrize("is_too_long", [True, False], ids=["too long", "reader left"])
def test_render_of_a_turn_that_does_not_begin_leaves_the_tape(
    runtime: edgellm.Runtime, is_too_long: bool
) -> None:
    """The tape was cut before the old reasoning: the messages behind it were not there, and an answer seemed open."""
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    chat = runtime.chat(sampler=[Scripted([THOUGHT, "Six."], end)], template=DROPS, reasoning_policy="render")
    list(chat.send("2 + 2?"))
    tape, spans, starts = chat.tape, chat.spans, chat.conversation.starts
    if is_too_long:
        with pytest.raises(edgellm.ContextFull):
            list(chat.send("3 + 3? " * runtime.n_ctx))
    else:
        turn = chat.send("3 + 3? " * 50)
        next(turn)
        turn.close()
    assert (chat.tape, chat.spans, chat.conversation.starts) == (tape, spans, starts)
    assert not chat.is_answer_open
    assert chat.ask("3 + 3?") == "Six."
    assert "<think>" not in text_of(chat)
    assert_sound(chat)
    chat.close()


def test_rewind_under_render_leaves_no_message_where_nothing_is(runtime: edgellm.Runtime) -> None:
    """Messages to keep are rendered with the next one: they had places beyond the tape's end, behind later ones."""
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    script = Scripted([THOUGHT, "Six.", "Nine."], end)
    chat = runtime.chat(sampler=[script], template=DROPS, reasoning_policy="render")
    list(chat.send("2 + 2?"))
    list(chat.send("3 + 3?"))
    chat.rewind(2)
    assert all(start <= len(chat.tape) for start in chat.conversation.starts)
    list(chat.send("4 + 5?"))
    assert chat.conversation.starts == sorted(chat.conversation.starts)
    chat.close()


@pytest.mark.parametrize("has_fork", [False, True], ids=["alone", "memory is shared"])
def test_excise_cuts_the_reasoning_out(runtime: edgellm.Runtime, has_fork: bool) -> None:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    chat = runtime.chat(sampler=[Scripted([THOUGHT, "Six."], end)], template=DROPS, reasoning_policy="excise")
    list(chat.send("2 + 2?"))
    other = chat.fork() if has_fork else None
    events = list(chat.send("3 + 3?"))
    assert "<think>" not in text_of(chat)
    assert "assistant\nFour.<|im_end|>" in text_of(chat)
    (rewritten,) = (event for event in events if isinstance(event, edgellm.HistoryRewritten))
    # Cells that a fork shares cannot be moved: then the rest is computed again, and exact.
    assert rewritten.is_approximate is not has_fork
    assert_sound(chat)
    if other is not None:
        assert "<think>" in text_of(other)
        assert_sound(other)
        fresh = runtime.engine.session(runtime.make_chain("greedy"))
        fresh.extend(
            [
                (token, kind)
                for token, kind in zip(chat.tape, chat.conversation.session.tape.kinds, strict=True)
            ]
        )
        np.testing.assert_allclose(chat.conversation.session.logits(), fresh.logits(), atol=0.02)
        fresh.close()
        other.close()
    assert [message.role for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    chat.rewind(2)
    assert_sound(chat)
    chat.close()


@edgellm.tool(permission="auto")
def look_up(word: str) -> str:
    """Looks a word up.

    Args:
        word: Which.
    """
    return f"{word}: a plant"


def test_answer_that_was_reasoning_alone_does_not_begin_behind_the_next_message(
    runtime: edgellm.Runtime,
) -> None:
    """Nothing of it was left, and the end in front of it, unlike the template's, was taken off too."""
    end = runtime.vocabulary.special_tokens["<|endoftext|>"]
    script = Scripted(["Four.", "<think>Hm, hm.</think>", "Six."], end)
    chat = runtime.chat(sampler=[script], template=DROPS, reasoning_policy="excise")
    list(chat.send("2 + 2?"))
    list(chat.send(None, max_tokens=12))
    assert chat.messages[-1].reasoning and not chat.messages[-1].content
    list(chat.send("3 + 3?"))
    assert chat.conversation.starts == sorted(chat.conversation.starts)
    assert_sound(chat)
    chat.close()


def test_tape_is_compared_with_a_full_render(runtime: edgellm.Runtime) -> None:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "tree"}}\n</tool_call>'
    for written, verdict in ((call, "exact"), (call.replace(": {", ":  {"), "equivalent")):
        chat = runtime.chat(
            sampler=[Scripted([written, "A plant."], end)],
            template=DROPS,
            tools=[look_up],
            check_exactness=True,
            constraint="off",
        )
        events = list(chat.send("What is a tree?"))
        (checked,) = (event for event in events if isinstance(event, edgellm.ExactnessChecked))
        assert checked.verdict == verdict, checked
        chat.close()


def test_thinking_and_effort_reach_the_template(runtime: edgellm.Runtime) -> None:
    source = DROPS + "{{ '[' ~ enable_thinking ~ thinking ~ reasoning_effort ~ ']' }}"
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    chat = runtime.chat(sampler=[Scripted(["Yes."], end)], template=source, thinking=False, effort="low")
    list(chat.send("Hi?"))
    assert "[FalseFalselow]" in text_of(chat)
    chat.close()


@pytest.mark.slow
def test_a_checked_draw_is_a_draw_from_what_is_allowed(runtime: edgellm.Runtime) -> None:
    """Free draws with a second one on refusal, against masked draws: the same distribution (chi-squared)."""
    session = runtime.engine.session(runtime.make_chain("dist", seed=1))
    session.extend([(token, edgellm.SpanKind.PROMPT) for token in runtime.tokenize("Once upon")])
    length = len(session.tape)
    allowed = ["e", "t", "a", "o"]
    grammar = runtime.grammar_constraint("start: " + " | ".join(f'"{letter}"' for letter in allowed))
    logits = session.logits().astype(np.float64)
    ids = grammar.allowed_ids()
    expected = np.exp(logits[ids] - logits[ids].max())
    expected /= expected.sum()
    draws = 3000
    counts = np.zeros(len(ids))
    for seed in range(draws):
        session.chain.seed = seed
        constraint = grammar.clone()
        session.constraint, session.is_checked = constraint, True
        token = session.step().token
        counts[int(np.flatnonzero(ids == token)[0])] += 1
        session.constraint, session.is_checked = None, False
        session.settle()
        session.rewind(length)
    kept = expected * draws >= 5
    statistic = float((((counts - expected * draws) ** 2) / (expected * draws))[kept].sum())
    # 99.99 % of a chi-squared variable with this many degrees of freedom (Wilson-Hilferty).
    degrees = max(1, int(kept.sum()) - 1)
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert statistic < limit
    session.close()
