"""A runtime that plays turns from a list: what the app shows is then a function of the list alone."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import edgellm
from edgellm import (
    Distribution,
    Leg,
    Message,
    Rows,
    Span,
    SpanKind,
    Step,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)

CHAIN = "top_k(3) | temperature(0.5) | dist(seed=7)"
IM_START, IM_END, END_OF_TEXT = 0, 1, 2
_CONTROL: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_PIECES = re.compile(r"\s*\S+|\s+")
_STEP_S = 0.1


class Clock:
    """A clock that stands still until somebody advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds


@dataclass(frozen=True)
class Draw:
    """One token is drawn: its text, its raw probability, and what else could have come (text, probability)."""

    text: str
    p: float = 0.9
    others: tuple[tuple[str, float], ...] = ()
    is_reasoning: bool = False
    is_forced: bool = False


@dataclass(frozen=True)
class Call:
    """A tool is called: the call is written piece by piece, asked about where `asks`, and `result` comes back.

    `arguments_p` are the probabilities of its pieces, in order; those left out are 0.9.
    """

    name: str
    arguments: dict[str, Any]
    result: ToolResult = field(default_factory=lambda: ToolResult("done", duration_s=0.5))
    asks: bool = False
    arguments_p: tuple[float, ...] = ()


@dataclass(eq=False)
class Gate:
    """The turn waits here until the test opens the gate, or the turn is cancelled."""

    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def open(self) -> None:
        """Lets the turn go on."""
        self.opened.set()


Item = Draw | Call | Gate | Exception | Callable[[], Any] | Any
"""What a turn is made of; any other object is sent as an event as it stands."""


def words(text: str, p: float = 0.9, **options: Any) -> list[Draw]:
    """A text as draws, one a word."""
    return [Draw(piece, p, **options) for piece in _PIECES.findall(text)]


class Vocabulary:
    """Tokens are words; each gets its id when it is first seen."""

    def __init__(self) -> None:
        self.texts = list(_CONTROL)
        self.bos = None
        self.eos = IM_END
        self.adds_bos = False
        self.special_tokens = _CONTROL

    @property
    def size(self) -> int:
        return max(1000, len(self.texts))

    def id_of(self, text: str) -> int:
        """The id of a word."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def piece(self, token: int) -> bytes:
        return self.texts[token].encode() if token < len(self.texts) else f"<{token}>".encode()

    def text_of(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self.piece, tokens))

    def tokenize(self, text: str, **_options: Any) -> list[int]:
        return [self.id_of(piece) for piece in _PIECES.findall(text)]

    def is_control(self, token: int) -> bool:
        return token < len(_CONTROL)

    def is_eog(self, token: int) -> bool:
        return token in (IM_END, END_OF_TEXT)


class ScriptedRuntime:
    """Plays `turns`, one for each send of any of its chats; after the last one, answers are empty."""

    def __init__(
        self,
        turns: Sequence[Sequence[Item]] = (),
        *,
        clock: Clock | None = None,
        specs: Sequence[ToolSpec] = (),
        name: str = "scripted-1b",
        n_ctx: int = 4096,
    ) -> None:
        self.turns = [list(turn) for turn in turns]
        self.clock = clock or Clock()
        self.specs = {spec.name: spec for spec in specs}
        self.name = name
        self.n_ctx = n_ctx
        self.threads = 2
        self.vocabulary = Vocabulary()
        self.options = edgellm.LoadOptions(threads=2)
        self.entry = None
        self.info = None
        self.model = SimpleNamespace(path=Path(f"/models/{name}.gguf"), metadata={}, size_bytes=10**9)
        self.chats: list[ScriptedChat] = []
        self.loaded: list[str] = []
        self.approvals: list[edgellm.Approval] = []
        self.is_closed = False
        # What becomes of the memory of chats that are opened.
        self.resumed = edgellm.Resumed("exact")
        # Whether a draft goes on until it is stopped.
        self.drafts_last = False
        # The same of room that is made ahead of time.
        self.tidies_last = False

    def load(self, model: str) -> ScriptedRuntime:
        """What the app is given as `load`."""
        self.loaded.append(model)
        self.is_closed = False
        return self

    def chat(self, **options: Any) -> ScriptedChat:
        _absolute(options.get("adapters"))
        chat = ScriptedChat(self, options)
        self.chats.append(chat)
        return chat

    def open_chat(self, path: str | Path, **options: Any) -> ScriptedChat:
        return self._opened(json.loads(Path(path).read_text(encoding="utf-8")), options)

    def open_chats(self, path: str | Path, **options: Any) -> tuple[ScriptedChat, ...]:
        main = json.loads(Path(path).read_text(encoding="utf-8"))
        return tuple(self._opened(saved, options) for saved in (main, *main["branches"]))

    def _opened(self, saved: dict[str, Any], options: dict[str, Any]) -> ScriptedChat:
        chat = self.chat(**options)
        chat.name = saved["name"]
        chat.tokens = saved["tokens"]
        chat.kinds = [SpanKind(kind) for kind in saved["kinds"]]
        chat.texts = [Message(**message) for message in saved["messages"]]
        chat.starts = saved["starts"]
        chat.options = {"system": saved["system"], **options}
        chat.resumed = self.resumed
        if "adapters" not in options:
            lora = tuple(edgellm.LoraAdapter(**one) for one in saved["adapters"]["lora"])
            chat.set_adapters(edgellm.AdapterSet(lora))
        self.vocabulary.texts = saved["vocabulary"]
        return chat

    def tokenize(self, text: str, **options: Any) -> list[int]:
        return self.vocabulary.tokenize(text, **options)

    def close(self) -> None:
        self.is_closed = True


class ScriptedChat:
    """A chat of it. Its tape, messages and steps are kept as a real one's."""

    def __init__(self, runtime: ScriptedRuntime, options: dict[str, Any]) -> None:
        self.runtime = runtime
        self.options: dict[str, Any] = options
        self.name = ""
        self.tokens: list[int] = []
        self.kinds: list[SpanKind] = []
        self.texts: list[Message] = list(options.get("history") or ())
        self.starts = [0] * len(self.texts)
        self.steps: dict[int, Step] = {}
        self.sent: list[tuple[str | None, dict[str, Any]]] = []
        self.drafts: list[str] = []
        self.is_drafting, self.draft_stopped = threading.Event(), threading.Event()
        self.is_tidying, self.tidy_stopped = threading.Event(), threading.Event()
        self.tidied = 0
        self.usage = Usage()
        self.chain = SimpleNamespace(spec=edgellm.ChainSpec.parse(options.get("sampler") or CHAIN), seed=7)
        self.template = SimpleNamespace(source="", name="scripted")
        self.format = SimpleNamespace(id="hermes", reason="scripted")
        self.strategy = "free"
        self.resumed: edgellm.Resumed | None = None
        self.pins: set[int] = set()
        self.speculation = options.get("speculate", "off")
        self.is_closed = False
        self.is_open = False
        self._stop = threading.Event()

    # -- looking --------------------------------------------------------------------------------------------

    @property
    def tape(self) -> tuple[int, ...]:
        return tuple(self.tokens)

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self.texts)

    @property
    def system(self) -> str:
        return self.options.get("system") or ""

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.options.get("tools") or ())

    @property
    def spans(self) -> list[Span]:
        found: list[Span] = []
        for index, kind in enumerate(self.kinds):
            if found and found[-1].kind == kind:
                found[-1] = Span(kind, found[-1].start, index + 1)
            else:
                found.append(Span(kind, index, index + 1))
        return found

    def ledger(self) -> edgellm.Ledger:
        # Any: kinds are owners.
        counts: Counter[Any] = Counter(kind.value for kind in self.kinds)
        entries = [edgellm.LedgerEntry(owner, n, price_s=n / 50) for owner, n in counts.items()]
        return edgellm.Ledger(self.runtime.n_ctx, tuple(entries), 50.0)

    def outlook(self) -> edgellm.ContextOutlook:
        policy = self.context_policy
        firsts = [index for index, message in enumerate(self.texts) if message.role == "user"]
        ends = [*firsts[1:], len(self.texts)]
        at = [*self.starts, len(self.tokens)]
        turns = tuple(
            edgellm.ContextTurn(first, tuple(self.texts[first:end]), at[end] - at[first])
            for first, end in zip(firsts, ends, strict=True)
        )
        if policy == "stop" or len(turns) < 2:
            return edgellm.ContextOutlook(policy, self.runtime.n_ctx, turns)
        behind = sum(turn.tokens for turn in turns[1:])
        return edgellm.ContextOutlook(
            policy,
            self.runtime.n_ctx - self.runtime.n_ctx // 8,
            turns,
            (0,),
            removed_tokens=turns[0].tokens,
            behind_tokens=behind,
            is_summarized=policy == "summarize",
            is_moved=policy == "evict",
            price_s=0.0 if policy == "evict" else behind / 50,
        )

    @property
    def is_answer_open(self) -> bool:
        is_last = bool(self.texts) and self.texts[-1].role == "assistant"
        return is_last and self.tokens[-1] not in (IM_END, END_OF_TEXT)

    @property
    def adapters(self) -> edgellm.AdapterSet:
        return self.options.get("adapters") or edgellm.AdapterSet()

    def set_adapters(self, adapters: edgellm.AdapterSet | None) -> int:
        if self.is_open:
            raise edgellm.ConfigError("cannot change the adapters while a turn is open.", hint="Wait.")
        self.options = {**self.options, "adapters": _absolute(adapters)}
        return len(self.tokens)

    @property
    def context_policy(self) -> str:
        return self.options.get("context_policy", "stop")

    @property
    def pinned(self) -> tuple[int, ...]:
        return tuple(sorted(self.pins))

    def pin(self, message: int) -> None:
        assert not self.is_open and 0 <= message < len(self.texts)
        self.pins.add(message)

    def unpin(self, message: int) -> None:
        assert not self.is_open and 0 <= message < len(self.texts)
        self.pins.discard(message)

    def set_context_policy(self, policy: str) -> None:
        assert not self.is_closed
        if self.is_open:
            raise edgellm.ConfigError("cannot change the context policy while a turn is open.", hint="Wait.")
        self.options = {**self.options, "context_policy": policy}

    # -- talking --------------------------------------------------------------------------------------------

    def send(self, text: str | None, **options: Any) -> Generator[Any, None, None]:
        runtime = self.runtime
        self.sent.append((text, options))
        self._stop.clear()
        self.is_open = True
        reused, before = len(self.tokens), len(self.tokens)
        try:
            is_resumed = text is None and self.is_answer_open
            if text is not None:
                self.say("user", text, SpanKind.USER)
                self._write("<|im_start|>assistant\n", SpanKind.GLUE)
            start = self.starts[-1] if is_resumed else len(self.tokens)
            new = len(self.tokens) - before
            yield edgellm.PrefillProgress(new, new)
            turn = runtime.turns.pop(0) if runtime.turns else []
            decoded, reason = 0, "cancelled"
            for item in turn:
                if self._stop.is_set():
                    break
                if isinstance(item, Draw):
                    decoded += 1
                    yield from self._draw(item)
                elif isinstance(item, Call):
                    self._answered(start)
                    yield from self._call(item)
                    start = len(self.tokens)
                elif isinstance(item, Gate):
                    self._answered(start)
                    item.reached.set()
                    while not item.opened.wait(0.01) and not self._stop.is_set():
                        pass
                elif isinstance(item, Exception):
                    self._answered(start)
                    raise item
                else:
                    yield item
            else:
                reason = "eog"
                if not self._stop.is_set():
                    self._append(IM_END, SpanKind.GLUE)
            self._answered(start)
            leg = Leg(new, reused, decoded, prefill_s=0.5, decode_s=decoded * _STEP_S, finish_reason=reason)
            usage = Usage((leg,))
            self.usage += usage
            last = self.texts[-1].content if self.texts else ""
            yield edgellm.TurnFinished(last, "cancelled" if self._stop.is_set() else reason, usage)
        finally:
            self.is_open = False

    async def asend(self, text: str | None, **options: Any) -> AsyncGenerator[Any, None]:
        for event in self.send(text, **options):
            yield event
            await asyncio.sleep(0)

    def cancel(self) -> None:
        self._stop.set()

    def prefill_draft(self, text: str) -> int:
        self.drafts.append(text)
        self.is_drafting.set()
        if self.runtime.drafts_last:
            assert self.draft_stopped.wait(20)
        return 0

    def stop_draft(self) -> None:
        self.draft_stopped.set()

    def tidy(self, *, is_wanted: Callable[[], bool]) -> tuple[Any, ...]:
        """The oldest turn goes, where that is not stopped before."""
        assert not self.is_open and not self.is_closed
        self.tidied += 1
        self.is_tidying.set()
        if self.runtime.tidies_last:
            assert self.tidy_stopped.wait(20)
        if self.tidy_stopped.is_set() or not is_wanted() or len(self.texts) < 4:
            return ()
        gone, end = tuple(self.texts[:2]), self.starts[2]
        del self.texts[:2], self.starts[:2], self.tokens[:end], self.kinds[:end]
        self.starts = [start - end for start in self.starts]
        return (
            edgellm.PrefillProgress(1, 2),
            edgellm.ContextEvicted("summarize", gone, end, 0, 0, False, "They counted.", 0.5),
        )

    def stop_tidy(self) -> None:
        self.tidy_stopped.set()

    def _draw(self, draw: Draw, kind: SpanKind | None = None) -> Generator[Any, None, None]:
        kind = kind or (SpanKind.REASONING if draw.is_reasoning else SpanKind.TEXT)
        position = len(self.tokens)
        token = self.runtime.vocabulary.id_of(draw.text)
        step = self.step_for(position, draw)
        self.steps[position] = step
        self._append(token, kind)
        self.runtime.clock.advance(_STEP_S)
        if self.options.get("trace"):
            yield edgellm.TokenDrawn(step)
        if kind == SpanKind.TEXT:
            yield edgellm.TextDelta(draw.text)
        elif kind == SpanKind.REASONING:
            yield edgellm.ReasoningDelta(draw.text)

    def step_for(self, position: int, draw: Draw) -> Step:
        """The step of a draw: raw rows, rows after top_k(3), rows after the temperature, and what was drawn."""
        vocabulary = self.runtime.vocabulary
        others = draw.others or ((" perhaps", (1 - draw.p) * 0.5), (" never", (1 - draw.p) * 0.25))
        token = vocabulary.id_of(draw.text)
        if draw.is_forced:
            return Step(token, draw.text.encode(), position, is_forced=True)
        pairs = sorted([(draw.text, draw.p), *others], key=lambda pair: -pair[1])
        ids = np.array([vocabulary.id_of(text) for text, _ in pairs], np.int32)
        probs = np.array([p for _, p in pairs], np.float32)
        points = [_rows("raw", ids, probs, vocabulary.size)]
        kept = min(3, len(ids))
        cut = probs[:kept] / probs[:kept].sum()
        points.append(_rows("top_k(3)", ids[:kept], cut, kept))
        warm = cut**2 / (cut**2).sum()
        points.append(_rows("temperature(0.5)", ids[:kept], warm, kept))
        logprob = float(np.log(draw.p))
        return Step(
            token,
            draw.text.encode(),
            position,
            logprob=logprob,
            distribution=Distribution([_Point(each) for each in points], len(ids), 0.5),
        )

    def _call(self, item: Call) -> Generator[Any, None, None]:
        text = json.dumps(item.arguments)
        pieces = re.findall(r"[\w.]+|\W", text)
        odds = [*item.arguments_p, *([0.9] * len(pieces))]
        call = ToolCall(f"call_{len(self.texts)}", item.name, item.arguments, text)
        yield edgellm.ToolCallStarted(0)
        for piece in ("<tool_call>", item.name):
            yield from self._draw(Draw(piece), SpanKind.TOOL_CALL)
        yield edgellm.ToolCallName(0, item.name)
        for piece, p in zip(pieces, odds, strict=False):
            yield from self._draw(Draw(piece, p), SpanKind.TOOL_CALL)
            yield edgellm.ToolCallDelta(0, piece)
        yield edgellm.ToolCallReady(0, call)
        self._add(Message("assistant", "", tool_calls=(call,)), len(self.tokens) - len(pieces) - 2)
        result = item.result
        if item.asks:
            spec = self.runtime.specs[item.name]
            reason = f"{item.name} asks before it runs."
            yield edgellm.ApprovalRequested(call, reason)
            answer = self.options["approve"](call, spec, reason)
            self.runtime.approvals.append(answer)
            if answer.decision == "deny":
                yield edgellm.ToolDenied(call, answer.reason or "the user did not allow it")
                result = ToolResult("Not run.", is_ok=False)
            else:
                call = answer.call or call
                yield edgellm.ToolApproved(call, "user")
        else:
            yield edgellm.ToolApproved(call, "auto")
        if result.text != "Not run.":
            yield edgellm.ToolRunning(call)
        yield edgellm.ToolFinished(call, result)
        start = len(self.tokens)
        self._write(result.text, SpanKind.TOOL_RESULT)
        self._add(Message("tool", result.text, tool_call_id=call.id, name=call.name), start)

    # -- the tape -------------------------------------------------------------------------------------------

    def _append(self, token: int, kind: SpanKind) -> None:
        self.tokens.append(token)
        self.kinds.append(kind)

    def _write(self, text: str, kind: SpanKind) -> None:
        for token in self.runtime.vocabulary.tokenize(text):
            self._append(token, kind)

    def _add(self, message: Message, start: int) -> None:
        self.texts.append(message)
        self.starts.append(start)

    def say(self, role: Any, text: str, kind: SpanKind) -> None:
        start = len(self.tokens)
        self._write(f"<|im_start|>{role}\n", SpanKind.GLUE)
        self._write(text, kind)
        self._append(IM_END, SpanKind.GLUE)
        self._add(Message(role, text), start)

    def _answered(self, start: int) -> None:
        """The tokens from `start` on are the newest assistant message."""
        parts = {SpanKind.TEXT: "", SpanKind.REASONING: ""}
        for token, kind in zip(self.tokens[start:], self.kinds[start:], strict=True):
            if kind in parts:
                parts[kind] += self.runtime.vocabulary.texts[token]
        if self.starts and self.starts[-1] == start and self.texts[-1].role == "assistant":
            self.texts.pop()
            self.starts.pop()
        if any(parts.values()):
            self._add(
                Message("assistant", parts[SpanKind.TEXT], reasoning=parts[SpanKind.REASONING]),
                start,
            )

    # -- steering -------------------------------------------------------------------------------------------

    def rewind(self, to: int, *, redraw: bool = False) -> None:
        if not 0 <= to <= len(self.texts):
            raise edgellm.ConfigError(f"cannot rewind to message {to}.", hint="Give a smaller number.")
        if to < len(self.texts):
            self._cut(self.starts[to])
            del self.texts[to:], self.starts[to:]
            self.pins = {index for index in self.pins if index < to}

    def _cut(self, position: int) -> None:
        del self.tokens[position:], self.kinds[position:]
        self.steps = {at: step for at, step in self.steps.items() if at < position}

    def fork(self, *, at: int | None = None) -> ScriptedChat:
        other = self.runtime.chat(**self.options)
        other.tokens, other.kinds = list(self.tokens), list(self.kinds)
        other.texts, other.starts = list(self.texts), list(self.starts)
        other.steps, other.usage = dict(self.steps), self.usage
        other.chain = self.chain
        other.pins = set(self.pins)
        if at is not None:
            other._reopen(at)
        return other

    def branch(self, position: int, token: int) -> ScriptedChat:
        kind = self.kinds[position] if position < len(self.kinds) else SpanKind.TEXT
        other = self.fork(at=position)
        other._append(token, kind)
        other._answered(other.starts[-1])
        return other

    def _reopen(self, position: int) -> None:
        index = max((i for i, start in enumerate(self.starts) if start <= position), default=-1)
        if index < 0 or self.texts[index].role != "assistant":
            raise edgellm.ConfigError(f"position {position} is in no answer.", hint="Give another.")
        start = self.starts[index]
        del self.texts[index + 1 :], self.starts[index + 1 :]
        self._cut(position)
        self._answered(start)
        if len(self.texts) == index:
            self._add(Message("assistant", ""), start)

    def explain(self, position: int, *, sampler: Any = None, rows: int = 20) -> Step:
        step = self.steps.get(position)
        if step is not None and step.distribution is not None:
            return step
        text = (
            self.runtime.vocabulary.texts[self.tokens[position]] if position < len(self.tokens) else " next"
        )
        return self.step_for(position, Draw(text, 0.5))

    def set_sampler(self, sampler: Any, *, seed: int | None = None) -> None:
        spec = edgellm.ChainSpec.parse(sampler) if isinstance(sampler, str) else sampler
        self.chain = SimpleNamespace(spec=spec, seed=seed if seed is not None else self.chain.seed)

    def set_speculation(self, mode: str) -> None:
        self.speculation = mode

    def set_trace(self, rows: int) -> None:
        self.options = {**self.options, "trace": rows}

    def save(self, path: str | Path, *, branches: Sequence[ScriptedChat] = ()) -> None:
        saved = {**self._saved(), "branches": [branch._saved() for branch in branches]}
        Path(path).write_text(json.dumps(saved), encoding="utf-8")

    def _saved(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.tokens,
            "kinds": [kind.value for kind in self.kinds],
            "messages": [
                {
                    "role": message.role,
                    "content": message.content,
                    "reasoning": message.reasoning,
                    "tool_call_id": message.tool_call_id,
                    "name": message.name,
                }
                for message in self.texts
            ],
            "starts": self.starts,
            "adapters": asdict(self.adapters),
            "system": self.system,
            "vocabulary": self.runtime.vocabulary.texts,
        }

    def close(self) -> None:
        self.cancel()
        self.is_closed = True


def _absolute(adapters: edgellm.AdapterSet | None) -> edgellm.AdapterSet:
    """As the engine gives them back: whole paths, and nothing of scale 0."""
    chosen = adapters or edgellm.AdapterSet()
    for one in (*chosen.lora, *chosen.control):
        if not Path(one.path).is_file():
            raise edgellm.ConfigError(f"there is no adapter at {one.path}.", hint="Check the path.")
    return edgellm.AdapterSet(
        tuple(replace(one, path=str(Path(one.path).absolute())) for one in chosen.lora if one.scale),
        tuple(
            replace(one, path=str(Path(one.path).absolute()), last_layer=one.last_layer or 3)
            for one in chosen.control
            if one.scale
        ),
    )


@dataclass(frozen=True)
class _Point:
    seen: Rows

    @property
    def entropy_bits(self) -> float:
        return self.seen.entropy_bits

    def cut(self, n: int) -> _Point:
        return self

    def rows(self, n: int) -> Rows:
        return self.seen


def _rows(stage: str, ids: Any, probs: Any, n_left: int) -> Rows:
    # Any: numpy arrays.
    entropy = float(-(probs * np.log2(probs)).sum())
    return Rows(stage, ids, np.log(probs).astype(np.float32), probs.astype(np.float32), n_left, entropy)
