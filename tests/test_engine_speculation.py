"""Guessing ahead changes when tokens are computed, and nothing else."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scale import SCALE
from test_engine_session import OPERATIONS, OPTIONS, _run  # pyright: ignore[reportPrivateUsage]

import edgellm
from edgellm.engine.draft_model import DraftModel
from edgellm.engine.drafter import Drafter
from edgellm.engine.engine import Engine
from edgellm.engine.ngram import NgramIndex
from edgellm.engine.session import Session
from edgellm.engine.speculation import READ_AT_ONCE, READ_TOKENS, SpeculateMode, Speculation
from edgellm.engine.surgery import excise
from edgellm.engine.tape import Tape
from edgellm.errors import ConfigError
from edgellm.native.model import Model
from edgellm.native.overlay import Overlay
from edgellm.sampling.chain import Chain
from edgellm.scripted import Scripted
from edgellm.types import LoadOptions, SpanKind

PROMPT = "the rain is in the rain is in the rain is in the"
SAMPLED = "top_k(12) | temperature(0.8) | dist(seed=3)"


class Oracle(Drafter):
    """Guesses from a text it was given: right where that says so."""

    def __init__(self, tokens: Sequence[int], start: int, *, wrong_every: int = 0) -> None:
        self.tokens = list(tokens)
        self.start = start
        self.wrong_every = wrong_every

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        at = len(tape) - self.start
        found = self.tokens[at : at + count]
        if self.wrong_every:
            found = [
                token if (at + i + 1) % self.wrong_every else (token + 1) % 250
                for i, token in enumerate(found)
            ]
        return found, 1


@pytest.fixture
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), n_ctx=512, threads=1) as opened:
        yield opened


def _session(runtime: edgellm.Runtime, sampler: str, speculation: Speculation | None = None) -> Session:
    session = runtime.engine.session(runtime.make_chain(sampler, 3))
    session.branch = 7
    session.speculation = speculation
    session.extend([(token, SpanKind.PROMPT) for token in runtime.tokenize(PROMPT)])
    return session


def _steps(session: Session, count: int) -> list[int]:
    return [session.step().token for _ in range(count)]


def test_the_longest_and_then_the_most_recent_run_is_followed() -> None:
    assert NgramIndex().guess([1, 2, 3], 2) == ([], 0)
    assert NgramIndex().guess([1, 2, 3, 4, 1, 2], 2) == ([3, 4], 2)
    assert NgramIndex().guess([1, 2, 3, 4, 1, 2, 9, 1, 2], 1) == ([9], 2)  # the most recent
    index = NgramIndex()
    assert index.guess([5, 1, 2, 3, 4, 1, 2, 9, 5, 1, 2], 1) == ([3], 3)  # the longest
    index.add_text([40, 41, 42, 43, 44])
    assert index.guess([7, 40, 41, 42], 9) == ([43, 44], 3)
    # A tape that was cut and has grown differently: what is not true any more is not followed.
    index = NgramIndex()
    index.guess([1, 2, 3, 4, 1, 2], 1)
    assert index.guess([1, 2, 7, 8, 1, 2], 2)[0] in ([], [7, 8])


@settings(max_examples=100 * SCALE, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(["cut", "remove", "none"]),
            st.integers(0, 60),
            st.integers(0, 20),
            st.lists(st.integers(0, 3), max_size=20),
        ),
        max_size=8,
    )
)
def test_a_changed_tape_is_guessed_from_as_well_as_by_an_index_that_reads_it_anew(
    edits: list[tuple[str, int, int, list[int]]],
) -> None:
    tape, index = Tape(), NgramIndex()
    for action, start, count, added in edits:
        if action == "cut":
            tape.cut(min(start, len(tape)))
        elif action == "remove":
            tape.remove(min(start, len(tape)), min(start + count, len(tape)))
        for token in added:
            tape.append(token, SpanKind.TEXT)
        start = tape.take_change()
        if start is not None:
            index.changed(start)
        assert index.guess(tape.tokens, 4) == NgramIndex().guess(tape.tokens, 4)


def test_guesses_are_found_again_after_a_rewind_and_an_eviction(runtime: edgellm.Runtime) -> None:
    def found(session: Session, place: int) -> list[int]:
        """What is guessed to follow, if the two tokens that stand at `place` came once more."""
        _steps(session, 2)
        assert session.speculation is not None
        tokens = session.tape.tokens
        return copy.deepcopy(session.speculation.index).guess([*tokens, *tokens[place : place + 2]], 4)[0]

    session = _session(runtime, "greedy", Speculation("ngram"))
    _steps(session, 12)
    session.rewind(start := 20)
    session.extend([(token, SpanKind.TEXT) for token in range(100, 140)])
    assert found(session, start + 4) == [106, 107, 108, 109]
    session.settle()
    excise(session, 2, start + 3)
    assert found(session, 10) == [113, 114, 115, 116]


@pytest.mark.parametrize("sampler", ["greedy", SAMPLED])
@pytest.mark.parametrize("wrong_every", [0, 3, 1])
def test_the_tokens_are_those_without_guesses(
    runtime: edgellm.Runtime, sampler: str, wrong_every: int
) -> None:
    plain = _session(runtime, sampler)
    expected = _steps(plain, 40)
    start = len(plain.tape) - 40
    plain.close()
    guessing = Speculation("ngram", Oracle(expected, start, wrong_every=wrong_every))
    session = _session(runtime, sampler, guessing)
    assert _steps(session, 40) == expected
    assert guessing.guessed_tokens > 0
    assert guessing.free_tokens == (
        0 if wrong_every == 1 else pytest.approx(32 if not wrong_every else 27, abs=4)
    )
    session.settle()
    session.own_seq()
    assert session.check_memory()
    assert np.allclose(session.logits(), _logits_anew(runtime, session.tape.tokens), atol=0.05)


def _logits_anew(runtime: edgellm.Runtime, tokens: Sequence[int]) -> np.ndarray:
    fresh = runtime.engine.session(runtime.make_chain("greedy"))
    fresh.extend([(token, SpanKind.PROMPT) for token in tokens])
    found = fresh.logits().copy()
    fresh.close()
    return found


def test_distributions_come_with_guessed_tokens_too(runtime: edgellm.Runtime) -> None:
    plain = _session(runtime, SAMPLED)
    plain.trace = 5
    expected = [plain.step() for _ in range(12)]
    session = _session(
        runtime, SAMPLED, Speculation("ngram", Oracle([s.token for s in expected], expected[0].position))
    )
    session.trace = 5
    for one in expected:
        other = session.step()
        assert (other.token, other.position) == (one.token, one.position)
        assert one.distribution is not None and other.distribution is not None
        assert other.distribution.raw.ids[0] == one.distribution.raw.ids[0]
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_rewind_fork_save_and_more_text_meet_no_guess(runtime: edgellm.Runtime) -> None:
    plain = _session(runtime, SAMPLED)
    expected = _steps(plain, 30)
    start = len(plain.tape) - 30

    def fresh():
        return _session(runtime, SAMPLED, Speculation("ngram", Oracle(expected, start)))

    session = fresh()
    assert _steps(session, 7) == expected[:7]  # in the middle of a guess
    session.rewind(start + 3)
    assert _steps(session, 10) == expected[3:13]
    fork = session.fork()
    assert fork.tape.tokens == session.tape.tokens
    fork.own_seq()
    assert fork.check_memory()
    assert np.allclose(fork.logits(), _logits_anew(runtime, fork.tape.tokens), atol=0.05)
    fork.close()
    assert session.memory.state()  # what a saved chat holds
    assert session.check_memory()
    assert _steps(session, 2) == expected[13:15]
    more = [(token, SpanKind.USER) for token in runtime.tokenize(" and the call")]
    session.extend(more)
    assert np.allclose(session.logits(), _logits_anew(runtime, session.tape.tokens), atol=0.05)
    session.close()


def test_other_sessions_and_parking_meet_no_guess(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=256, n_seq_max=1, threads=1) as runtime:
        plain = _session(runtime, SAMPLED)
        expected = _steps(plain, 20)
        start = len(plain.tape) - 20
        plain.close()
        first = _session(runtime, SAMPLED, Speculation("ngram", Oracle(expected, start)))
        got = _steps(first, 7)
        second = _session(runtime, SAMPLED)  # takes the only sequence: the first is parked
        assert _steps(second, 5) == expected[:5]
        assert got + _steps(first, 13) == expected


def test_a_stage_that_takes_tokens_back_works_across_guesses(runtime: edgellm.Runtime) -> None:
    sampler = 'antislop(phrases=[" the"]) | top_k(12) | temperature(0.8) | dist(seed=3)'
    plain = _session(runtime, sampler)
    expected = _steps(plain, 24)
    start = len(plain.tape.tokens) - 24 - plain.drawing.unread
    session = _session(runtime, sampler, Speculation("ngram", Oracle(expected, start)))
    assert _steps(session, 24) == expected


class _Guessing(Engine):
    """Every session guesses: some by the tape, some at random."""

    def session(self, chain: Chain, overlay: Overlay | None = None) -> Session:
        session = super().session(chain, overlay)
        session.speculation = Speculation("ngram", _Random() if session.branch % 2 else None)
        return session


class _Random(Drafter):
    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        return [3 + (7919 * len(tape) + i) % 200 for i in range(min(count, 3))], 1


@settings(max_examples=25 * SCALE, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_the_laws_of_sessions_hold_with_guesses(
    tiny_model: Callable[..., Path], tmp_path: Path, operations: list[tuple[str, object]]
) -> None:
    model = Model.load(tiny_model("llama"), OPTIONS)
    engine = _Guessing(model, OPTIONS)
    try:
        _run(engine, tmp_path, operations)
    finally:
        engine.close()
        model.close()


def test_memory_that_cannot_be_cut_is_not_guessed_into(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("mamba"), n_ctx=256) as runtime:
        session = _session(runtime, "greedy", Speculation("ngram"))
        _steps(session, 30)
        assert session.speculation is not None
        assert session.speculation.guessed_tokens == 0
        assert session.rebuilt_tokens == 0


def test_the_end_of_the_context_is_met_as_without(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=256, threads=1) as runtime:
        session = _session(runtime, "greedy", Speculation("ngram"))
        with pytest.raises(edgellm.ContextFull):
            _steps(session, 300)
        assert len(session.tape) == 256


def test_an_account_keeps_guesses_from_costing_more_than_a_fiftieth(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: guesses that never hold, and cost as much as three tokens each."""
    now = [0.0]
    monkeypatch.setattr("edgellm.engine.speculation.time.perf_counter", lambda: now[0])

    def run(hold: int, per_guess: float, tokens: int = 3000) -> tuple[float, int]:
        now[0] = 0.0
        guessing = Speculation("auto", Oracle(list(range(100_000)), 0))
        made = 0
        while made < tokens:
            found = guessing.guess(list(range(made)), 1000)
            guessing.begin(len(found))
            now[0] += 1.0 + per_guess * len(found)
            guessing.end()
            made += 1
            for _ in found[:hold]:
                guessing.held()
                made += 1
        return now[0] / made, guessing.guessed_tokens

    for per_guess in (0.1, 0.5, 1.0, 3.0):
        seconds, _ = run(0, per_guess)
        assert seconds <= 1.02
    seconds, guessed = run(8, 0.2)
    assert guessed > 1000
    assert seconds < 0.5
    seconds, _ = run(1, 0.9)  # two tokens for the price of more than two: not worth it
    assert seconds <= 1.02


def test_branches_go_on_with_what_was_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("edgellm.engine.speculation.time.perf_counter", lambda: clock[0])
    guessing = Speculation("auto", Oracle([5] * 1000, 0))
    found: list[int] = []
    for made in range(400):
        guessing = guessing if made % 40 else guessing.fork()
        found = found or guessing.guess([5] * made, 8)
        guessing.begin(0)
        clock[0] += 1.0
        guessing.end()
    assert found


class Costly(Oracle):
    """Takes time by a clock: for each token of the tape that it reads, and for each guess after the first."""

    def __init__(self, clock: list[float], *, reading: float, guessing: float, believed: float) -> None:
        super().__init__(list(range(100_000)), 0)
        self.clock, self.reading, self.guessing, self.believed = clock, reading, guessing, believed
        self.known = 0

    @property
    def cost(self) -> float:
        return self.believed

    def unread(self, tape: Sequence[int]) -> int:
        return len(tape) - min(self.known, len(tape) - 1)

    def read(self, tape: Sequence[int], most: int, window: int = 0) -> bool:
        if window and self.unread(tape) > window:
            self.known = len(tape) - window
        count = min(most, self.unread(tape))
        # A batch costs at least what a token does.
        self.clock[0] += max(self.guessing * (count > 0), self.reading * count)
        self.known = min(self.known, len(tape) - 1) + count
        return self.known == len(tape)

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        self.clock[0] += self.guessing * (count - 1)
        self.known = len(tape) + count - 1
        return super().guess(tape, count)


@pytest.mark.parametrize("hold", [0, 1, 8])
@pytest.mark.parametrize("per_row", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("reading", "guessing"), [(0.3, 1.0), (0.6, 0.6), (0.05, 0.1), (0.002, 0.02)])
def test_a_draft_model_never_costs_more_than_a_fiftieth_and_is_used_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, hold: int, per_row: float, reading: float, guessing: float
) -> None:
    clock = [0.0]
    monkeypatch.setattr("edgellm.engine.speculation.time.perf_counter", lambda: clock[0])
    guesser = Costly(clock, reading=reading, guessing=guessing, believed=guessing)
    guessing_ahead, prompt, made = Speculation("auto", guesser), 1331, 0
    while made < 3000:
        found = guessing_ahead.guess(range(prompt + made), 1000)
        guessing_ahead.begin(len(found))
        clock[0] += 1.0 + per_row * len(found)
        guessing_ahead.end()
        made += 1
        for _ in found[:hold]:
            guessing_ahead.held()
            made += 1
        assert clock[0] <= 1.02 * made + (
            2 * per_row if per_row > 0.5 else 0
        )  # more than was believed of a batch
    if hold == 8 and per_row == 0.05 and reading <= 0.05:
        assert clock[0] < 0.5 * made
    if guessing == 1.0:
        assert guesser.known == 0  # a draft as large as the model is not asked


def test_a_draft_model_guesses_and_its_vocabulary_is_checked(tiny_model: Callable[..., Path]) -> None:
    draft = tiny_model("llama")
    with edgellm.load(tiny_model("llama"), n_ctx=256, threads=1, draft_model=str(draft)) as runtime:
        plain = _session(runtime, "greedy")
        expected = _steps(plain, 24)
        guessing = runtime.speculation("draft")
        session = _session(runtime, "greedy", guessing)
        assert _steps(session, 24) == expected
        assert session.free_tokens >= 16  # the same weights: all guesses hold
        session.rewind(len(session.tape) - 10)
        assert _steps(session, 10) == expected[14:]
    with pytest.raises(ConfigError, match="another vocabulary"):
        edgellm.load(draft, n_ctx=256, draft_model=str(tiny_model("llama", tokenizer="llama")))


@pytest.fixture
def draft(tiny_model: Callable[..., Path], runtime: edgellm.Runtime) -> Iterator[DraftModel]:
    made = DraftModel(tiny_model("llama"), LoadOptions(n_ctx=512, threads=1), runtime.vocabulary)
    yield made
    made.close()


def test_a_draft_model_reads_in_parts_and_goes_on_where_it_was(draft: DraftModel) -> None:
    tape = [3 + (7919 * i) % 200 for i in range(300)]
    assert draft.unread(tape) == 300
    assert not draft.read(tape, 100) and draft.unread(tape) == 200
    assert not draft.read(tape, 100) and draft.read(tape, 100)
    assert draft.unread(tape) == 0
    first = draft.guess(tape, 4)[0]
    assert len(first) == 4
    assert draft.unread([*tape, *first[:3]]) == 0  # all but the last guess is in its memory
    assert draft.unread([*tape, *first[:2], 250]) == 1
    assert draft.unread(tape[:200]) == 1
    assert draft.guess(tape[:200], 1)[0] and draft.guess(tape, 4)[0] == first
    other = tape[::-1]
    assert draft.unread(other) == 300
    assert draft.read(other, 50, window=50)
    assert draft.unread(other) == 0 and draft.unread([*other, 5]) == 1
    assert draft.guess(other, 3)[0] == draft.guess(other, 3)[0]
    # More than its context holds.
    assert draft.guess(tape * 2, 4) == ([], 0)
    assert draft.read(tape * 2, 50, window=50) and len(draft.guess(tape * 2, 4)[0]) == 4


def test_a_draft_model_that_is_stopped_guesses_nothing_and_then_as_before(draft: DraftModel) -> None:
    tape = list(range(3, 103))
    expected = draft.guess(tape, 4)[0]
    draft.read([9, 9], 2)
    draft.abort()
    assert not draft.read(tape, 100)
    assert draft.guess(tape, 4) == ([], 0)
    draft.listen()
    assert draft.guess(tape, 4)[0] == expected


def test_a_cancel_is_heard_while_a_draft_model_guesses(runtime: edgellm.Runtime) -> None:
    class Slow(Oracle):
        def __init__(self) -> None:
            super().__init__([], 0)
            self.has_begun, self.is_stopped = threading.Event(), threading.Event()

        def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
            self.has_begun.set()
            assert self.is_stopped.wait(10)
            return [], 0

        def abort(self) -> None:
            self.is_stopped.set()

    slow = Slow()
    session = _session(runtime, "greedy", Speculation("draft", slow))
    session.step()
    canceller = threading.Thread(target=lambda: (slow.has_begun.wait(10), session.cancel()))
    canceller.start()
    with pytest.raises(edgellm.Cancelled):
        session.step()
    canceller.join()
    session.speculation = None
    assert session.step().token >= 0


def test_before_one_token_a_draft_model_reads_a_part_of_the_tape(runtime: edgellm.Runtime) -> None:
    guesser = Costly([0.0], reading=1.0, guessing=1.0, believed=0.5)
    guesser.tokens = [5] * 400
    session = runtime.engine.session(runtime.make_chain("greedy"))
    session.speculation = Speculation("draft", guesser)
    session.extend([(3 + (7919 * i) % 200, SpanKind.PROMPT) for i in range(300)])
    read: list[int] = []
    for _ in range(6):
        before = guesser.clock[0]
        session.step()
        read.append(int(guesser.clock[0] - before))
    assert read[:3] == [0, READ_AT_ONCE, READ_AT_ONCE] and 0 < read[3] < READ_AT_ONCE


def test_a_chat_counts_the_tokens_that_came_free(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=512, threads=1) as runtime:
        answers: list[str] = []
        for mode in ("off", "ngram"):
            chat = runtime.chat(
                sampler="greedy",
                speculate=mode,
                speculate_from=answers,  # as if the answer were a quotation
                limits=edgellm.AgentLimits(max_tokens=60),
            )
            list(chat.send("the rain is in the rain is in the"))
            answers.append(chat.messages[-1].content)
            free = chat.usage.free_tokens
            chat.close()
        assert answers[0] == answers[1]
        assert 0 < free < 60
        with pytest.raises(ConfigError, match="speculat"):
            runtime.chat(speculate="always")


@pytest.mark.slow
def test_sampled_tokens_have_the_distribution_they_have_without_guesses(runtime: edgellm.Runtime) -> None:
    """χ² against the softmax over 10,000 draws: of a token before a guess, and of the next where the guess held."""
    session = _session(runtime, "dist(seed=11)")
    length = len(session.tape)
    logits = session.logits().astype(np.float64)
    first = np.exp(logits - logits.max())
    first /= first.sum()
    guess = int(first.argmax())
    session.extend([(guess, SpanKind.TEXT)])
    logits = session.logits().astype(np.float64)
    second = np.exp(logits - logits.max())
    second /= second.sum()

    class Always(Drafter):
        def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
            return ([guess, guess] if len(tape) == length else []), 1

    session.speculation = Speculation("ngram", Always())
    counts, after = np.zeros(len(first)), np.zeros(len(first))
    for branch in range(10_000):
        session.rewind(length)
        session.branch = branch
        token = session.step().token
        counts[token] += 1
        if token == guess:
            after[session.step().token] += 1
    assert session.free_tokens == after.sum() > 200
    for seen, expected in ((counts, first), (after, second)):
        assert _chi_squared_is_ordinary(seen, expected * seen.sum())


def _chi_squared_is_ordinary(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Within four standard deviations of its mean, rare tokens counted together (at least five expected)."""
    order = np.argsort(expected)
    rare = order[: int(np.searchsorted(np.cumsum(expected[order]), 5.0)) + 1]
    common = order[len(rare) :]
    common = common[expected[common] >= 5]
    others = np.setdiff1d(order, common)
    cells = [(seen[index], expected[index]) for index in common] + [
        (seen[others].sum(), expected[others].sum())
    ]
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    degrees = len(cells) - 1
    return abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


def test_what_was_cut_from_a_result_is_guessed_from(runtime: edgellm.Runtime) -> None:
    whole = "the first part, and then what nobody was shown of it, word for word. " * 20

    @edgellm.tool(permission="auto", max_result_tokens=16)
    def read() -> str:
        """Reads."""
        return whole

    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    call = '<tool_call>\n{"name": "read", "arguments": {}}\n</tool_call>'
    free: list[int] = []
    for mode in ("ngram", "off"):
        chat = runtime.chat(
            template="chatml",
            strategy="free",
            tools=[read],
            speculate=mode,
            sampler=[Scripted([call, "what nobody was shown of it, word for word."], end)],
        )
        (last,) = [e for e in chat.send("Read.") if isinstance(e, edgellm.TurnFinished)]
        free.append(last.usage.legs[1].free_tokens)
        if mode == "ngram":
            known = chat.conversation.session.speculation
            assert known is not None
            tail = runtime.tokenize("nobody was shown")
            assert NgramIndex.guess(known.index, [1, 2, *tail], 4)[0]
    assert free[0] > 3 and free[1] == 0


def text_tokens(index: NgramIndex) -> int:
    """How many tokens the texts have that guesses may come from."""
    return sum(map(len, index._texts))  # pyright: ignore[reportPrivateUsage]


def test_texts_that_were_read_are_bounded() -> None:
    speculation = Speculation("ngram")
    speculation.read(list(range(READ_TOKENS - 2)))
    speculation.read([7, 8, 9, 7])
    assert text_tokens(speculation.index) == READ_TOKENS
    speculation.fork().read([1, 2, 3])
    assert text_tokens(speculation.index) == READ_TOKENS


def test_way_of_guessing_is_changed_between_turns(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(template="chatml")
    assert chat.speculation == "off"
    chat.set_speculation("ngram", ["one two three"])
    assert chat.speculation == "ngram"
    with pytest.raises(ConfigError):
        chat.set_speculation("draft")
    assert chat.speculation == "ngram"
    chat.set_speculation("off")
    assert chat.conversation.session.speculation is None


def test_texts_stay_known_when_the_way_of_guessing_is_changed(runtime: edgellm.Runtime) -> None:
    def known(chat: edgellm.Chat) -> int:
        speculation = chat.conversation.session.speculation
        return text_tokens(speculation.index) if speculation is not None else 0

    chat = runtime.chat(template="chatml", speculate_from=["one two three"])
    assert chat.speculation == "auto"
    given = known(chat)
    assert given > 0
    chat.set_speculation("ngram")
    assert known(chat) == given
    speculation = chat.conversation.session.speculation
    assert speculation is not None
    speculation.read([1] * READ_TOKENS)  # a tool's result, as long as they may be
    chat.set_speculation("off")
    chat.set_speculation("off")
    fork = chat.fork()
    fork.set_speculation("auto", ["four"])
    assert known(fork) == given + READ_TOKENS + len(runtime.tokenize("four"))
    speculation = fork.conversation.session.speculation
    assert speculation is not None
    speculation.read([1])
    assert known(fork) == given + READ_TOKENS + len(runtime.tokenize("four"))
    with pytest.raises(ConfigError, match="no effect"):
        chat.set_speculation("off", ["four"])
    with pytest.raises(ConfigError, match="no effect"):
        runtime.chat(template="chatml", speculate="off", speculate_from=["four"])


@pytest.mark.parametrize("mode", ["draft", "auto"])
def test_texts_are_guessed_from_beside_a_draft_model(
    monkeypatch: pytest.MonkeyPatch, mode: SpeculateMode
) -> None:
    clock = [0.0]
    monkeypatch.setattr("edgellm.engine.speculation.time.perf_counter", lambda: clock[0])
    speculation = Speculation(mode, Costly(clock, reading=0.0, guessing=0.0, believed=0.1))
    speculation.index.add_text([7, 8, 9, 10, 11, 12, 13, 14, 15])
    found: list[int] = []
    for length in range(3000, 4000):
        found = speculation.guess([*range(20, length), 7, 8, 9, 10], 100)
        speculation.begin(len(found))
        clock[0] += 1.0
        speculation.end()
        if found[:1] == [11]:
            break
    assert found[:2] == [11, 12]
    if mode == "draft":
        assert speculation.guess(list(range(20, 100)), 100) == [80, 81, 82, 83]


def test_guesses_behind_a_sliding_window_are_no_fault_of_the_memory(tiny_model: Callable[..., Path]) -> None:
    """The window that llama.cpp tells of ends with them: what the tape needs was looked for in front of it."""
    with edgellm.load(tiny_model("gemma3"), n_ctx=512, threads=1) as runtime:
        session = _session(runtime, "greedy")
        told = _steps(session, 12)
        session.rewind(len(session.tape) - 12)
        session.speculation = Speculation("ngram", Oracle(told, len(session.tape), wrong_every=3))
        seen = 0
        for token in told:
            assert session.step().token == token
            seen += session.memory.ahead > 0
            assert session.check_memory()
        assert seen
        session.close()
