"""Readers written as scripts: a generator that asks for text and tells what it means.

A script reads from a `Source`; wherever it needs more than has come, it yields. `Scripted` runs it as a
`CallReader`: fed in pieces of any size, the script sees one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from edgellm.chat.formats.json_text import BadJson, JsonText
from edgellm.chat.formats.wire import Closed, Complete, Enter, NotACall, Signal

SPACE = " \t\r\n"


class Ended(Exception):
    """The output has ended while the script was waiting for more."""


class Fault(ValueError):
    """What was read is no call: `unread` characters at the end of what was taken are given back.

    `is_whole`: it was written to its end, and can only have been meant as a call.
    """

    def __init__(self, message: str, unread: int = 0, *, is_whole: bool = False) -> None:
        super().__init__(message)
        self.unread = unread
        self.is_whole = is_whole


class Source:
    """The text that has come and was not taken yet, and the signals told so far."""

    __slots__ = ("_beginning", "_control", "_is_ended", "_recorded", "_signals", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._beginning = ""
        self._control = ""
        self._is_ended = False
        self._recorded: list[str] | None = None
        self._signals: list[Signal] = []

    def tell(self, signal: Signal) -> None:
        """Give a signal to the parser."""
        self._signals.append(signal)

    @property
    def rest(self) -> int:
        """Characters that have come and were not taken: the `unread` of a signal that ends something here."""
        return len(self._text)

    @property
    def is_ended(self) -> bool:
        """No more text will come."""
        return self._is_ended

    @property
    def is_begun(self) -> bool:
        """The output has ended, and what is left of it is the beginning of a mark that was looked for."""
        return bool(self._text) and self._text == self._beginning

    def _look_for(self, texts: Sequence[str]) -> bool:
        """Whether what has come may grow to one of `texts`."""
        may_grow = any(len(text) > len(self._text) and text.startswith(self._text) for text in texts)
        if may_grow and self._is_ended:
            self._beginning = self._text
        return may_grow

    def more(self) -> Generator[None, None, None]:
        """Wait for more text. Raises Ended at the end of the output."""
        if self._is_ended:
            raise Ended
        yield

    def peek(self, count: int = 1) -> Generator[None, None, str]:
        """The next `count` characters, untaken; fewer at the end of the output."""
        while len(self._text) < count and not self._is_ended:
            yield from self.more()
        return self._text[:count]

    def take(self, count: int = 1) -> Generator[None, None, str]:
        """The next `count` characters. Raises Ended."""
        while len(self._text) < count:
            yield from self.more()
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def skip_space(self) -> Generator[None, None, str]:
        """Takes white space up to the next other character (or the end), and gives it."""
        taken = ""
        while True:
            body = self._text.lstrip(SPACE)
            taken += self._text[: len(self._text) - len(body)]
            self._text = body
            if body or self._is_ended:
                return taken
            yield from self.more()

    def one_of(self, texts: Sequence[str]) -> Generator[None, None, str]:
        """Takes and gives the longest of `texts` that comes next; "" (and takes nothing) where none does."""
        while True:
            found = max((text for text in texts if self._text.startswith(text)), key=len, default="")
            if not self._look_for(texts) or self._is_ended:
                self._text = self._text[len(found) :]
                return found
            yield from self.more()

    def comes(self, texts: Sequence[str]) -> Generator[None, None, bool]:
        """Whether one of `texts` comes next; nothing is taken. True at the end of the output."""
        while True:
            if any(self._text.startswith(text) for text in texts):
                return True
            may_grow = self._look_for(texts)
            if self._is_ended:
                return not self._text
            if not may_grow:
                return False
            yield from self.more()

    def skip_to(self, stops: Sequence[str], limit: int) -> Generator[None, None, str]:
        """Takes and gives the first of `stops` and drops what stands before it, if that is no longer than `limit`.

        Else "" is given and nothing taken.
        """
        longest = max(map(len, stops))
        while True:
            found = [(at, -len(stop), stop) for stop in stops if 0 <= (at := self._text.find(stop)) <= limit]
            if found:
                at, _, stop = min(found)
                self._text = self._text[at + len(stop) :]
                return stop
            if self._is_ended or len(self._text) >= limit + longest:
                return ""
            yield from self.more()

    def record(self) -> None:
        """From here on what is taken is kept for `recorded`."""
        self._recorded = [self._text]

    def recorded(self) -> str:
        """What was taken, and not put back, since `record`. Ends the recording."""
        whole = "".join(self._recorded or ())
        self._recorded = None
        return whole[: len(whole) - len(self._text)]

    def put_back(self, text: str) -> None:
        """Text that was taken comes next again."""
        self._text = text + self._text

    def expect(self, *texts: str) -> Generator[None, None, str]:
        """Takes one of `texts`, of which the output must go on with one. Raises Fault."""
        found = yield from self.one_of(texts)
        if not found:
            if self._is_ended and not self._text:
                raise Ended
            raise Fault(f"{' or '.join(map(repr, texts))} was expected, not {self._text[:1]!r}")
        return found

    def until(
        self, stops: Sequence[str], give: Callable[[str], None] | None = None, limit: int = 0
    ) -> Generator[None, None, tuple[str, str]]:
        """Takes text up to the first of `stops`, and the stop: (text, stop).

        With `give`, text is handed out as soon as it is certain (and is not in the result). `limit` caps the
        length of the text. Raises Ended, and Fault for a control token inside.
        """
        taken: list[str] = []
        size = 0
        while True:
            at, stop = min(
                ((found, stop) for stop in stops if (found := self._text.find(stop)) >= 0),
                key=lambda item: (item[0], -len(item[1])),
                default=(len(self._text), ""),
            )
            if (
                stop
                and any(len(text) > len(stop) and text.startswith(self._text[at:]) for text in stops)
                and not self._is_ended
            ):
                # A longer stop may still begin here.
                stop, at = "", at
            elif not stop:
                at -= overlap(self._text, stops)
            piece, self._text = self._text[:at], self._text[at:]
            if limit and size + len(piece) > limit:
                # To the character, so that it does not matter how the text was cut.
                self._text = piece[limit - size :] + self._text
                raise Fault(f"it is longer than {limit} characters")
            size += len(piece)
            if piece:
                if give:
                    give(piece)
                else:
                    taken.append(piece)
            if stop:
                self._text = self._text[len(stop) :]
                return "".join(taken), stop
            if self._is_ended and self._text:
                rest, self._text = self._text, ""
                (give or taken.append)(rest)
            yield from self._more_of(stops)

    def json(self, give: Callable[[str], None] | None = None) -> Generator[None, None, str]:
        """Takes one JSON value and gives it as clean JSON text (see `JsonText`); `give` gets it as it comes.

        Raises Ended, and Fault for what cannot be JSON: the character at fault stays untaken.
        """
        value = JsonText()
        whole: list[str] = []
        while True:
            fault: BadJson | None = None
            try:
                end = value.feed(self._text)
            except BadJson as error:
                end, fault = error.at, error
            self._text = self._text[end:]
            if clean := value.take():
                whole.append(clean)
                if give:
                    give(clean)
            if fault:
                raise Fault(str(fault))
            if value.is_done:
                return "".join(whole)
            if self._is_ended:
                # A number ends only at what follows it.
                value.feed(" ")
                if value.is_done and (clean := value.take()):
                    whole.append(clean)
                    if give:
                        give(clean)
                    return "".join(whole)
            yield from self._more_of(())

    def _more_of(self, allowed: Sequence[str]) -> Generator[None, None, None]:
        yield from self.more()
        if self._control and not any(self._control in text for text in allowed):
            raise Fault(f"the control token {self._control!r} stands inside it")

    # -- what `Scripted` uses -----------------------------------------------------------------------------

    def push(self, text: str, control: str) -> None:
        """More text has come; `control` is its spelling where it is a control token."""
        self._text += text
        self._control = control
        if self._recorded is not None:
            self._recorded.append(text)

    def end(self) -> None:
        """The output has ended."""
        self._is_ended, self._control = True, ""

    def drain(self) -> list[Signal]:
        """The signals told since the last time."""
        signals, self._signals = self._signals, []
        return signals

    def clear(self) -> None:
        """What was not taken is given back to the parser."""
        self._text = ""


Script = Callable[[Source], Generator[None, None, None]]


class Scripted:
    """Runs `script` as a reader. It may tell several `Complete`; `is_open` is true until it returns.

    A script that returns without a `Closed`, `Enter` or `NotACall` of its own has `Closed` the section. Where the
    output ends inside a mark behind a call, that belongs to it.
    Raises nothing: a `Fault` becomes `NotACall`, an end in the middle too.
    """

    def __init__(self, script: Script) -> None:
        self._source = Source()
        self._run = script(self._source)
        self._is_open = True
        self._has_call = False

    @property
    def is_open(self) -> bool:
        return self._is_open

    def feed(self, text: str, *, is_control: bool = False) -> tuple[int, list[Signal]]:
        self._source.push(text, text if is_control else "")
        return len(text), self._advance()

    def finish(self) -> list[Signal]:
        if not self._is_open:
            return []
        self._source.end()
        return self._advance()

    def _advance(self) -> list[Signal]:
        source = self._source
        signals: list[Signal] = []
        try:
            next(self._run)
            signals = source.drain()
            self._has_call = self._has_call or any(isinstance(signal, Complete) for signal in signals)
        except StopIteration:
            self._is_open = False
            signals = source.drain()
            last = signals[-1] if signals else None
            if isinstance(last, (NotACall, Enter)):
                pass
            elif source.is_begun and (self._has_call or isinstance(last, Complete)):
                signals = [signal for signal in signals if not isinstance(signal, Closed)]
                signals.append(Closed())
            elif not isinstance(last, Closed) and not (
                isinstance(last, Complete) and last.unread == source.rest
            ):
                signals.append(Closed(source.rest))
        except Ended:
            self._is_open = False
            signals = [*source.drain(), NotACall("the output ended inside it", is_cut=True)]
        except ValueError as error:
            # A Fault, or what only the whole of a value shows (a number out of bounds).
            unread = error.unread if isinstance(error, Fault) else 0
            is_whole = isinstance(error, Fault) and error.is_whole
            self._is_open = False
            signals = [*source.drain(), NotACall(str(error), source.rest + unread, is_whole=is_whole)]
        return signals


def overlap(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        ending = text[-length:]
        if any(mark.startswith(ending) for mark in marks):
            return length
    return 0
