"""The meters page: context by owner, prefill and decode, memory, the machine, and warnings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgellm_tui.meters import (
    context_bar,
    context_shares,
    guesses_words,
    ledger_lines,
    outlook_lines,
    prefill_rate,
    shares_text,
    size_words,
)
from edgellm_tui.pages import PageView
from edgellm_tui.rows import Pane, rule

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgellm_tui.app import EdgeApp
    from edgellm_tui.machine import Machine

_REFRESH_S = 2.0


class MetersPage(PageView):
    """Redrawn with each frame while something happens, and every two seconds."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._shown = ""

    def compose(self) -> ComposeResult:
        """One text."""
        yield Pane()

    def on_mount(self) -> None:
        """Machine figures change by themselves."""
        self.set_interval(_REFRESH_S, self.tick)

    def tick(self) -> None:
        """Redraws while the page is in front."""
        if self.edge.page is self:
            self.edge.pager.guarded(self.frame)

    def show(self) -> None:
        """Takes up everything."""
        self.frame()
        self.query_one(Pane).focus()

    def frame(self) -> None:
        """Writes the figures, where they differ."""
        app = self.edge
        app.accounts.look(app.used_tokens)
        app.accounts.refresh()
        # Two columns beside the text, and the scroll bar.
        text = meters_text(app, app.accounts.machine, max(40, app.size.width - 3))
        if text != self._shown:
            self._shown = text
            self.query_one(Pane).set(text)

    def on_resize(self) -> None:
        """The bar is as wide as the screen."""
        self.call_after_refresh(self.edge.pager.guarded, self.frame)


def meters_text(app: EdgeApp, machine: Machine, width: int) -> str:
    """All figures as text of at most `width` cells a line."""
    talk, strand, glyphs = app.talk, app.talk.current, app.glyphs
    runtime, chat = talk.runtime, strand.chat
    if runtime is None or chat is None:
        return "no chat is open yet"
    ledger = chat.ledger()
    shares = context_shares(ledger)
    used, n_ctx = sum(share.tokens for share in shares), runtime.n_ctx
    rate = prefill_rate(strand.usage, ledger)
    lines = [rule(f"context  {used} / {n_ctx} tokens  {100 * used // max(1, n_ctx)} %", width, glyphs)]
    lines += [context_bar(shares, n_ctx, width), *_wrapped(shares_text(shares, n_ctx), width)]
    if app.accounts.outlook is not None:
        lines += outlook_lines(app.accounts.outlook, rate)
    lines += ["", rule("speed", width, glyphs), *_speed(app, rate)]
    lines += ["", rule("memory and machine", width, glyphs)]
    for line in _machine(app, machine):
        lines += _wrapped(line, width)
    found = app.accounts.worries(used)
    lines += ["", rule("warnings", width, glyphs)]
    lines += [f"! {each.text}" for each in found] or ["none"]
    lines += ["", rule("whose the context is, and what computing it again costs", width, glyphs)]
    for line in ledger_lines(ledger):
        lines += [line] if len(line) <= width else _wrapped(line, width)
    return "\n".join(lines)


def _speed(app: EdgeApp, rate: float | None) -> list[str]:
    strand = app.talk.current
    usage, last = strand.usage, strand.turn_usage
    when = "now" if strand.is_running else "last"
    now = f"{strand.tok_s:.1f} tok/s {when}" if strand.tok_s else "idle"
    lines = [
        f"prompts  {f'{rate:.1f} tok/s' if rate else 'not measured yet'}   decode  {now}"
        + (f", {usage.decode_tok_s:.1f} tok/s in all" if usage.decode_tok_s else "")
    ]
    first = f"{strand.first_token_s:.2f} s" if strand.first_token_s is not None else "-"
    done, total = strand.prefill
    lines.append(f"time to first token {first}   {_prefill(app, done, total)}")
    if last is not None and last.legs:
        new, reused = last.prefill_tokens, last.reused_tokens
        share = 100 * reused // max(1, reused + new)
        lines.append(
            f"last turn: {reused} tokens reused ({share} %), {new} computed, {last.decode_tokens} decoded"
        )
    guesses = guesses_words(strand.chat.speculation, usage)
    if guesses:
        lines.append(guesses)
    return lines


def _prefill(app: EdgeApp, done: int, total: int) -> str:
    strand = app.talk.current
    if strand.state != "PREFILL" or not total:
        return "no prefill is running"
    elapsed = app.worker.clock() - strand.prefill_started
    left = f", {elapsed * (total - done) / done:.0f} s left" if done and elapsed > 0 else ""
    return f"PREFILL {done} of {total} tokens, {100 * done // total} %{left}"


def _machine(app: EdgeApp, machine: Machine) -> list[str]:
    runtime = app.talk.runtime
    info = runtime.info
    options = runtime.options
    kv = ""
    if info is not None and options.kv_type_k == options.kv_type_v == "f16":
        kv = f"   KV of {app.used_tokens} tokens {size_words(info.kv_bytes_per_token * app.used_tokens)}"
    load = f"{machine.load:.1f}" if machine.load is not None else "?"
    lines = [
        f"this process {size_words(machine.rss_bytes)}   available {size_words(machine.available_bytes)}"
        f"   swap used {size_words(machine.swap_used_bytes)}{kv}",
        f"threads {runtime.threads}   cores {machine.cores}   load {load}"
        f"   KV cache {options.kv_type_k}/{options.kv_type_v}",
    ]
    board: list[str] = []
    if machine.clock_hz is not None:
        most = f" of {machine.clock_most_hz / 1e9:.1f}" if machine.clock_most_hz else ""
        board.append(f"clock {machine.clock_hz / 1e9:.1f}{most} GHz")
    if machine.heat_c is not None:
        board.append(f"heat {machine.heat_c:.0f} C")
    board.append(f"throttled: {', '.join(machine.throttled) or 'no word of it'}")
    lines.append("   ".join(board))
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Parts (two spaces or more between them) over as many lines as they need."""
    lines, line = [], ""
    for part in re.split(" {2,}", text):
        if line and len(line) + 2 + len(part) > width:
            lines.append(line)
            line = part
        else:
            line = f"{line}  {part}" if line else part
    return [*lines, line]
