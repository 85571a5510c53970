"""The parts of a benchmark: each gives figures with a unit and a better direction."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.benching.energy import EnergyMeter
from edgellm.benching.peer import PeerSpeed, run_peer
from edgellm.errors import ConfigError, ContextFull, TemplateError
from edgellm.events import TextDelta, ToolFinished, TurnFinished
from edgellm.machine import resident_bytes
from edgellm.toolbox.tool import tool
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from edgellm.runtime import Runtime

_PROMPT = "Once upon a time, in a small village at the edge of a large forest, there lived"
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
_SAMPLES = 200
_WARM_DECODE = 4  # tokens decoded before anything is measured
# Beside a peer, whose runs have noise of their own: a decode takes a third of a prefill's time.
_DECODES_A_ROUND = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    is_higher_better: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, of what. `against` has our speed over the peer's, pair by pair: `decode_ratio`,
    `prefill_ratio`. `left_out` has the parts that this model cannot do, and why.
    """

    model: str
    model_bytes: int
    threads: int
    prefill_tokens: int
    decode_tokens: int
    n_ctx: int
    kv_type: str
    rounds: int
    figures: tuple[Figure, ...]
    against: dict[str, Any] = field(default_factory=dict[str, Any])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


@tool
def room_temperature(room: str) -> str:
    """Temperature of a room, in degrees Celsius.

    Args:
        room: Name of the room, such as "kitchen".
    """
    return f"{room}: 21.5"


@dataclass(frozen=True, slots=True)
class BenchSize:
    """How much is measured: tokens of prefill and decode in a round, and rounds."""

    prefill: int = 512
    decode: int = 128
    rounds: int = 8

    @property
    def n_ctx(self) -> int:
        """The smallest context that holds a round: a token to begin with, one drawn unmeasured, those measured."""
        return max(self.prefill, max(self.decode, _WARM_DECODE) + 2)


def run_bench(
    load: Callable[[], Runtime],
    size: BenchSize,
    *,
    peer: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Bench:
    """Measures everything on the model that `load` loads: once, and beside a peer anew for each pair. What needs a chat
    template, or a larger context, is left out where there is none, and said. Raises what the parts raise, and
    ConfigError where a later load chooses other settings than the first.
    """
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    meter = EnergyMeter()
    joules: list[float] = []

    def decode(runtime: Runtime) -> float:
        meter.start()
        speed = _decode_tok_s(runtime, size.decode)
        joules.append(meter.stop() / size.decode)
        return speed

    say("prefill and decode ...")
    prefills = decodes = None
    if peer is not None:
        with _quiet(load) as runtime:
            settings = _settings(runtime)
            theirs = partial(run_peer, peer, runtime.model.path, **settings)
        fresh = partial(_fresh, load, size, settings)
        prefills = _pairs(
            partial(fresh, partial(_prefill_cold, count=size.prefill)),
            partial(theirs, prefill=size.prefill, decode=0),
            size.rounds,
        )
        decodes = _pairs(
            partial(fresh, decode),
            partial(theirs, prefill=0, decode=size.decode),
            size.rounds * _DECODES_A_ROUND,
        )
    with _quiet(load) as runtime:
        _warm_up(runtime, size)
        ours = (
            prefills.ours if prefills else [_prefill_tok_s(runtime, size.prefill) for _ in range(size.rounds)]
        )
        figures.append(Figure("prefill", statistics.median(ours), "tokens/s", True))
        ours = decodes.ours if decodes else [decode(runtime) for _ in range(size.rounds)]
        figures.append(Figure("decode", statistics.median(ours), "tokens/s", True))
        if meter.is_there:
            figures.append(Figure("energy of a token", statistics.median(joules), "J"))
        for title, part in (
            ("sampler", _sampler),
            ("constraint", _constraint),
            ("turn", _turn),
            ("resume", _resume),
        ):
            say(f"{title} ...")
            try:
                figures += list(part(runtime))
            except (ContextFull, TemplateError) as error:
                left_out[title] = error.message
                say(f"{title}: left out, {error.message}")
        figures.append(Figure("memory", resident_bytes() / 1e6, "MB"))
        return Bench(
            model=runtime.name,
            model_bytes=runtime.model.size_bytes,
            threads=runtime.engine.context.n_threads,
            prefill_tokens=size.prefill,
            decode_tokens=size.decode,
            n_ctx=runtime.n_ctx,
            kv_type=runtime.options.kv_type_k,
            rounds=size.rounds,
            figures=tuple(figures),
            against=_against(prefills, decodes) if prefills and decodes else {},
            left_out=left_out,
        )


@contextmanager
def _quiet(load: Callable[[], Runtime]) -> Generator[Runtime]:
    with load() as runtime:
        # What is measured must not change while it is.
        runtime.engine.governor.is_active = False
        yield runtime


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Tokens a second of each round, and the peer's run beside each."""

    ours: list[float]
    theirs: list[PeerSpeed]

    @property
    def ratio(self) -> float:
        """Our speed over the peer's: the median of the pairs."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return round(statistics.median(speed / run.tok_s for speed, run in pairs), 4)

    @property
    def peer_tok_s(self) -> float:
        """The peer's speed."""
        return round(statistics.median(run.tok_s for run in self.theirs), 2)


def _pairs(ours: Callable[[], float], theirs: Callable[[], PeerSpeed], count: int) -> _Pairs:
    """Rounds in alternation: who begins changes."""
    pairs = _Pairs([], [])
    for index in range(count):
        if index % 2:
            pairs.theirs.append(theirs())
        pairs.ours.append(ours())
        if not index % 2:
            pairs.theirs.append(theirs())
    return pairs


def _against(prefills: _Pairs, decodes: _Pairs) -> dict[str, Any]:
    return {
        "build": prefills.theirs[0].build,
        "prefill_ratio": prefills.ratio,
        "decode_ratio": decodes.ratio,
        "prefill_tok_s": prefills.peer_tok_s,
        "decode_tok_s": decodes.peer_tok_s,
    }


def _settings(runtime: Runtime) -> dict[str, Any]:
    """What a peer is told, so that both do the same."""
    options = runtime.options
    threads = runtime.engine.context.n_threads
    return {"threads": threads, "ubatch": options.n_ubatch, "kv_type": options.kv_type_k}


def _fresh(
    load: Callable[[], Runtime],
    size: BenchSize,
    settings: dict[str, Any],
    measure: Callable[[Runtime], float],
) -> float:
    """One round on a model of its own. Where a context's memory comes to lie makes 1 % of its speed, for as long as it
    lives: the peer's lies somewhere else in each run, and so must ours.
    """
    with _quiet(load) as runtime:
        if _settings(runtime) != settings:
            raise ConfigError(
                f"the model was loaded with {_settings(runtime)}, and before with {settings}: memory or cores are"
                " not what they were.",
                hint="Say which: --threads, --kv-type.",
            )
        _warm_up(runtime, size)
        return measure(runtime)


def _warm_up(runtime: Runtime, size: BenchSize) -> None:
    """The first computations of a context are slower: they allocate."""
    _prefill_tok_s(runtime, min(64, size.prefill))
    _decode_tok_s(runtime, _WARM_DECODE)


def _prefill_cold(runtime: Runtime, count: int) -> float:
    # llama-bench runs its prompt once unmeasured: while it ran, our caches went cold.
    _prefill_tok_s(runtime, count)
    return _prefill_tok_s(runtime, count)


def _tokens(runtime: Runtime, count: int) -> list[int]:
    """Ordinary text of that many tokens, as long as it takes."""
    some = runtime.tokenize(_PROMPT) or [0]
    return (some * (count // len(some) + 1))[:count]


def _prefill_tok_s(runtime: Runtime, count: int) -> float:
    session = runtime.engine.session(runtime.make_chain("greedy", 7))
    try:
        entries = [(token, SpanKind.PROMPT) for token in _tokens(runtime, count)]
        started = time.perf_counter()
        session.extend(entries)
        return count / (time.perf_counter() - started)
    finally:
        session.close()


def _decode_tok_s(runtime: Runtime, count: int) -> float:
    """With the chain that applies to this model, drawing and all."""
    session = runtime.engine.session(runtime.make_chain(None, 7))
    try:
        session.extend([(token, SpanKind.PROMPT) for token in _tokens(runtime, 1)])
        session.step()
        started = time.perf_counter()
        for _ in range(count):
            session.step()
        return count / (time.perf_counter() - started)
    finally:
        session.close()


def _sampler(runtime: Runtime) -> Iterator[Figure]:
    """What each stage adds to a token, on logits of the model's own vocabulary."""
    spec, _ = runtime.resolve_sampler(None)
    stages = str(spec).split(" | ")
    logits = np.random.default_rng(7).normal(0, 3, runtime.vocabulary.size).astype(np.float32)
    before = 0.0
    for count in range(1, len(stages) + 1):
        text = " | ".join(stages[:count])
        taken = _chain_s(runtime, text if count == len(stages) else f"{text} | greedy", logits)
        yield Figure(f"sampler: {stages[count - 1]}", max(0.0, taken - before) * 1e6, "µs a token")
        before = taken


def _chain_s(runtime: Runtime, text: str, logits: Any) -> float:
    from edgellm.sampling.chain import StepContext

    chain = runtime.make_chain(text, 7)
    try:
        taken: list[float] = []
        for position in range(_SAMPLES):
            row = logits.copy()
            started = time.perf_counter()
            chain.sample(row, StepContext(position=position, branch=0))
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)
    finally:
        chain.close()


def _constraint(runtime: Runtime) -> Iterator[Figure]:
    """The mask of a JSON Schema, at each token of an object that follows it."""
    started = time.perf_counter()
    constraint = runtime.json_constraint(_SCHEMA)
    yield Figure("constraint: a schema compiled", (time.perf_counter() - started) * 1e3, "ms")
    taken: list[float] = []
    for token in runtime.tokenize('{"name": "Ada Lovelace", "age": 36}'):
        logits = np.zeros(runtime.vocabulary.size, np.float32)
        started = time.perf_counter()
        constraint.mask(logits)
        taken.append(time.perf_counter() - started)
        if not constraint.consume(token):
            break
    yield Figure("constraint: mask", statistics.median(taken) * 1e6, "µs a token")


def _turn(runtime: Runtime) -> Iterator[Figure]:
    """A turn in which the model has to call a tool, from the question to the end of the answer."""
    with runtime.chat(tools=[room_temperature], seed=7) as chat:
        calls = 0
        for label in ("first", "second"):
            started = time.perf_counter()
            for event in chat.send("How warm is it in the kitchen?", tool_choice="required", max_tokens=96):
                calls += isinstance(event, ToolFinished)
                if isinstance(event, TurnFinished):
                    yield Figure(f"turn with a tool, {label}", time.perf_counter() - started, "s")
        yield Figure("tool calls that ran, of 2", float(calls), "", True)


def _resume(runtime: Runtime) -> Iterator[Figure]:
    """A saved chat, from its file to the first word of the next answer."""
    filler = _PROMPT * 8
    with tempfile.TemporaryDirectory() as folder, runtime.chat(seed=7) as chat:
        list(chat.send(filler, max_tokens=4))
        path = Path(folder) / "chat"
        started = time.perf_counter()
        chat.save(path)
        yield Figure("save a chat", (time.perf_counter() - started) * 1e3, "ms")
        tokens = len(chat.tape)
        chat.close()
        started = time.perf_counter()
        with runtime.open_chat(path) as other:
            for event in other.send("Go on.", max_tokens=4):
                if isinstance(event, TextDelta | TurnFinished):
                    break
            yield Figure(f"resume {tokens} tokens", (time.perf_counter() - started) * 1e3, "ms")
