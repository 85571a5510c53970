"""The commands of the line chat: /help, /rewind, /branch and so on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgellm.cli.arguments import SPECULATE, nearest
from edgellm.cli.render import escape, one_line, styled, table
from edgellm.cli.talk import is_branch_name
from edgellm.errors import ConfigError
from edgellm.typed import typed_file, typed_place, typed_words

if TYPE_CHECKING:
    from edgellm.cli.talk import Talk

_PREVIEW = 72


class Leave(Exception):
    """The user wants to leave."""


def obey(talk: Talk, line: str) -> None:
    """Runs one command. Raises ConfigError for one that is unknown, Leave, and what the command raises."""
    name, _, rest = line[1:].strip().partition(" ")
    found = COMMANDS.get(name) or COMMANDS.get(_ALIASES.get(name, ""))
    if found is None:
        near = nearest(name, COMMANDS)
        raise ConfigError(
            f"There is no command /{one_line(name, 40)}.",
            hint=(f"Did you mean /{near}? " if near else "/help lists them. ")
            + "A message that begins with / needs a space before it.",
        )
    if rest.strip() and not found[1] and found is not COMMANDS["help"]:
        raise ConfigError(
            f"/{one_line(name, 40)} takes nothing behind it.", hint="/help lists what each command takes."
        )
    found[0](talk, rest.strip())


def _help(_talk: Talk, _rest: str) -> None:
    print(table([(f"/{name} {form}".rstrip(), summary) for name, (_, form, summary) in COMMANDS.items()]))
    print("A line that ends in \\ goes on in the next one. Ctrl-C stops the answer, Ctrl-D leaves.")


def _tools(talk: Talk, _rest: str) -> None:
    if not len(talk.toolset):
        print("No tools. Offer some: edgellm chat --tool NAME")
        return
    rows = [(spec.name, spec.permission, spec.description.partition("\n")[0]) for spec in talk.toolset.specs]
    print(table(rows, ("tool", "permission", "what it does")))


def _sampler(talk: Talk, rest: str) -> None:
    if rest:
        from edgellm.cli.samplers import discover_when_needed

        discover_when_needed()
        talk.chat.set_sampler(rest)
    chain = talk.chat.chain
    print(f"{chain.spec}   (seed {chain.seed})")


def _adapters(talk: Talk, rest: str) -> None:
    from edgellm.models.adapter_set import adapter_set

    chat = talk.chat
    if rest:
        words = typed_words("adapters", rest)
        again = chat.set_adapters(adapter_set(*([] if words == ["none"] else words)))
        if again:
            print(f"The next turn computes {again} tokens again.")
    used = chat.adapters
    for one in (*used.lora, *used.control):
        kind = "LoRA adapter" if one in used.lora else "control vector"
        print(f"{kind} {escape(one.path)}, scale {one.scale:g}")
    if not (used.lora or used.control):
        print("No adapters.")


def _speculate(talk: Talk, rest: str) -> None:
    if rest:
        if rest not in SPECULATE:
            raise ConfigError(
                f"/speculate {one_line(rest, 40)} is unknown.", hint=f"Choose {', '.join(SPECULATE)}."
            )
        from edgellm.cli.opening import check_guesses

        check_guesses(rest, talk.runtime.options.draft_model)
        talk.chat.set_speculation(rest)
    usage = talk.chat.usage
    print(f"{talk.chat.speculation}   ({usage.free_tokens} of {usage.decode_tokens} tokens came free)")


def _when_full(talk: Talk, rest: str) -> None:
    if rest:
        from edgellm.cli.opening import check_policy

        check_policy(rest)
        talk.chat.set_context_policy(rest)
    print(talk.chat.context_policy)


def _pin(talk: Talk, rest: str) -> None:
    if rest:
        talk.pin(_number(rest, "/pin 1"))
    elif not talk.turns():
        print("No turns. /pin N keeps turn N when the context fills.")
    for number, start in enumerate(talk.turns(), 1):
        mark = "*" if number in talk.pinned() else " "
        print(f"{mark} {number:>3}  {one_line(talk.chat.messages[start].content, _PREVIEW)}")


def _unpin(talk: Talk, rest: str) -> None:
    if not rest:
        raise ConfigError("/unpin needs the number of a turn.", hint="/pin lists them; write /unpin N.")
    talk.pin(_number(rest, "/unpin 1"), is_pinned=False)
    _pin(talk, "")


def _rewind(talk: Talk, rest: str) -> None:
    count = _number(rest, "/rewind 2") if rest else 1
    message = talk.rewind(count)
    print(f"Back to before: {one_line(message, _PREVIEW)}")


def _retry(talk: Talk, _rest: str) -> None:
    if not talk.turns():
        raise ConfigError("There is no turn to try again.", hint="Say something first.")
    talk.send(talk.rewind(1, redraw=True))


def _branch(talk: Talk, rest: str) -> None:
    if not rest:
        for name, chat in talk.branches.items():
            mark = "*" if name == talk.branch else " "
            print(f"{mark} {one_line(name, 40)}  ({len(chat.messages)} messages, {len(chat.tape)} tokens)")
        return
    if rest in talk.branches:
        talk.branch = rest
        print(f"On branch {one_line(rest, 40)}.")
        return
    if not is_branch_name(rest):
        raise ConfigError(
            f"{one_line(rest, 40)!r} is no name for a branch.",
            hint="Use letters, digits, -, _ and ., at most 40.",
        )
    before = talk.branch
    talk.fork(rest)
    print(f"A new branch {rest} begins here; /branch {before} goes back.")


def _save(talk: Talk, rest: str) -> None:
    path = typed_place("save", rest)
    talk.save(path)
    count = len(talk.branches)
    what = f"All {count} branches saved" if count > 1 else "Saved"
    print(f"{what} in {escape(str(path))}; `edgellm chat --load FILE` or /load FILE goes on with it.")


def _load(talk: Talk, rest: str) -> None:
    talk.open(typed_file("load", rest))
    messages = talk.chat.messages
    print(f"Loaded: {len(messages)} messages, {len(talk.chat.tape)} tokens.")
    if len(talk.branches) > 1:
        print(
            f"Branches: {', '.join(one_line(name, 40) for name in talk.branches)}; /branch NAME goes to one."
        )
    for message in messages[-2:]:
        print(f"{message.role}: {one_line(message.content, _PREVIEW)}")


def _tape(talk: Talk, rest: str) -> None:
    chat, vocabulary = talk.chat, talk.runtime.vocabulary
    tape = chat.tape
    if rest not in ("", "all"):
        raise ConfigError(f"/tape {one_line(rest, 40)} is unknown.", hint="Write /tape, or /tape all.")
    for span in chat.spans:
        shown = vocabulary.text_of(tape[span.start : span.end]).decode("utf-8", "backslashreplace")
        if rest == "all":
            print(styled(f"[{span.kind} {span.start}-{span.end}]", "dim", sys.stdout))
            print(escape(shown))
        else:
            print(f"{span.start:>6}-{span.end:<6} {span.kind.value:<12} {one_line(shown, _PREVIEW)}")
    print(f"{len(tape)} tokens")


def _stats(talk: Talk, _rest: str) -> None:
    chat, context = talk.chat, talk.runtime.engine.context
    print(f"context     {len(chat.tape):,} of {context.n_ctx:,} tokens, {len(chat.messages)} messages")
    print(f"format      {chat.format.id}: {one_line(chat.format.reason)}")
    print(f"strategy    {chat.strategy}")
    print(f"sampler     {chat.chain.spec}")
    for title, usage in (("last turn", talk.last_usage), ("whole chat", chat.usage)):
        if usage is None or not usage.legs:
            continue
        free = f", {usage.free_tokens} of them came free" if usage.free_tokens else ""
        print(
            f"{title:<12}prefill {usage.prefill_tokens} tokens in {usage.prefill_s:.2f} s, "
            f"decoded {usage.decode_tokens} in {usage.decode_s:.2f} s ({usage.decode_tok_s:.1f} tokens/s){free}, "
            f"reused {usage.all_reused_tokens}, rebuilt {usage.rebuilt_tokens}, "
            f"{usage.leg_count} decodes"
        )


def _context(talk: Talk, _rest: str) -> None:
    ledger = talk.chat.ledger()
    rate = ledger.prefill_tok_s
    rows = [
        (
            entry.owner.replace("_", " ") + (f" {one_line(entry.name, 40)}" if entry.name else ""),
            f"{entry.tokens:,}",
            "" if entry.price_s is None else f"{entry.price_s:.1f} s",
        )
        for entry in ledger.entries
    ]
    rows.append(("free", f"{ledger.free_tokens:,}", ""))
    print(table(rows, ("owner", "tokens", "price")))
    print(f"{ledger.used_tokens:,} of {ledger.n_ctx:,} tokens", end="")
    # A price is what was measured here: there is none before the first turn.
    print(f"; computing them again takes {ledger.price_s:.1f} s at {rate:.0f} tokens/s" if rate else "")
    turns = talk.turns()
    for number in talk.pinned():
        said = talk.chat.messages[turns[number - 1]].content
        print(f"pinned: turn {number} ({one_line(said, _PREVIEW)})")


def _system(talk: Talk, rest: str) -> None:
    if rest:
        talk.open(system=rest)
        print("The chat begins anew with this system turn.")
    else:
        print(
            escape(talk.chat.conversation.system)
            or "No system turn. /system TEXT begins a new chat with one."
        )


def _new(talk: Talk, _rest: str) -> None:
    talk.open()
    print("A new chat.")


def _quit(_talk: Talk, _rest: str) -> None:
    raise Leave


def _number(word: str, example: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        what = "of turns" if example.startswith("/rewind") else "of a turn"
        raise ConfigError(
            f"{one_line(word, 40)!r} is not a number {what}.", hint=f"Write, for example, {example}."
        )
    return int(word)


_ALIASES = {"exit": "quit", "q": "quit", "?": "help", "h": "help"}
COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    # name: (what runs, its arguments, what it does)
    "help": (_help, "", "these lines"),
    "tools": (_tools, "", "the tools that are offered"),
    "sampler": (_sampler, "[CHAIN]", "show the sampler chain, or draw from another one from here on"),
    "adapters": (
        _adapters,
        "[FILE[:SCALE] ...|none]",
        "show LoRA adapters and control vectors, or go on with these",
    ),
    "speculate": (_speculate, "[MODE]", "show how it guesses ahead, or choose: auto, ngram, draft, off"),
    "when-full": (
        _when_full,
        "[POLICY]",
        "show what gives way when the context is full, or choose: evict ...",
    ),
    "pin": (_pin, "[N]", "list the turns, or keep turn N when the context fills"),
    "unpin": (_unpin, "N", "let turn N go again when the context fills"),
    "rewind": (_rewind, "[N]", "take the last N turns back (default 1)"),
    "retry": (_retry, "", "take the last answer back and answer again"),
    "branch": (_branch, "[NAME]", "list branches, switch to one, or begin one here"),
    "save": (_save, "FILE", "save all branches with their memory"),
    "load": (_load, "FILE", "go on with a saved chat and its branches"),
    "tape": (_tape, "[all]", "the tokens the model has seen, and whose they are"),
    "stats": (_stats, "", "tokens, speed and context"),
    "context": (_context, "", "who owns the context, and what computing it again would cost"),
    "system": (_system, "[TEXT]", "show the system turn, or begin anew with another"),
    "new": (_new, "", "begin a new chat"),
    "quit": (_quit, "", "leave"),
}
