"""Slash commands of the prompt."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm import ConfigError, typed_file, typed_place, typed_words
from edgellm_tui import edits
from edgellm_tui.adapters import entry_words
from edgellm_tui.export import KINDS, export_kind, export_path, exported, write_export
from edgellm_tui.meters import guesses_words, ledger_lines
from edgellm_tui.plain import one_line, visible
from edgellm_tui.settings import SPECULATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm import Ledger
    from edgellm_tui.app import EdgeApp


def obey(app: EdgeApp, line: str) -> None:
    """Runs one command. Raises ConfigError for an unknown one, and what the command raises."""
    name, _, rest = line[1:].strip().partition(" ")
    found = COMMANDS.get(name) or COMMANDS.get(_ALIASES.get(name, ""))
    if found is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise ConfigError(
            f"There is no command /{one_line(name, 40)}.",
            hint=(f"Did you mean /{near[0]}? " if near else "/help lists them. ")
            + "A message that begins with / needs a space before it.",
        )
    if rest.strip() and not found[1] and found is not COMMANDS["help"]:
        raise ConfigError(
            f"/{one_line(name, 40)} takes nothing behind it.", hint="/help lists what each command takes."
        )
    found[0](app, rest.strip())


def _help(app: EdgeApp, _rest: str) -> None:
    lines = [f"/{name} {form}".rstrip().ljust(22) + summary for name, (_, form, summary) in COMMANDS.items()]
    lines.append(
        "@FILE in a message attaches a text file; ctrl+j begins a new line; ctrl+p lists all actions."
    )
    app.talk.current.note("\n".join(lines))


def _new(app: EdgeApp, _rest: str) -> None:
    app.action_new_chat()


def _retry(app: EdgeApp, _rest: str) -> None:
    edits.retry(app)


def _edit(app: EdgeApp, _rest: str) -> None:
    edits.edit(app)


def _continue(app: EdgeApp, _rest: str) -> None:
    edits.resume(app)


def _rewind(app: EdgeApp, rest: str) -> None:
    if rest and not (rest.isascii() and rest.isdigit()):
        raise ConfigError(f"{rest[:40]!r} is not a number of turns.", hint="Write, for example, /rewind 2.")
    edits.rewind(app, int(rest or 1))


def _copy(app: EdgeApp, rest: str) -> None:
    if rest not in ("", "all"):
        raise ConfigError(f"/copy {rest[:40]} is unknown.", hint="Write /copy, or /copy all.")
    strand = app.talk.current
    app.copy(strand.last_answer if not rest else "\n\n".join(block.plain() for block in strand.blocks))


def _export(app: EdgeApp, rest: str) -> None:
    kind, file = export_kind(rest)
    export(app, kind, file)


def export(app: EdgeApp, kind: str, file: str = "", then: Callable[[str], None] | None = None) -> None:
    """Writes the current branch to a file of one of KINDS, and says so in the chat (and to `then`).

    Raises ConfigError where nothing was said yet.
    """
    strand, talk = app.talk.current, app.talk
    if strand.chat is None or not strand.title:
        raise ConfigError("There is nothing to export yet.", hint="Say something first.")
    path = export_path(talk.kept.title or strand.title, kind, file)

    def job() -> Path:
        strand.transcript.follow(strand.chat.messages)
        title = talk.kept.title or strand.title
        text = exported(kind, title, talk.model, strand.chat, strand.transcript, dict(strand.steps))
        return write_export(path, text)

    def done(written: Path) -> None:
        text = f"{KINDS[kind]} written to {written}"
        strand.note(text)
        if then is not None:
            then(text)

    talk.worker.submit(job, done, app.report)


def _attach(app: EdgeApp, rest: str) -> None:
    if not rest or not Path(rest).expanduser().is_file():
        raise ConfigError(
            f"There is no file {rest[:80]!r}.", hint="Write /attach FILE, or @FILE in a message."
        )
    if " " in rest:
        raise ConfigError("A path with spaces cannot be attached.", hint="Attach a link to it, or rename it.")
    app.prompt.insert(f"@{rest} ")


def _chats(app: EdgeApp, rest: str) -> None:
    app.run_worker(app.show_chats(rest))


def _rename(app: EdgeApp, rest: str) -> None:
    if not rest:
        raise ConfigError("/rename needs a title.", hint="Write /rename TITLE.")
    app.talk.kept.rename(rest)
    app.hint(f"this chat is called {one_line(rest, 60)} now")


def _fork(app: EdgeApp, _rest: str) -> None:
    if app.talk.current.chat is None:
        raise ConfigError("There is no chat yet.", hint="Wait for the model.")
    if app.worker.is_busy:
        raise ConfigError("An answer is being written.", hint="Esc stops it.")

    def then(strand: object) -> None:
        app.talk.show(app.talk.strands[strand.key])  # type: ignore[attr-defined]

    app.talk.fork(then)


def _branch(app: EdgeApp, rest: str) -> None:
    strands = list(app.talk.strands.values())
    if not rest:
        lines = [
            f"{'*' if strand is app.talk.current else ' '} {number}  {strand.name}  {one_line(strand.last_answer, 50)}"
            for number, strand in enumerate(strands, 1)
        ]
        app.talk.current.note("\n".join(lines))
        return
    found = [strand for number, strand in enumerate(strands, 1) if rest in (str(number), strand.name)]
    if not found:
        raise ConfigError(f"There is no branch {rest[:40]!r}.", hint="/branch lists them.")
    app.talk.show(found[0])


def _model(app: EdgeApp, rest: str) -> None:
    if rest:
        app.open_model(rest)
    else:
        app.run_worker(app.action_page("model"))


def _sampler(app: EdgeApp, rest: str) -> None:
    strand = app.talk.current
    if strand.chat is None:
        raise ConfigError("There is no chat yet.", hint="Wait for the model.")
    chain = app.settings.presets.get(rest, rest)

    def job() -> str:
        if chain:
            strand.chat.set_sampler(chain)
        return f"sampler: {strand.chat.chain.spec}   (seed {strand.chat.chain.seed})"

    app.talk.worker.submit(job, strand.note, app.report)


def _adapters(app: EdgeApp, rest: str) -> None:
    if not rest:
        app.run_worker(app.action_page("adapters"))
        return
    names = typed_words("adapters", rest)
    strand = app.talk.current

    def told(price: str) -> None:
        used = [entry_words(entry) for entry in app.adapters.used()]
        strand.note("\n".join([*map(visible, used or ["no adapters"]), price]))

    app.adapters.only([] if names == ["none"] else names, told, app.report)


def _speculate(app: EdgeApp, rest: str) -> None:
    strand = app.talk.current
    if strand.chat is None:
        raise ConfigError("There is no chat yet.", hint="Wait for the model.")
    if rest and rest not in SPECULATE:
        raise ConfigError(
            f"/speculate {one_line(rest, 40)} is unknown.", hint=f"Choose {', '.join(SPECULATE)}."
        )

    def job() -> str:
        if rest:
            strand.chat.set_speculation(rest)
        return guesses_words(strand.chat.speculation, strand.usage) or "guesses ahead: off"

    app.talk.worker.submit(job, strand.note, app.report)


def _pin(app: EdgeApp, _rest: str) -> None:
    edits.pin(app, app.conversation.chosen_block)


def _context(app: EdgeApp, _rest: str) -> None:
    strand = app.talk.current
    if strand.chat is None:
        raise ConfigError("There is no chat yet.", hint="Wait for the model.")

    def done(ledger: Ledger) -> None:
        strand.note("\n".join(ledger_lines(ledger)))

    app.talk.worker.submit(strand.chat.ledger, done, app.report)


def _system(app: EdgeApp, rest: str) -> None:
    if rest:
        app.settings.system = rest
        app.action_new_chat()
        app.hint("a new chat, with this system turn")
    else:
        chat = app.talk.current.chat
        system = chat.system if chat is not None else app.settings.system
        app.talk.current.note(visible(system) or "No system turn. /system TEXT begins anew with one.")


def _tools(app: EdgeApp, _rest: str) -> None:
    offered = {tool.name for tool in app.talk.offered()}
    lines = [
        f"{'*' if tool.name in offered else ' '} {tool.name:<16} {tool.spec.permission:<5} "
        + one_line(tool.spec.description.partition("\n")[0], 50)
        for tool in app.talk.tools
    ]
    app.talk.current.note("\n".join(lines) or "No tools are installed.")


def _stats(app: EdgeApp, _rest: str) -> None:
    strand, runtime = app.talk.current, app.talk.runtime
    lines = [f"context     {app.used_tokens:,} of {runtime.n_ctx if runtime else 0:,} tokens"]
    for title, usage in (("last turn", strand.turn_usage), ("all turns", strand.usage)):
        if usage is not None and usage.legs:
            lines.append(
                f"{title:<12}prefill {usage.prefill_tokens} tokens in {usage.prefill_s:.2f} s, decoded "
                f"{usage.decode_tokens} in {usage.decode_s:.2f} s ({usage.decode_tok_s:.1f} tokens/s), "
                f"reused {usage.all_reused_tokens}, rebuilt {usage.rebuilt_tokens}"
                + (f", {usage.free_tokens} came free by guesses" if usage.free_tokens else "")
            )
    strand.note("\n".join(lines))


def _save(app: EdgeApp, rest: str) -> None:
    strand = app.talk.current
    if not rest:
        app.talk.kept.save(lambda: app.hint("saved"))
        return
    path = typed_place("save", rest)

    def saved(count: int) -> None:
        strand.note(f"all {count} branches saved in {path}" if count > 1 else f"saved in {path}")

    app.talk.save_file(path, saved)


def _load(app: EdgeApp, rest: str) -> None:
    if not rest:
        raise ConfigError("/load needs a file.", hint="Write /load FILE, or choose a chat with ctrl+o.")
    app.talk.open_file(typed_file("load", rest))


def _theme(app: EdgeApp, rest: str) -> None:
    if rest not in app.available_themes:
        names = ", ".join(sorted(app.available_themes))
        raise ConfigError(f"There is no theme {rest[:40]!r}.", hint=f"There are: {names}.")
    app.theme = app.settings.theme = rest


def _stop(app: EdgeApp, _rest: str) -> None:
    app.worker.stop()


def _quit(app: EdgeApp, _rest: str) -> None:
    app.run_worker(app.action_quit())


_ALIASES = {
    "exit": "quit",
    "q": "quit",
    "?": "help",
    "h": "help",
    "go": "continue",
    "search": "chats",
    "sessions": "chats",
}
COMMANDS: dict[str, tuple[Callable[[EdgeApp, str], None], str, str]] = {
    # name: (what runs, its arguments, what it does)
    "help": (_help, "", "these lines"),
    "new": (_new, "", "begin a new chat"),
    "edit": (_edit, "", "change your last message and send it again, as a branch"),
    "retry": (_retry, "", "another answer to your last message, as a branch"),
    "continue": (_continue, "", "let a stopped answer go on"),
    "rewind": (_rewind, "[N]", "go back to before the last N turns, as a branch"),
    "fork": (_fork, "", "a branch that begins here"),
    "branch": (_branch, "[NAME]", "list branches, or switch to one"),
    "stop": (_stop, "", "stop the answer (esc)"),
    "copy": (_copy, "[all]", "copy the last answer, or all"),
    "export": (_export, "[KIND] [FILE]", "write the chat to a file: md, json, html, jsonl"),
    "attach": (_attach, "FILE", "attach a text file to the message"),
    "chats": (_chats, "[WORDS]", "list, search, rename and delete chats (ctrl+o)"),
    "rename": (_rename, "TITLE", "give this chat a title"),
    "save": (_save, "[FILE]", "save now; with a file: all branches, there"),
    "load": (_load, "FILE", "go on with a chat saved in a file, and its branches"),
    "model": (_model, "[NAME]", "choose a model, or load this one"),
    "sampler": (_sampler, "[CHAIN]", "show the chain, or draw from this one or a preset"),
    "adapters": (
        _adapters,
        "[FILE]",
        "LoRA and control vectors; go on with FILE:SCALE ..., or none (ctrl+g)",
    ),
    "speculate": (_speculate, "[MODE]", "show how it guesses ahead, or choose: off, auto, ngram"),
    "system": (_system, "[TEXT]", "show the system turn, or begin anew with another"),
    "tools": (_tools, "", "the tools, * those that are offered"),
    "stats": (_stats, "", "tokens, speed and context"),
    "pin": (
        _pin,
        "",
        "keep the chosen turn, else the newest, when the context fills; once more: no longer (P)",
    ),
    "context": (_context, "", "who owns the context, and what computing it again would cost"),
    "theme": (_theme, "NAME", "other colours"),
    "quit": (_quit, "", "leave"),
}
