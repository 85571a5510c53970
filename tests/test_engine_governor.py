"""The governor: when threads change, when they do not, and what is said of it. Time and load are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgellm
from edgellm.engine.governor import Governor
from edgellm.engine.speculation import Speculation
from edgellm.machine import CpuTimes, others_running
from edgellm.types import SpanKind


class Machine:
    """A clock, and CPU times of a machine on which others use `others` cores and we use `own`."""

    def __init__(self, threads: int = 4) -> None:
        self.n_threads = threads
        self.now = self.busy = self.mine = 0.0
        self.others = self.own = 0.0
        self.is_hot = False
        self.running: int | None = None

    def set_threads(self, count: int) -> None:
        self.n_threads = count

    def times(self) -> CpuTimes:
        return CpuTimes(self.busy, self.mine)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.mine += seconds * self.own
        self.busy += seconds * (self.own + self.others)

    def decodes(
        self, governor: Governor, token_s: float, seconds: float, rows: tuple[int, ...] = (1,)
    ) -> None:
        """Steps of so many rows in turn, each row after the first a tenth more."""
        end = self.now + seconds
        while self.now < end:
            for count in rows:
                taken_s = token_s * (0.9 + 0.1 * count)
                self.passes(taken_s)
                governor.decoded(taken_s, count)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delenv("EDGELLM_GOVERNOR", raising=False)
    return Machine()


def governor_of(machine: Machine, *, is_active: bool = True) -> Governor:
    return Governor(
        machine,
        is_active=is_active,
        cores=4,
        clock=lambda: machine.now,
        times=machine.times,
        running=lambda: machine.running,
        throttled=lambda: machine.is_hot,
        pause=machine.passes,
    )


@pytest.mark.parametrize(("others", "threads"), [(0.0, 4), (0.3, 4), (1.0, 3), (2.1, 2), (4.0, 1), (9.0, 1)])
def test_a_turn_begins_with_the_threads_there_are_cores_for(
    machine: Machine, others: float, threads: int
) -> None:
    governor = governor_of(machine)
    machine.others = others
    machine.passes(2.0)
    governor.begin_turn()
    assert machine.n_threads == threads
    said = list(governor.take_messages())
    assert len(said) == (threads != 4)
    assert all(f"{threads} of 4 threads" in text and f"{others:.1f} of 4 cores" in text for text in said)
    assert list(governor.take_messages()) == []


def test_a_neighbour_that_has_ended_since_takes_no_thread(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.others = 4.0
    machine.passes(60.0)
    machine.others = 0.0
    governor.begin_turn()
    assert machine.n_threads == 4
    assert list(governor.take_messages()) == []


def test_when_nobody_runs_just_now_a_turn_does_not_wait_to_see_it(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.others = 4.0
    machine.passes(60.0)
    machine.running = 0
    governor.begin_turn()
    assert (machine.n_threads, governor.others_cores) == (4, 0.0)
    assert machine.now - 60.0 < 0.01


def test_somebody_who_still_runs_takes_the_cores_that_he_had(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.others = 2.0
    machine.passes(60.0)
    machine.running = 2
    governor.begin_turn()
    assert machine.n_threads == 2


def test_who_is_running_is_read_without_the_one_that_asks(tmp_path: Path) -> None:
    assert others_running(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu 1 2\nprocs_running 3\nprocs_blocked 0\n", encoding="utf-8")
    assert others_running(tmp_path) == 2


def test_cores_that_are_not_ours_to_use_may_be_busy(machine: Machine) -> None:
    # Four threads of a process that may use four of sixteen cores.
    governor = governor_of(machine)
    governor.cores = 16
    machine.others = 9.0
    machine.passes(2.0)
    governor.begin_turn()
    assert machine.n_threads == 4


def test_our_own_work_is_no_neighbour(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.own = 4.0
    machine.passes(2.0)
    governor.begin_turn()
    assert (machine.n_threads, governor.others_cores) == (4, 0.0)


def test_within_a_turn_only_contention_changes_threads(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.own = 3.5
    machine.decodes(governor, 0.05, 2.0)
    # A neighbour comes, and tokens take no longer: the text stays what it would be.
    machine.others = 2.0
    machine.decodes(governor, 0.05, 2.0)
    assert machine.n_threads == 4
    machine.decodes(governor, 0.2, 5.0)
    assert machine.n_threads == 2
    assert len(list(governor.take_messages())) == 1


def test_threads_come_back_when_it_has_been_calm_for_a_while(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.decodes(governor, 0.05, 1.0)
    machine.others = 3.0
    machine.decodes(governor, 0.3, 6.0)
    assert machine.n_threads == 1
    machine.others = 0.0
    machine.decodes(governor, 0.1, 1.0)
    assert machine.n_threads == 1
    machine.decodes(governor, 0.1, 3.0)
    assert machine.n_threads == 4


def test_steps_of_many_rows_are_compared_with_their_like(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.decodes(governor, 0.05, 1.0)
    machine.decodes(governor, 0.05, 2.0, (12,))
    machine.others = 2.0
    # Larger batches take longer: no reason to take threads.
    machine.decodes(governor, 0.05, 2.0, (1, 12))
    machine.decodes(governor, 0.05, 2.0, (12,))
    assert machine.n_threads == 4
    machine.decodes(governor, 0.2, 5.0, (1, 12))
    assert machine.n_threads == 2


def test_given_text_is_prefill_and_guesses_that_held_are_tokens(machine: Machine) -> None:
    governor = governor_of(machine)
    governor.decoded(0.5, 20, 0)
    assert (governor.decode_tok_s, governor.prefill_tok_s) == (0.0, 40.0)
    governor.decoded(0.2, 4, 1)
    governor.guess_held()
    governor.decoded(0.2, 3, 3)
    assert governor.decode_tok_s == pytest.approx(5 / 0.4)
    assert governor.prefill_tok_s == 40.0


def test_threads_the_user_chose_stay(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("auto", "off"):
        monkeypatch.setenv("EDGELLM_GOVERNOR", switch)
        governor = governor_of(machine, is_active=switch == "off")
        machine.others = 4.0
        machine.passes(2.0)
        governor.begin_turn()
        machine.decodes(governor, 1.0, 5.0)
        assert machine.n_threads == 4
        assert governor.decode_tok_s == pytest.approx(1.0)


def test_heat_takes_a_thread_and_is_said(machine: Machine) -> None:
    governor = governor_of(machine)
    machine.is_hot = True
    machine.passes(10.0)
    governor.begin_turn()
    assert machine.n_threads == 3
    assert governor.meters().is_throttled
    assert "heat" in " ".join(governor.take_messages())


def test_what_cannot_be_measured_changes_nothing(machine: Machine) -> None:
    governor = Governor(
        machine,
        is_active=True,
        cores=4,
        clock=lambda: machine.now,
        times=lambda: None,
        throttled=lambda: False,
    )
    machine.passes(10.0)
    governor.begin_turn()
    machine.decodes(governor, 1.0, 10.0)
    assert machine.n_threads == 4


def test_threads_change_live_and_the_turn_says_so(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGELLM_GOVERNOR", raising=False)
    monkeypatch.setattr("edgellm.native.context.usable_cores", lambda: 3)
    monkeypatch.setattr("edgellm.engine.engine.all_cores", lambda: 3)
    with edgellm.load(tiny_model("llama")) as runtime:
        governor = runtime.engine.governor
        assert governor.is_active
        fake = Machine()
        governor._clock, governor._times = lambda: fake.now, fake.times  # type: ignore[method-assign]
        governor._running = lambda: 2  # pyright: ignore[reportPrivateUsage]
        governor._looked_at, governor._looked = 0.0, fake.times()  # pyright: ignore[reportPrivateUsage]
        fake.others = 2.0
        fake.passes(5.0)
        chat = runtime.chat()
        events = list(chat.send("Hi", max_tokens=3))
        said = [event.message for event in events if isinstance(event, edgellm.Notice)]
        assert said == ["1 of 3 threads from here on: other programs use 2.0 of 3 cores."]
        context = runtime.engine.context
        llama, pointer = context._llama, context.pointer  # pyright: ignore[reportPrivateUsage]
        assert (llama.llama_n_threads(pointer), llama.llama_n_threads_batch(pointer)) == (1, 1)
        meters = runtime.meters()
        assert (meters.threads, meters.max_threads, meters.others_cores) == (1, 3, 2.0)
        assert meters.decode_tok_s > 0 and meters.prefill_tok_s > 0
        assert meters.resident_bytes > 0 and meters.room_bytes
    with edgellm.load(tiny_model("llama"), threads=2) as runtime:
        assert not runtime.engine.governor.is_active


def test_every_step_of_an_answer_is_seen(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []

    def decoded(_governor: Governor, _seconds: float, rows: int = 1, tokens: int = 1) -> None:
        seen.append(("decode", rows, tokens))

    def prefilled(_governor: Governor, rows: int, _seconds: float) -> None:
        seen.append(("prefill", rows, 0))

    def guess_held(_governor: Governor) -> None:
        seen.append(("guess", 0, 1))

    for function in (decoded, prefilled, guess_held):
        monkeypatch.setattr(Governor, function.__name__, function)
    with edgellm.load(tiny_model("llama"), threads=1) as runtime:

        def steps() -> list[tuple[str, int, int]]:
            found = [step for step in seen if step[0] != "prefill"]
            seen.clear()
            return found

        list(runtime.complete("abc", max_tokens=6))
        assert steps() == [("decode", 1, 1)] * 5
        # Kept to a form: what it leaves no choice about is given, the rest are tokens.
        shape = {"type": "object", "properties": {"first": {"enum": ["a", "b"]}}, "required": ["first"]}
        list(runtime.complete("abc", max_tokens=40, schema=shape))
        found = steps()
        assert any(rows > 1 and not tokens for _, rows, tokens in found)
        assert all(tokens == (rows == 1) for _, rows, tokens in found)
        engine = runtime.engine
        sessions = [engine.session(runtime.make_chain("dist", 5)) for _ in range(2)]
        for session in sessions:
            session.extend([(token, SpanKind.PROMPT) for token in range(40, 50)])
            session.step()
        steps()
        for session in sessions:
            session.request()
        engine.step()
        assert steps() == [("decode", 2, 2)]
        # Guesses are taken along: one token, and one more for each that held.
        session = engine.session(runtime.make_chain("greedy", 1))
        session.extend([(token, SpanKind.PROMPT) for token in range(40, 50)])
        plain = [session.step().token for _ in range(12)]
        again = engine.session(runtime.make_chain("greedy", 1))
        again.speculation = Speculation("ngram", None)
        again.speculation.index.add_text([*range(45, 50), *plain])
        again.extend([(token, SpanKind.PROMPT) for token in range(40, 50)])
        steps()
        assert [again.step().token for _ in range(12)] == plain
        found = steps()
        assert any(rows > tokens == 1 for _, rows, tokens in found)
        assert sum(tokens for _, _, tokens in found) == 11  # the first comes with the prompt
