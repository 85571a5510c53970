"""Answers that are cut, steered and continued; how a token was drawn, asked again later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from scripted_chats import events_of

import edgellm
from edgellm.sampling.stage import sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellm.sampling.candidates import Candidates
    from edgellm.sampling.stage import StageVocabulary

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{%- if m.reasoning_content -%}{{ '<think>' + m.reasoning_content + '</think>' }}{%- endif -%}"
    "{{ m['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
ARCHS = ("llama", "gemma3", "mamba")


@sampler(name="dictated", chooses=True)
class Dictated:
    """Writes `answers[i]` as the i-th answer on the tape, wherever in it the tape ends; it remembers nothing."""

    def __init__(self, answers: list[str], start: list[int], end: int) -> None:
        self._answers = [answer.encode() for answer in answers]
        self._opening = list(start)
        self._end = end

    def bind(self, vocabulary: StageVocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = {vocabulary.piece(token): token for token in range(3, vocabulary.size)}

    def apply(self, candidates: Candidates) -> None:
        tokens, width = list(candidates.context.tokens), len(self._opening)
        starts = [i + width for i in range(len(tokens)) if tokens[i : i + width] == self._opening]
        written = b"".join(map(self._vocabulary.piece, tokens[starts[-1] :]))
        answer = self._answers[len(starts) - 1] if len(starts) <= len(self._answers) else b""
        rest = answer[len(written) :] if answer.startswith(written) else b""
        wanted = next((self._ids[rest[:n]] for n in range(8, 0, -1) if rest[:n] in self._ids), self._end)
        found = np.flatnonzero(candidates.ids == wanted)
        candidates.choose(int(found[0]) if len(found) else int(candidates.logits.argmax()))


@edgellm.tool(permission="auto")
def paint(colour: Literal["red", "green"], coats: Literal[1, 2] = 1) -> str:
    """Paints the wall.

    Args:
        colour: Which.
        coats: How many.
    """
    return f"{colour} x{coats}"


@pytest.fixture(scope="module", params=ARCHS)
def any_runtime(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model(request.param, n_ctx=1024), n_ctx=1024, n_seq_max=4, threads=1) as runtime:
        yield runtime


def dictated(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    opening = runtime.tokenize("<|im_start|>assistant\n", parse_special=True)
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    options.setdefault("template", TEMPLATE)
    return runtime.chat(sampler=[Dictated(list(answers), opening, end)], **options)


def drawing(runtime: edgellm.Runtime, **options: Any) -> edgellm.Chat:
    return runtime.chat(template="chatml", sampler="top_k(40) | temperature(0.8) | dist", seed=5, **options)


def told(chat: edgellm.Chat) -> list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]]:
    return [
        (m.role, m.content, m.reasoning, [(call.name, call.arguments) for call in m.tool_calls])
        for m in chat.messages
    ]


def finished(events: list[edgellm.Event]) -> edgellm.TurnFinished:
    last = events[-1]
    assert isinstance(last, edgellm.TurnFinished)
    return last


def deltas(events: list[edgellm.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, edgellm.TextDelta))


def steps_of(events: list[edgellm.Event]) -> list[edgellm.Step]:
    return [event.step for event in events if isinstance(event, edgellm.TokenDrawn)]


def assert_sound(chat: edgellm.Chat) -> None:
    session = chat.conversation.session
    assert session.check_memory()
    assert session.kv_length <= len(session.tape)
    assert session.constraint is None


# -- a cut answer goes on ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [
        ["Grüße aus 東京, und 👋."],
        ["<think>Hm, hm.</think>Four."],
        ["Well. " + CALL % ("paint", '{"colour": "green", "coats": 2}'), "The wall is green."],
        [CALL % ("paint", '{"colour": "red"}') + "\n" + CALL % ("paint", '{"colour": "green"}'), "Both."],
        ["a <tool box> and <think but not quite"],
    ],
    ids=["characters", "reasoning", "a call", "two calls", "almost marks"],
)
def test_cut_anywhere_an_answer_comes_to_the_same_end(runtime: edgellm.Runtime, answers: list[str]) -> None:
    with dictated(runtime, *answers, tools=[paint]) as chat:
        list(chat.send("Go on."))
        expected, start = told(chat), chat.conversation.starts[1]
        following = chat.conversation.starts[2] if len(answers) > 1 else len(chat.tape)
        ends = runtime.vocabulary.special_tokens["<|im_end|>"]
        end = chat.tape.index(ends, start, following)
        for position in range(start, end + 1):
            with chat.fork(at=position) as fork:
                assert fork.is_answer_open
                assert fork.tape == chat.tape[:position]
                kept = fork.messages[-1].content
                events = list(fork.send(None))
                assert told(fork) == expected, position
                assert finished(events).finish_reason == "eog"
                assert fork.tape == chat.tape, position
                assert fork.spans == chat.spans, position
                # What was shown when it might still become a mark, or a character, is not taken back.
                last = kept[kept.rfind("<") :] if "<" in kept else ""
                is_shown_wrong = last and expected[-1][1].find(kept) < 0
                if not kept.endswith("\ufffd") and not is_shown_wrong:
                    assert kept + deltas(events) == "".join(m[1] for m in expected if m[0] == "assistant")
                assert_sound(fork)
        assert told(chat) == expected


def test_the_text_of_a_continued_turn_is_the_whole_answer(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One, two, three, four.") as chat:
        first = finished(list(chat.send("Count.", max_tokens=6)))
        assert first.finish_reason == "length" and chat.is_answer_open
        last = finished(list(chat.send(None)))
        assert last.text == "One, two, three, four."
        assert [message.role for message in chat.messages] == ["user", "assistant"]
        assert not chat.is_answer_open


def test_an_answer_that_was_stopped_inside_its_first_call_goes_on(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, CALL % ("paint", '{"colour": "green"}'), "Done.", tools=[paint]) as chat:
        list(chat.send("Paint.", max_tokens=20))
        assert chat.is_answer_open
        events = list(chat.send(None))
        # The reader of this turn has the call from its beginning.
        started = [type(event) for event in events].index(edgellm.ToolCallStarted)
        ready = next(event for event in events if isinstance(event, edgellm.ToolCallReady))
        assert started < events.index(ready) and ready.call.arguments == {"colour": "green"}
        written = "".join(event.fragment for event in events if isinstance(event, edgellm.ToolCallDelta))
        assert "green" in written
        assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_text_that_might_have_become_a_mark_is_not_given_twice(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "a <tool box> b", tools=[paint]) as chat:
        whole = len(runtime.tokenize("a <tool"))
        first = list(chat.send("Go on.", max_tokens=whole))
        second = list(chat.send(None))
        assert deltas(first) == "a <tool" or deltas(first) == "a <too"
        assert deltas(first) + deltas(second) == "a <tool box> b" == finished(second).text


def test_after_a_cut_the_user_may_speak_instead(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One, two, three.", "Fine.") as chat:
        list(chat.send("Count."))
        fork = chat.fork(at=chat.conversation.starts[1] + 3)
        kept = fork.messages[-1].content
        assert fork.ask("Stop.") == "Fine."
        assert [m.content for m in fork.messages] == ["Count.", kept, "Stop.", "Fine."]
        assert kept and kept != "One, two, three."
        fork.close()


def test_an_empty_answer_is_cut_to_and_goes_on(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One.") as chat:
        list(chat.send("Count."))
        with chat.fork(at=chat.conversation.starts[1]) as fork:
            assert fork.messages[-1].content == "" and fork.is_answer_open
            assert finished(list(fork.send(None))).text == "One."


# -- the draws --------------------------------------------------------------------------------------------


def test_a_cut_answer_draws_the_same_tokens_again(any_runtime: edgellm.Runtime) -> None:
    with drawing(any_runtime) as chat:
        list(chat.send("the user and the name", max_tokens=40))
        start = chat.conversation.starts[1]
        for position in (start, start + 7, len(chat.tape) - 1):
            with chat.fork(at=position) as fork:
                # Draws depend on seed, branch and position: under the old branch's number nothing changes.
                fork.conversation.session.branch = chat.conversation.session.branch
                list(fork.send(None, max_tokens=start + 40 - position))
                assert fork.tape == chat.tape
                assert fork.messages[-1].content == chat.messages[-1].content


def test_a_fork_draws_with_numbers_of_its_own(runtime: edgellm.Runtime) -> None:
    with drawing(runtime) as chat:
        list(chat.send("the user", max_tokens=40))
        with chat.fork(at=chat.conversation.starts[1]) as fork:
            list(fork.send(None, max_tokens=40))
            assert fork.tape != chat.tape


def test_a_branch_computes_its_new_token_alone(any_runtime: edgellm.Runtime) -> None:
    with drawing(any_runtime, trace=4) as chat:
        steps = steps_of(list(chat.send("the user and the name", max_tokens=30)))
        step = steps[12]
        assert step.distribution is not None
        other = next(int(token) for token in step.distribution.raw.ids if token != step.token)
        with chat.branch(step.position, other) as branch:
            assert branch.tape == (*chat.tape[: step.position], other)
            usage = finished(list(branch.send(None, max_tokens=5))).usage
            assert branch.tape[step.position] == other
            is_cuttable = any_runtime.model.metadata.get("general.architecture") != "mamba"
            if is_cuttable:
                assert usage.prefill_tokens <= 1
                assert branch.conversation.session.rebuilt_tokens == 0
            else:
                # A recurrent state cannot be cut: from its checkpoint on it is computed again, and said so.
                assert 0 < branch.conversation.session.rebuilt_tokens <= step.position
            assert_sound(branch)
            assert_sound(chat)


def test_a_branch_at_the_end_token_lets_the_answer_go_on(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One.") as chat:
        list(chat.send("Count."))
        comma = runtime.tokenize(",")[0]
        with chat.branch(len(chat.tape) - 1, comma) as branch:
            assert branch.messages[-1].content == "One.,"
            assert branch.is_answer_open
            # The token is one of the answer's: the answer can be cut behind it again.
            with branch.fork(at=len(branch.tape)) as again:
                assert again.tape == branch.tape


def test_a_branch_with_an_end_token_ends_the_answer(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One, two.", "Fine.") as chat:
        list(chat.send("Count."))
        start, end = chat.conversation.starts[1], runtime.vocabulary.special_tokens["<|im_end|>"]
        with chat.branch(start + 3, end) as branch:
            assert not branch.is_answer_open
            assert branch.ask("Well?") == "Fine."
            assert_sound(branch)


# -- calls and formats ------------------------------------------------------------------------------------


def call_position(chat: edgellm.Chat, text: str) -> int:
    """Where on the tape the first token that begins with `text` inside a call stands."""
    kinds = chat.conversation.session.tape.kinds
    pieces = [chat.runtime.vocabulary.piece(token) for token in chat.tape]
    for position in range(len(pieces)):
        rest = b"".join(pieces[position : position + len(text)])
        if kinds[position] == edgellm.SpanKind.TOOL_CALL and rest.startswith(text.encode()):
            return position
    raise AssertionError(text)


def test_a_call_that_is_steered_inside_goes_on_under_its_grammar(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, CALL % ("paint", '{"colour": "red"}'), "Done.", tools=[paint]) as chat:
        list(chat.send("Paint."))
        green = runtime.tokenize("g")[0]
        with chat.branch(call_position(chat, "red"), green) as branch:
            events = list(branch.send(None, max_tokens=200))
            ready = next(event for event in events if isinstance(event, edgellm.ToolCallReady))
            assert ready.call.arguments["colour"] == "green"
            assert any(isinstance(event, edgellm.ToolFinished) for event in events)
            assert_sound(branch)


def test_a_token_that_the_grammar_refuses_is_not_taken_back_unseen(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, CALL % ("paint", '{"colour": "red"}'), "Done.", tools=[paint]) as chat:
        list(chat.send("Paint."))
        wrong = runtime.tokenize("z")[0]
        with chat.branch(call_position(chat, "red"), wrong) as branch:
            events = list(branch.send(None, max_tokens=200))
            # It stays until the whole call is seen to be broken; what becomes of that is said.
            said = (edgellm.CallRepaired, edgellm.ToolCallBroken, edgellm.Notice, edgellm.ToolFinished)
            assert any(isinstance(event, said) for event in events)
            assert_sound(branch)


def test_a_formatted_answer_goes_on_in_its_format(runtime: edgellm.Runtime) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"enum": ["red", "green"]}},
        "required": ["a"],
    }
    schema["additionalProperties"] = False
    with dictated(runtime, '{"a": "green"}') as chat:
        list(chat.send("As JSON.", response_format=schema))
        start = chat.conversation.starts[1]
        with chat.fork(at=start + 7) as fork:
            last = finished(list(fork.send(None, response_format=schema)))
            assert last.value == {"a": "green"} and last.text == '{"a": "green"}'
        with chat.branch(start + 1, runtime.tokenize("z")[0]) as wrong:
            tape = wrong.tape
            with pytest.raises(edgellm.ConfigError, match="does not fit the format"):
                list(wrong.send(None, response_format=schema))
            assert wrong.tape == tape and wrong.is_answer_open
            assert_sound(wrong)


def test_reasoning_that_goes_on_has_what_is_left_of_its_budget(runtime: edgellm.Runtime) -> None:
    thought = "<think>" + "hm " * 40 + "</think>Four."
    limits = edgellm.AgentLimits(reasoning_budget=20)
    with dictated(runtime, thought, limits=limits) as chat:
        list(chat.send("What?", max_tokens=19))
        events = list(chat.send(None, max_tokens=120))
        drawn = chat.messages[-1].reasoning.partition("I have thought long enough")
        assert drawn[1]
        assert len(runtime.tokenize(drawn[0].strip())) <= 22
        assert finished(events).text == chat.messages[-1].content


# -- explain ----------------------------------------------------------------------------------------------


def test_explaining_gives_the_distribution_that_was_traced(any_runtime: edgellm.Runtime) -> None:
    with drawing(any_runtime, trace=6) as chat:
        steps = steps_of(list(chat.send("the user and the name", max_tokens=24)))
        tape = chat.tape
        for step in steps[::5]:
            again = chat.explain(step.position, rows=6)
            assert (again.token, again.position) == (step.token, step.position)
            seen, asked = step.distribution, again.distribution
            assert seen is not None and asked is not None
            assert asked.u == seen.u
            assert [rows.stage for rows in asked.stages] == [rows.stage for rows in seen.stages]
            for one, other in zip((seen.raw, *seen.stages), (asked.raw, *asked.stages), strict=True):
                assert one.ids.tolist() == other.ids.tolist()
                np.testing.assert_allclose(one.probs, other.probs, rtol=1e-4, atol=1e-6)
                assert one.n_left == other.n_left
            assert again.logprob == pytest.approx(step.logprob, abs=1e-4)
        assert chat.tape == tape
        assert_sound(chat)


def test_explaining_with_another_chain_uses_the_same_random_number(runtime: edgellm.Runtime) -> None:
    with drawing(runtime, trace=6) as chat:
        step = steps_of(list(chat.send("the user", max_tokens=12)))[8]
        assert step.distribution is not None
        greedy = chat.explain(step.position, sampler="greedy")
        assert greedy.token == int(step.distribution.raw.ids[0])
        wide = chat.explain(step.position, sampler="temperature(0.8) | dist")
        assert wide.distribution is not None and wide.distribution.u == step.distribution.u
        ahead = chat.explain(len(chat.tape))
        assert ahead.position == len(chat.tape) and ahead.distribution is not None


def test_looking_changes_no_later_draw(tiny_model: Callable[..., Path]) -> None:
    texts: list[str] = []
    for looks in (False, True):
        with edgellm.load(tiny_model("llama", n_ctx=1024), n_ctx=1024, threads=1) as runtime:
            chat = drawing(runtime)
            list(chat.send("the user", max_tokens=12))
            if looks:
                chat.explain(chat.conversation.starts[1] + 2)
                chat.explain(chat.conversation.starts[1] + 4, sampler="greedy")
            fork = chat.fork()
            texts.append(fork.ask("and", max_tokens=12) + chat.ask("and", max_tokens=12))
    assert texts[0] == texts[1]


# -- what is refused, and what is kept --------------------------------------------------------------------


def test_places_outside_answers_are_refused(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, CALL % ("paint", '{"colour": "red"}'), "Done.", tools=[paint]) as chat:
        list(chat.send("Paint."))
        starts, length = chat.conversation.starts, len(chat.tape)
        open_chats = len(runtime._chats)  # pyright: ignore[reportPrivateUsage]
        for position in (-1, 0, 3, starts[1] - 1, starts[2], starts[2] + 2, length, length + 5):
            with pytest.raises(edgellm.ConfigError, match="is in no answer"):
                chat.fork(at=position)
        for token in (-1, runtime.vocabulary.size):
            with pytest.raises(edgellm.ConfigError, match="not in the vocabulary"):
                chat.branch(starts[1] + 1, token)
        for position in (0, length + 1):
            with pytest.raises(edgellm.ConfigError, match="no position"):
                chat.explain(position)
        with pytest.raises(edgellm.SamplerError):
            chat.explain(starts[1], sampler="topk(3)")
        assert len(runtime._chats) == open_chats  # pyright: ignore[reportPrivateUsage]
        assert len(chat.tape) == length


def test_an_open_turn_is_neither_cut_nor_explained(runtime: edgellm.Runtime) -> None:
    with dictated(runtime, "One, two, three.") as chat:
        turn = chat.send("Count.")
        next(event for event in turn if isinstance(event, edgellm.TextDelta))
        position = chat.conversation.starts[-1] + 1
        for act in (
            lambda: chat.fork(at=position),
            lambda: chat.branch(position, 5),
            lambda: chat.explain(3),
        ):
            with pytest.raises(edgellm.ConfigError, match="open"):
                act()
        turn.close()
        assert chat.is_answer_open


def test_an_open_answer_survives_saving(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    with dictated(runtime, "One, two, three.") as chat:
        list(chat.send("Count."))
        with chat.fork(at=chat.conversation.starts[1] + 4) as fork:
            kept = fork.messages
            fork.save(tmp_path / "open.chat")
    opening = runtime.tokenize("<|im_start|>assistant\n", parse_special=True)
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    chain = [Dictated(["One, two, three."], opening, end)]
    with runtime.open_chat(tmp_path / "open.chat", sampler=chain, template=TEMPLATE) as again:
        assert again.messages == kept and again.is_answer_open
        last = finished(list(again.send(None)))
        assert last.text == "One, two, three."
        assert last.usage.prefill_tokens <= 1 and last.usage.rebuilt_tokens == 0
        assert [message.content for message in again.messages] == ["Count.", "One, two, three."]


def test_a_branch_of_a_branch_keeps_its_origins_apart(runtime: edgellm.Runtime) -> None:
    with drawing(runtime, trace=3) as chat:
        list(chat.send("the user", max_tokens=20))
        tape, start = chat.tape, chat.conversation.starts[1]
        first = chat.branch(start + 5, 40)
        list(first.send(None, max_tokens=8))
        kept = first.tape
        second = first.branch(start + 7, 41)
        list(second.send(None, max_tokens=8))
        assert chat.tape == tape and first.tape == kept
        assert second.tape[: start + 8] == (*kept[: start + 7], 41)
        for each in (first, second, chat):
            assert_sound(each)
        first.close()
        second.close()


async def _answer(chat: edgellm.Chat) -> str:
    text = ""
    async for event in chat.asend(None, max_tokens=12):
        if isinstance(event, edgellm.TurnFinished):
            text = event.text
    return text


def test_branches_that_go_on_together_write_what_each_would_alone(tiny_model: Callable[..., Path]) -> None:
    import asyncio

    with edgellm.load(tiny_model("llama", n_ctx=1024), n_ctx=1024, n_seq_max=6, threads=1) as runtime:
        chat = drawing(runtime)
        list(chat.send("the user and the name", max_tokens=20))
        position = chat.conversation.starts[1] + 6
        together = [chat.fork(at=position) for _ in range(3)]
        alone = [chat.fork(at=position) for _ in range(3)]
        for one, other in zip(together, alone, strict=True):
            other.conversation.session.branch = one.conversation.session.branch
        expected = [events_of(each.send(None, max_tokens=12))[-1].text for each in alone]

        async def race() -> list[str]:
            return list(await asyncio.gather(*map(_answer, together)))

        assert asyncio.run(race()) == expected
        assert len(set(expected)) == 3
        # Whoever has raced may go on by itself, from this thread again.
        assert events_of(together[0].send(None, max_tokens=2))[-1].text.startswith(expected[0])


@pytest.mark.slow
@pytest.mark.model
def test_branches_of_the_default_model(smollm2_path: Path) -> None:
    with edgellm.load(smollm2_path, n_ctx=1024, threads=2) as runtime:
        chat = runtime.chat(trace=20, seed=3)
        steps = steps_of(list(chat.send("Name a colour and say why.", max_tokens=24)))
        step = steps[5]
        assert step.distribution is not None
        again = chat.explain(step.position)
        assert again.distribution is not None and again.token == step.token
        assert again.distribution.raw.ids.tolist() == step.distribution.raw.ids.tolist()
        other = next(int(token) for token in step.distribution.raw.ids if token != step.token)
        branch = chat.branch(step.position, other)
        last = finished(list(branch.send(None, max_tokens=12)))
        assert last.usage.prefill_tokens <= 1 and last.usage.rebuilt_tokens == 0
        assert last.text == branch.messages[-1].content
        kept = runtime.vocabulary.text_of(branch.tape[branch.conversation.starts[1] : step.position + 1])
        assert last.text.lstrip().startswith(kept.decode().lstrip())
        same = chat.fork(at=step.position)
        same.conversation.session.branch = chat.conversation.session.branch
        list(same.send(None, max_tokens=24 - 5))
        assert same.tape == chat.tape
