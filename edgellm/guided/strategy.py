"""Tools for models too small for them: the runtime chooses by likelihood, and the model fills in the arguments.

A noisy channel: instead of asking how likely the model is to write a call, each tool is asked how likely it
makes the user's request. P(request | a list of requests for this tool) is compared with P(request | requests that
want an answer in words). docs/decisions/guided-tools.md says what else was tried, and what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.scoring import score_after_each
from edgellm.errors import Cancelled, ContextFull
from edgellm.events import ToolChoiceScored
from edgellm.guided.arguments import ArgumentWriter
from edgellm.guided.parameters import standing_alone
from edgellm.guided.sessions import SessionsByAdapters
from edgellm.types import Message, SpanKind, ToolCall
from edgellm.waiting import NEXT_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from typing import Any

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat.template import ChatTemplate
    from edgellm.decoding import Decoding
    from edgellm.engine.engine import Engine
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.types import ToolSpec
    from edgellm.waiting import Waiting

THRESHOLD = 1.2
"""Nats by which the best tool must beat the requests that want words; tuned on benchmarks/data, split tune."""

_MAX_REQUEST_TOKENS = 48


@dataclass(frozen=True, slots=True)
class _Words:
    """Requests that want an answer in words: what a tool has to beat."""

    head: str
    requests: tuple[str, ...]


_IN_WORDS = (
    _Words(
        "Tool: Answer questions. General knowledge and chat.",
        (
            "Hello!",
            "Who was Napoleon?",
            "Why do cats purr?",
            "What is the meaning of democracy?",
            "How do airplanes fly?",
            "Thanks a lot.",
        ),
    ),
    _Words(
        "Tool: Talk and write. Chat with the user, write texts.",
        (
            "Hi, how are you doing?",
            "Write a short poem about rain.",
            "Tell me about yourself.",
            "I am happy today.",
            "Give me some advice for an interview.",
            "Do you like music?",
        ),
    ),
)


def worked_turns(wire_format: WireFormat) -> tuple[Message, ...]:
    """Two made-up turns: what to do with a tool's result, and that most questions need none.

    Without the second, the model answers plain questions in the syntax of results.
    """
    call = ToolCall(wire_format.call_id(0, "find_distance"), "find_distance", {"place": "station"})
    return (
        Message("user", "How far is the station?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", '{"km": 3}', tool_call_id=call.id, name=call.name),
        Message("assistant", "The station is 3 km away."),
        Message("user", "Who wrote Hamlet?"),
        Message("assistant", "Hamlet was written by William Shakespeare, around the year 1600."),
    )


class Guided:
    """The `guided` strategy for one set of tools. Forks of a chat share it.

    Each tool's list of requests is computed once and kept; a turn costs one batch of the request's tokens, once
    for each tool and for each list of requests in words.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        wire_format: WireFormat,
        *,
        make_chain: Callable[[str], Chain],
        make_constraint: Callable[[str], Constraint],
        threshold: float = THRESHOLD,
    ) -> None:
        self._engine = engine
        self._template = template
        self._format = wire_format
        self._make_chain = make_chain
        self._make_constraint = make_constraint
        self._writer = ArgumentWriter(
            engine, template, wire_format, make_chain=make_chain, make_constraint=make_constraint
        )
        self._threshold = threshold
        self._channels = SessionsByAdapters()

    def decide(
        self, decoding: Decoding, request: str, specs: Sequence[ToolSpec], *, is_required: bool
    ) -> Generator[Event | Waiting, None, bool]:
        """Chooses a tool and writes its call, or leaves the answer to the model. True where a call was written."""
        with self._channels.held(decoding.overlay), self._writer.sessions.held(decoding.overlay):
            return (yield from self._decide(decoding, request, specs, is_required=is_required))

    def _decide(
        self, decoding: Decoding, request: str, specs: Sequence[ToolSpec], *, is_required: bool
    ) -> Generator[Event | Waiting, None, bool]:
        specs = [standing_alone(spec) for spec in specs]
        try:
            if is_required and len(specs) == 1:
                chosen = specs[0]
            else:
                yield NEXT_TOKEN
                scores = self.scores(request, specs, decoding.overlay)
                best = int(np.argmax(scores))
                chosen = specs[best] if is_required or scores[best] >= self._threshold else None
                yield ToolChoiceScored(
                    tuple((spec.name, score) for spec, score in zip(specs, scores, strict=True)),
                    chosen.name if chosen is not None else None,
                    self._threshold,
                )
            if chosen is None:
                return False
            arguments = yield from self._writer.write(chosen, request, decoding.overlay)
            if arguments is None:
                yield from self._draw_call(decoding, chosen)
            else:
                yield from self._write_call(decoding, chosen, arguments)
        except Cancelled:
            decoding.finish_reason = "cancelled"
        except ContextFull:
            decoding.finish_reason = "context_full"
        return True

    # -- which tool -----------------------------------------------------------------------------------------

    def scores(self, request: str, specs: Sequence[ToolSpec], overlay: Overlay) -> list[float]:
        """For each tool, in nats: log P(request | its requests) − log P(request | requests that want words), with the
        adapters of `overlay`."""
        channels = [
            self._channel(overlay, f"words {i}", words.head, words.requests)
            for i, words in enumerate(_IN_WORDS)
        ]
        channels += [
            self._channel(
                overlay, f"tool {spec.name} {spec.parameters} {spec.examples}", *_requests_for(spec)
            )
            for spec in specs
        ]
        tokens = self._request_tokens(request)
        totals = [float(score.sum()) for score in score_after_each(channels, tokens)]
        words = np.array(totals[: len(_IN_WORDS)])
        base = float(words.max() + np.log(np.exp(words - words.max()).mean()))
        return [total - base for total in totals[len(_IN_WORDS) :]]

    def _channel(self, overlay: Overlay, key: str, head: str, requests: Sequence[str]) -> Session:
        known = self._channels.of(overlay)
        session = known.get(key)
        if session is None:
            lines = "".join(f"- {request}\n" for request in requests)
            entries, _ = self._split(f"{head}\nRequests for this tool:\n{lines}", "Hello!")
            session = self._engine.session(self._make_chain("greedy"), overlay)
            try:
                # All but the last token, which each scoring decodes again.
                session.extend(entries, head=len(entries) - 1)
            except BaseException:
                session.close()
                raise
            known[key] = session
        return session

    def _request_tokens(self, request: str) -> list[int]:
        _, tokens = self._split("Requests for this tool:", request)
        return tokens

    def _split(self, system: str, request: str) -> tuple[list[tuple[int, SpanKind]], list[int]]:
        """A prompt cut in two: what stands before the request; the request with the token that ends its turn."""
        segments = self._template.render([Message("system", system), Message("user", request)])
        entries = self._engine.vocabulary.encode(segments)
        kinds = [kind for _, kind in entries]
        start = kinds.index(SpanKind.USER)
        end = len(kinds) - kinds[::-1].index(SpanKind.USER)
        body = [token for token, _ in entries[start:end]][:_MAX_REQUEST_TOKENS]
        return entries[:start], [*body, entries[end][0]]

    def _write_call(
        self, decoding: Decoding, spec: ToolSpec, arguments: Mapping[str, Any]
    ) -> Generator[Event | Waiting, None, None]:
        """Puts the call on the chat's tape, in the words of its format."""
        yield from decoding.write(
            self._format.render_call_head(spec.name)
            + self._format.render_arguments(arguments)
            + self._format.render_call_tail(spec.name)
        )
        decoding.end_turn()

    def _draw_call(self, decoding: Decoding, spec: ToolSpec) -> Generator[Event | Waiting, None, None]:
        """Lets the model write the call's arguments on the chat's own tape, greedily, under the tool's schema."""
        chain = self._make_chain("greedy")
        grammar = self._format.call_grammar((spec,))
        try:
            yield from decoding.draw_under(self._make_constraint(grammar), chain)
        finally:
            chain.close()
        if decoding.finish_reason == "eog" and decoding.calls:
            decoding.end_turn()


def _requests_for(spec: ToolSpec) -> tuple[str, tuple[str, ...]]:
    """A tool's head line, and requests that want it: its description first, then its examples."""
    parts = [f"Tool: {_words(spec.name)}."]
    for name, schema in spec.parameters.get("properties", {}).items():
        text = str(schema.get("description", "")).rstrip(".")
        choices = schema.get("enum")
        listed = f" ({', '.join(map(str, choices))})" if choices else ""
        parts.append(f"{_words(name).capitalize()}: {text}{listed}.")
    description = spec.description.strip().split("\n\n")[0].rstrip(".")
    return " ".join(parts), (description, *(example.request for example in spec.examples))


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").replace(".", " ")
