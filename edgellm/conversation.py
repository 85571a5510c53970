"""Messages as a view of the tape: what a new message appends, and where each one begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edgellm.chat.continuation import strip_leading
from edgellm.chat.exactness import Exactness, compare
from edgellm.chat.parser import OutputParser
from edgellm.chat.utf8 import TextDecoder
from edgellm.engine.surgery import excise
from edgellm.errors import ConfigError, SessionError, TemplateError
from edgellm.types import Message, SpanKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgellm.chat.continuation import Continuation
    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat.template import ChatTemplate
    from edgellm.engine.session import Session
    from edgellm.engine.tape import Tape
    from edgellm.types import ReasoningPolicy, Segment, ToolSpec


_ANSWER_KINDS = frozenset((SpanKind.TEXT, SpanKind.REASONING, SpanKind.TOOL_CALL))


@dataclass(frozen=True, slots=True)
class Plan:
    """New tokens for some messages. `prefix` is the generation prompt that the model's output continues.

    The first `head` of the tokens are those of any chat with this system turn and these tools.
    `removed_tokens` were taken off the tape before them; `is_shifted`: by moving what stands behind in the memory.
    """

    entries: tuple[tuple[int, SpanKind], ...]
    messages: tuple[Message, ...]
    prefix: str
    removed_tokens: int = 0
    is_shifted: bool = False
    head: int = 0


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """An answer that goes on: its first tape position, its tokens so far, the generation prompt before them.

    `message` is what its reader has been given of it.
    """

    start: int
    tokens: tuple[int, ...]
    prefix: str
    message: Message


class Conversation:
    """Keeps messages and tape in step. What is on the tape is never rendered, tokenized or prefilled again.

    `specs` are the tools the model is told of. `preamble` are made-up turns in front of the conversation (worked
    examples), `history` real messages from before the tape began. `starts[i]` is the tape length at which
    message i begins.
    """

    def __init__(
        self,
        session: Session,
        template: ChatTemplate,
        continuation: Continuation,
        wire_format: WireFormat,
        *,
        system: str = "",
        specs: Sequence[ToolSpec] = (),
        preamble: Sequence[Message] = (),
        history: Sequence[Message] = (),
    ) -> None:
        self.session = session
        self.template = template
        self.continuation = continuation
        self.format = wire_format
        self.system = system
        self.specs = tuple(specs)
        # The tools whose calls are read from answers: where the runtime chooses, the model is not told of them.
        self.offered: tuple[ToolSpec, ...] = self.specs
        self.preamble = tuple(preamble)
        self.messages: list[Message] = list(history)
        self.starts: list[int] = [0] * len(self.messages)
        self._postponed: list[Message] = []
        # Indices of messages whose turns stay when the context fills.
        self.pins: set[int] = set()
        # What becomes of earlier reasoning when the user speaks again.
        self.reasoning_policy: ReasoningPolicy = "keep"
        self._is_begun = False
        self._answer_start = 0
        # Tape and starts before a plan cut them, until it is on the tape.
        self._before: tuple[Tape, list[int]] | None = None

    # -- rendering ------------------------------------------------------------------------------------

    def plan(self, tail: Sequence[Message]) -> Plan:
        """The tokens that `tail` appends. The tape may lose its drawn end token, where the template's differs.

        Raises TemplateError.
        """
        messages = (*self._postponed, *tail)
        encode = self.session.engine.vocabulary.encode
        removed, is_shifted = 0, False
        is_new_turn = self._is_begun and any(message.role == "user" for message in messages)
        if is_new_turn and self.reasoning_policy == "excise":
            removed, is_shifted = self._excise()
        if self._is_begun and not (is_new_turn and self.reasoning_policy == "render"):
            segments = self._continue(messages)
            entries = encode(segments)
        else:
            segments = self._start(messages)
            before = len(self.session.tape)
            entries = self._reuse(self._with_bos(encode(segments)))
            if self._is_begun:
                removed = before - len(self.session.tape)
        head = 0 if self._is_begun or len(self.session.tape) else self._head_of(entries)
        return Plan(tuple(entries), messages, _prefix_of(segments), removed, is_shifted, head)

    def _head_of(self, entries: Sequence[tuple[int, SpanKind]]) -> int:
        """How many tokens of a first prompt come before the first word of a real user."""
        made_up = sum(message.role == "user" for message in self.preamble)
        before = SpanKind.GLUE
        for position, (_, kind) in enumerate(entries):
            if kind == SpanKind.USER != before:
                if not made_up:
                    return position
                made_up -= 1
            before = kind
        return 0

    def _excise(self) -> tuple[int, bool]:
        """Takes all reasoning off the tape: (tokens taken, whether the rest was moved instead of computed anew)."""
        removed, is_shifted = 0, True
        while span := next((s for s in self.session.tape.spans() if s.kind == SpanKind.REASONING), None):
            size = span.end - span.start
            is_shifted &= excise(self.session, span.start, span.end)
            removed += size
            self.starts = [start - size if start >= span.end else start for start in self.starts]
        return removed, is_shifted and removed > 0

    def exactness(self) -> Exactness:
        """The tape compared with what a full render of the conversation would put there."""
        session = self.session
        vocabulary = session.engine.vocabulary
        try:
            rendered = [token for token, _ in self._with_bos(vocabulary.encode(self._start(())))]
        except TemplateError as error:
            return Exactness("diverges", 0, f"the template refuses the conversation: {error.message}")
        return compare(session.tape.tokens, session.tape.kinds, rendered, vocabulary.text_of)

    def _reuse(self, entries: list[tuple[int, SpanKind]]) -> list[tuple[int, SpanKind]]:
        """What of a first prompt is not on the tape yet: after a rewind the system turn still is."""
        tape = self.session.tape
        shared = 0
        for (token, _), known in zip(entries[:-1], tape.tokens, strict=False):
            if token != known:
                break
            shared += 1
        self._cut(shared)
        return entries[shared:]

    def _cut(self, length: int) -> None:
        """Cuts the tape for a plan."""
        if self._is_begun and self._before is None and length < len(self.session.tape):
            self._before = self.session.tape.copy(), list(self.starts)
        self.session.rewind(length)
        # Where messages stand once they are rendered anew is not told by the template: a later rewind does so too.
        self.starts = [min(start, length) for start in self.starts]

    def give_up(self) -> None:
        """The newest plan does not come onto the tape: what was cut away for it is put back, uncomputed."""
        before, self._before = self._before, None
        session = self.session
        length = len(session.tape)
        if before is not None and not session.is_closed and before[0].tokens[:length] == session.tape.tokens:
            session.tape.take(before[0], length)
            session.hold_logits(None)
            session.drawing.tell_anew()
            self.starts = before[1]

    def first_prompt(
        self,
        messages: Sequence[Message],
        *,
        specs: Sequence[ToolSpec] | None = None,
        has_preamble: bool = True,
    ) -> list[tuple[int, SpanKind]]:
        """The tokens of a conversation that has these messages and nothing else behind its system turn.

        `specs` are other tools than the conversation's own. Raises TemplateError.
        """
        segments = self._render(messages, self.specs if specs is None else specs, has_preamble=has_preamble)
        return self._with_bos(self.session.engine.vocabulary.encode(segments))

    def _start(self, messages: Sequence[Message]) -> tuple[Segment, ...]:
        return self._render([*self.messages, *messages], self.specs)

    def _render(
        self, messages: Sequence[Message], specs: Sequence[ToolSpec], *, has_preamble: bool = True
    ) -> tuple[Segment, ...]:
        known = [*self._system_messages(specs), *(self.preamble if has_preamble else ()), *messages]
        inputs = self.format.template_inputs(specs)
        tools = specs if self.format.template_takes_tools else ()
        return self.template.render(self.format.to_template(known), tools=tools, **inputs)

    def _system_messages(self, specs: Sequence[ToolSpec]) -> list[Message]:
        parts = [self.system, self.format.describe_tools(specs) if specs else None]
        text = "\n\n".join(part for part in parts if part)
        return [Message("system", text)] if text else []

    def _template_tools(self) -> tuple[ToolSpec, ...]:
        return self.specs if self.format.template_takes_tools else ()

    def _continue(self, messages: Sequence[Message]) -> tuple[Segment, ...]:
        session = self.session
        if not messages:
            return ()
        segments, has_other_end = self._behind_answer(messages)
        if has_other_end:
            self._cut(len(session.tape) - 1)
        return segments

    def _behind_answer(self, messages: Sequence[Message]) -> tuple[tuple[Segment, ...], bool]:
        """What `messages` append; true where the model ended its turn by another token than the template does: the
        template's is written in its place."""
        had_calls = bool(self.messages and self.messages[-1].tool_calls)
        segments = self.continuation.suffix(messages, had_calls=had_calls, tools=self._template_tools())
        last = self.session.tape.tokens[-1]
        vocabulary = self.session.engine.vocabulary
        if not vocabulary.is_eog(last):
            return segments, False
        drawn = vocabulary.piece(last).decode("utf-8", "replace")
        stripped = strip_leading(segments, drawn)
        return (segments, True) if stripped is None else (stripped, False)

    # -- what is to come --------------------------------------------------------------------------------

    def foresee(self, texts: Sequence[Message], others: Sequence[Message]) -> tuple[list[int], int]:
        """What the tape will begin with, whether it goes on with `texts` or with `others`: (tokens, head as in Plan).

        Nothing changes. No tokens where earlier ones would change. Raises TemplateError.
        """
        one, head = self._tape_with(texts)
        other, _ = self._tape_with(others)
        count = 0
        for token, same in zip(one, other, strict=False):
            if token != same:
                break
            count += 1
        return one[:count], head if head <= count else 0

    def _tape_with(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        messages = (*self._postponed, *messages)
        tape, encode = self.session.tape, self.session.engine.vocabulary.encode
        if not self._is_begun:
            entries = self._with_bos(encode(self._start(messages)))
            head = 0 if len(tape) else self._head_of(entries)
            return [token for token, _ in entries], head
        if any(message.role == "user" for message in messages):
            is_thought = self.reasoning_policy == "excise" and SpanKind.REASONING in tape.kinds
            if is_thought or self.reasoning_policy == "render":
                return [], 0
        segments, has_other_end = self._behind_answer(messages)
        kept = tape.tokens[:-1] if has_other_end else tape.tokens
        return [*kept, *(token for token, _ in encode(segments))], 0

    def _with_bos(self, entries: list[tuple[int, SpanKind]]) -> list[tuple[int, SpanKind]]:
        vocabulary = self.session.engine.vocabulary
        bos = vocabulary.bos
        if bos is None or not vocabulary.adds_bos or (entries and entries[0][0] == bos):
            return entries
        return [(bos, SpanKind.GLUE), *entries]

    def group_entries(self, index: int, messages: Sequence[Message]) -> list[tuple[int, SpanKind]]:
        """The tokens that `messages` take, appended at once where message `index` begins. Raises TemplateError."""
        had_calls = index > 0 and bool(self.messages[index - 1].tool_calls)
        segments = self.continuation.suffix(messages, had_calls=had_calls, tools=self._template_tools())
        vocabulary, start = self.session.engine.vocabulary, self.starts[index]
        before = self.session.tape.tokens[start - 1]
        if vocabulary.is_eog(before):
            drawn = vocabulary.piece(before).decode("utf-8", "replace")
            segments = strip_leading(segments, drawn) or segments
        return vocabulary.encode(segments)

    # -- bookkeeping ------------------------------------------------------------------------------------

    def commit(self, plan: Plan) -> None:
        """The plan's tokens are on the tape now."""
        self._before = None
        start = len(self.session.tape) - len(plan.entries)
        # An open answer goes on where nothing is said.
        is_same = not plan.messages and self.is_answer_open
        if not self._is_begun:
            start = 0
            self._is_begun = True
        self.messages += plan.messages
        self.starts += [start] * len(plan.messages)
        self._answer_start = self.starts[-1] if is_same else len(self.session.tape)
        self._postponed.clear()

    def reopen(self, position: int, token: int | None = None) -> None:
        """Cuts the tape inside an answer, which goes on from there; `token` is put at the cut. Raises ConfigError.

        What is left of the answer is the last message, until the answer has gone on.
        """
        index = max((i for i, start in enumerate(self.starts) if start <= position), default=-1)
        session = self.session
        start = self.starts[index] if index >= 0 else 0
        is_answer = start > 0 and self.messages[index].role == "assistant" and position <= len(session.tape)
        # Where the prompt was rendered anew, earlier messages may stand elsewhere than they did.
        if not is_answer or not _ANSWER_KINDS.issuperset(session.tape.kinds[start:position]):
            raise ConfigError(
                f"position {position} is in no answer of this chat.",
                hint="Give the position of a token that the model wrote (Step.position), or the end of the answer.",
            )
        if token is not None and not 0 <= token < session.engine.vocabulary.size:
            raise ConfigError(f"token {token} is not in the vocabulary.", hint="Take one from Rows.ids.")
        kinds = session.tape.kinds
        kind = kinds[position] if position < len(kinds) else kinds[-1]
        kind = kind if kind in _ANSWER_KINDS else SpanKind.TEXT
        self._postponed.clear()
        session.rewind(position)
        if token is not None:
            is_end = session.engine.vocabulary.is_eog(token)
            session.write_pending(int(token), SpanKind.GLUE if is_end else kind)
        del self.messages[index + 1 :]
        del self.starts[index + 1 :]
        self.pins = {pin for pin in self.pins if pin <= index}
        self.messages[index] = self._read_answer(start)

    def _read_answer(self, start: int) -> Message:
        """The message that the tape from `start` on spells."""
        vocabulary = self.session.engine.vocabulary
        tokens = self.session.tape.tokens[start:]
        prompt = self._prompt_before(start)
        texts = self.format.texts()
        parser = OutputParser(
            self.format,
            prefix=prompt,
            tools=self.offered,
            expects_calls=bool(self.offered),
            control_marks={text for text in vocabulary.special_tokens if text and text in texts},
        )
        decoder = TextDecoder()
        for token in tokens:
            if not vocabulary.is_eog(token):
                text = decoder.feed(vocabulary.piece(token))
                if text:
                    parser.feed(text, is_control=vocabulary.is_control(token))
        parser.finish()
        return Message("assistant", parser.text, reasoning=parser.reasoning, tool_calls=tuple(parser.calls))

    @property
    def is_answer_open(self) -> bool:
        """The tape ends inside an answer, which was cut, cancelled or limited: without a new message it goes on."""
        tape = self.session.tape
        return (
            bool(self.messages)
            and self.messages[-1].role == "assistant"
            and not self._postponed
            and self._is_begun
            and not self.session.engine.vocabulary.is_eog(tape.tokens[-1])
        )

    def open_answer(self) -> OpenAnswer:
        """The answer that goes on."""
        start = self.starts[-1]
        tokens = tuple(self.session.tape.tokens[start:])
        return OpenAnswer(start, tokens, self._prompt_before(start), self.messages[-1])

    def _prompt_before(self, start: int) -> str:
        """The generation prompt that the answer at `start` continues."""
        tape, first = self.session.tape, start
        while first and tape.kinds[first - 1] == SpanKind.GLUE:
            first -= 1
        return self.session.engine.vocabulary.text_of(tape.tokens[first:start]).decode("utf-8", "replace")

    def answered(self, message: Message) -> None:
        """An answer was decoded, from the end of the last plan on, or an open one has gone on."""
        if self.starts and self.starts[-1] == self._answer_start and self.messages[-1].role == "assistant":
            self.messages.pop()
            self.starts.pop()
        tape = self.session.tape
        is_begun = len(tape) > self._answer_start and not self.session.engine.vocabulary.is_eog(
            tape.tokens[-1]
        )
        # An answer that was stopped inside its first mark or call has nothing to show yet, and may go on.
        if message.content or message.reasoning or message.tool_calls or is_begun:
            self.messages.append(message)
            self.starts.append(self._answer_start)

    @property
    def is_begun(self) -> bool:
        """The messages are on the tape; else all of them are still to be rendered."""
        return self._is_begun

    @property
    def answer_start(self) -> int:
        """The tape length at which the newest answer began, or begins."""
        return self._answer_start

    @property
    def postponed(self) -> tuple[Message, ...]:
        """Messages that wait to be appended with the next ones."""
        return tuple(self._postponed)

    def wait_with(self, messages: Sequence[Message]) -> None:
        """Lets these messages wait in the place of those that do."""
        self._postponed = list(messages)

    def replace(
        self,
        messages: Sequence[tuple[Message, int | None]],
        starts: Sequence[int],
        *,
        answer_start: int,
        is_begun: bool,
    ) -> None:
        """Other messages stand on the tape now: each with its index before (None: it is new) and its start."""
        pins = {new for new, (_, old) in enumerate(messages) if old in self.pins}
        self._before = None
        self.messages = [message for message, _ in messages]
        self.starts = list(starts)
        self.pins = pins
        self._answer_start = answer_start
        self._is_begun = is_begun

    def pin(self, index: int, *, is_pinned: bool = True) -> None:
        """Keeps the turn of message `index` when the context fills, or no longer. Raises ConfigError."""
        if not 0 <= index < len(self.messages):
            raise ConfigError(
                f"there is no message {index}: the chat has {len(self.messages)}.",
                hint="Give an index into chat.messages.",
            )
        # A plain int also of a bool or a number of numpy's: it is written into saved chats.
        if is_pinned:
            self.pins.add(int(index))
        else:
            self.pins.discard(index)

    def postpone(self, messages: Sequence[Message]) -> None:
        """These messages could not be appended; they go with the next ones, so that nothing is lost."""
        self._postponed += messages

    def rewind(self, count: int) -> None:
        """Keeps the first `count` messages. Raises ConfigError for a number out of range.

        Of messages that were appended together (the results of parallel calls), those to keep wait for the next
        message.
        """
        if not 0 <= count <= len(self.messages):
            raise ConfigError(
                f"cannot rewind to message {count}: the chat has {len(self.messages)}.",
                hint="Give a number from 0 to that.",
            )
        self._postponed.clear()
        if count == len(self.messages):
            return
        start = self.starts[count]
        if self.reasoning_policy == "render" and self._is_begun:
            # The next prompt is rendered anew, and shares what it can with the tape.
            start = 0
        if start == 0:
            # The system turn stays computed: the next first prompt begins with the same tokens.
            kinds = self.session.tape.kinds
            start = kinds.index(SpanKind.USER) if SpanKind.USER in kinds else 0
            self._is_begun = False
            self.starts = [0] * len(self.starts)
        self.session.rewind(start)
        self._answer_start = start
        if start > 0:
            # Messages that were appended together leave the tape together; those to keep are appended again.
            first = count
            while first and self.starts[first - 1] == start and self.messages[first - 1].role != "assistant":
                first -= 1
            self._postponed += self.messages[first:count]
            count = first
        del self.messages[count:]
        del self.starts[count:]
        self.pins = {index for index in self.pins if index < count}

    def state(self) -> dict[str, Any]:
        """Messages and where they stand, as JSON values: what `restore` takes."""
        return {
            "messages": msgspec.to_builtins(self.messages),
            "starts": self.starts,
            "is_begun": self._is_begun,
            "pins": sorted(self.pins),
            "postponed": msgspec.to_builtins(self._postponed),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state. Raises SessionError."""
        try:
            self.messages = msgspec.convert(state["messages"], list[Message])
            self.starts = msgspec.convert(state["starts"], list[int])
            self._postponed = msgspec.convert(state["postponed"], list[Message])
            self._is_begun = bool(state["is_begun"])
            self.pins = set(msgspec.convert(state.get("pins", []), list[int]))
        except (KeyError, msgspec.ValidationError) as error:
            raise SessionError(
                f"the saved chat's messages cannot be read: {error}.",
                hint="It was written by another version.",
            ) from error
        self._answer_start = len(self.session.tape)

    def fork(self, session: Session) -> Conversation:
        """The same conversation on a fork of its session."""
        other = Conversation(
            session,
            self.template,
            self.continuation,
            self.format,
            system=self.system,
            specs=self.specs,
            preamble=self.preamble,
            history=self.messages,
        )
        other.starts = list(self.starts)
        other._postponed = list(self._postponed)
        other._is_begun = self._is_begun
        other.pins = set(self.pins)
        other._answer_start = self._answer_start
        other.offered = self.offered
        other.reasoning_policy = self.reasoning_policy
        return other


def _prefix_of(segments: Sequence[Segment]) -> str:
    """The template's own text behind the last content: what the model's output continues."""
    parts: list[str] = []
    for segment in reversed(segments):
        if not segment.is_template:
            break
        parts.append(segment.text)
    return "".join(reversed(parts))
