"""The governor: as many threads as leave the neighbours their cores, by what the system measures just now.

llama.cpp's threads meet after each node of the graph. A thread that has to wait for a core which somebody else uses
holds up all others: one thread fewer is faster than one too many. Where the user says how many threads there are, so
many there are; else the governor follows the load.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgellm.machine import (
    IDLE_CORES,
    CpuTimes,
    cpu_pressure,
    cpu_times,
    is_throttled,
    load_average,
    others_running,
    temperature_c,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOOK_S = 0.5  # how often the system is asked within a turn
_SHORTEST_S = 0.1  # what is measured over less is noise: the system counts in hundredths of a second
_STALE_S = (
    1.0  # what was measured over more tells of the past: before threads are given up for it, one looks again
)
_GLANCES, _GLANCE_S = 3, 0.001  # at who is running just now, in a row: nobody in all of them, and it is quiet
_HEAT_LOOK_S = 5.0
_CALM_LOOKS = 4  # threads come back when so many looks in a row found room for them
_RECENT = 16  # steps over which latency is judged
_CONTENDED = 1.5  # within a turn threads change only where tokens take so many times what they took at best


class Threads(Protocol):
    """What the governor moves: a context's thread counts."""

    n_threads: int

    def set_threads(self, count: int) -> None:
        """Decode and prefill with so many threads from the next decode on."""
        ...


@dataclass(frozen=True, slots=True)
class Meters:
    """How it goes: for a status line, and for whoever asks why it is slow.

    `threads` of at most `max_threads` are in use. `others_cores` are cores that other programs use, `pressure` the
    share of time in which something waited for a core (percent; None where the system does not say), `load` the
    one-minute average. `decode_tok_s`, `prefill_tok_s`: of late; 0 where nothing was computed. `resident_bytes` is this
    process's memory, mapped weights included; `room_bytes` what it can still take, None where the system does not say.
    """

    threads: int
    max_threads: int
    others_cores: float
    load: float
    pressure: float | None
    temperature_c: float | None
    is_throttled: bool
    decode_tok_s: float
    prefill_tok_s: float
    resident_bytes: int = 0
    room_bytes: int | None = None


class Governor:
    """Watches decodes and the system, and sets the threads of one context. Owned by the thread that decodes."""

    def __init__(
        self,
        target: Threads,
        *,
        is_active: bool,
        cores: int,
        clock: Callable[[], float] = time.perf_counter,
        times: Callable[[], CpuTimes | None] = cpu_times,
        running: Callable[[], int | None] = others_running,
        throttled: Callable[[], bool] = is_throttled,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.target = target
        self.limit = target.n_threads
        self.cores = cores
        self.is_active = is_active and self.limit > 1 and os.environ.get("EDGELLM_GOVERNOR", "") != "off"
        self.others_cores = 0.0
        self.is_throttled = False
        self._clock, self._times, self._running = clock, times, running
        self._throttled, self._pause = throttled, pause
        self._steps: deque[list[float]] = deque(maxlen=_RECENT)  # rows, seconds, tokens drawn
        self._prefill: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._best_s: dict[float, float] = {}  # by rows: a batch of many takes longer than one of few
        self._looked_at, self._looked = clock(), times()
        self._heat_at = self._looked_at
        self._calm = 0
        self._has_moved = False
        self._messages: deque[str] = deque()

    # -- what the engine tells ---------------------------------------------------------------------------

    def decoded(self, seconds: float, rows: int = 1, tokens: int = 1) -> None:
        """One step of answers was computed, a batch of `rows`, and so many chats have their next token by it.

        `tokens` 0: what was computed was given, such as a call that is forced. That is prefill, in a turn.
        """
        self._steps.append([rows, seconds, tokens])
        if not tokens:
            self._prefill.append((rows, seconds))
        if self.is_active and self._clock() - self._looked_at > _LOOK_S:
            self._within_turn()

    def guess_held(self) -> None:
        """A guess that the last step took along was drawn: one more token of that step."""
        if self._steps and self._steps[-1][2]:
            self._steps[-1][2] += 1

    def prefilled(self, rows: int, seconds: float) -> None:
        """A batch was computed."""
        self._prefill.append((rows, seconds))

    def begin_turn(self) -> None:
        """A turn begins: threads may change, since nothing of its text is there yet."""
        if not self.is_active:
            return
        self._has_moved = False
        is_stale = self._clock() - self._looked_at > _STALE_S
        if self._look():
            if is_stale and self.wanted() < self.limit:
                # Somebody was busy since the last turn. Whether that is over is often seen at a glance; else it is
                # worth a tenth of a second.
                if self._is_quiet():
                    self.others_cores = 0.0
                else:
                    self._pause(1.2 * _SHORTEST_S)
                    self._look()
            wanted = self.wanted()
            # Nobody is in the middle of anything: what the quiet time before has shown counts at once.
            if wanted != self.target.n_threads:
                self._move(wanted)

    # -- deciding ------------------------------------------------------------------------------------------

    def wanted(self) -> int:
        """Threads for which there are cores, by the last look."""
        free = self.cores - max(0.0, self.others_cores - IDLE_CORES)
        count = max(1, min(self.limit, round(free)))
        if self.is_throttled and self.limit > 2:
            count = min(count, self.limit - 1)
        return count

    def _look(self) -> bool:
        """Measures what others use since the last look; false where too little time has gone by."""
        now = self._clock()
        if now - self._looked_at < _SHORTEST_S:
            return False
        before, self._looked = self._looked, self._times()
        elapsed, self._looked_at = now - self._looked_at, now
        if before is None or self._looked is None:
            return False
        own = self._looked.own_s - before.own_s
        self.others_cores = max(0.0, (self._looked.busy_s - before.busy_s - own) / elapsed)
        if now - self._heat_at > _HEAT_LOOK_S:
            self._heat_at = now
            was, self.is_throttled = self.is_throttled, self._throttled()
            if self.is_throttled and not was:
                self._messages.append(
                    "The processor is held down by heat or want of power: tokens take longer."
                )
        return True

    def _is_quiet(self) -> bool:
        for _ in range(_GLANCES):
            if self._running() != 0:
                return False
            self._pause(_GLANCE_S)
        return True

    def _within_turn(self) -> None:
        """Under way the text depends on the number of threads in its last bits: only real contention changes it."""
        if not self._look():
            return
        wanted, current = self.wanted(), self.target.n_threads
        if wanted >= current:
            for rows in {rows for rows, _, _ in self._steps}:
                recent = statistics.median(taken for count, taken, _ in self._steps if count == rows)
                self._best_s[rows] = min(self._best_s.get(rows, recent), recent)
        if wanted < current and self._is_contended():
            self._move(wanted)
        elif wanted > current and self._has_moved:
            self._calm += 1
            if self._calm >= _CALM_LOOKS:
                self._move(wanted)
            return
        self._calm = 0

    def _is_contended(self) -> bool:
        """Steps take much longer than those of as many rows did at best, or nobody knows what they took at best."""
        slower = [taken / self._best_s[rows] for rows, taken, _ in self._steps if rows in self._best_s]
        return not slower or statistics.median(slower) > _CONTENDED

    def _move(self, count: int) -> None:
        before = self.target.n_threads
        self.target.set_threads(count)
        self._steps.clear()
        self._calm, self._has_moved = 0, True
        why = f"other programs use {self.others_cores:.1f} of {self.cores} cores"
        if count < before and self.is_throttled and self.others_cores < IDLE_CORES:
            why = "the processor is held down by heat"
        self._messages.append(f"{count} of {self.limit} threads from here on: {why}.")

    # -- what others may ask ---------------------------------------------------------------------------------

    def take_messages(self) -> Iterator[str]:
        """What has changed since somebody asked last."""
        while self._messages:
            yield self._messages.popleft()

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second of the last steps, those of all chats and of guesses that held together."""
        steps = [(taken, tokens) for _, taken, tokens in list(self._steps) if tokens]
        seconds = sum(taken for taken, _ in steps)
        return sum(tokens for _, tokens in steps) / seconds if seconds else 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Tokens a second of the last batches."""
        batches = list(self._prefill)
        seconds = sum(taken for _, taken in batches)
        return sum(rows for rows, _ in batches) / seconds if seconds else 0.0

    def meters(self) -> Meters:
        """How it goes; safe from any thread."""
        return Meters(
            threads=self.target.n_threads,
            max_threads=self.limit,
            others_cores=round(self.others_cores, 2),
            load=load_average(),
            pressure=cpu_pressure(),
            temperature_c=temperature_c(),
            is_throttled=self.is_throttled,
            decode_tok_s=self.decode_tok_s,
            prefill_tok_s=self.prefill_tok_s,
        )
