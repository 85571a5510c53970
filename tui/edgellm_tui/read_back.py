"""A conversation that is there already, as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm_tui.blocks import AnswerBlock, Block, NoteBlock, ReasoningBlock, UserBlock
from edgellm_tui.cards import CardBlock

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgellm import Message


# What the model reads of a call that nobody has allowed begins so.
_NOT_RUN = "Not run: "


def blocks_of(
    messages: Sequence[Message], *, gone: Collection[int] = (), is_open: bool = False
) -> tuple[list[Block], dict[str, CardBlock]]:
    """The blocks, and the cards of calls by the calls' ids; `is_open`: the last answer goes on.

    `gone` are the places of messages that are no longer in the context: a note behind them says so.
    """
    blocks: list[Block] = []
    cards: dict[str, CardBlock] = {}
    # Calls whose results are gone: what stands in their place tells less.
    shortened: set[str] = set()
    index = gone_by = 0
    for place, message in enumerate(messages):
        is_gone = place in gone
        if gone_by and not is_gone:
            blocks.append(NoteBlock(_gone_words(gone_by, message.tool_call_id in shortened)))
        gone_by = gone_by + 1 if is_gone else 0
        start = len(blocks)
        if message.role == "user":
            blocks.append(UserBlock(message.content, is_gone=is_gone))
        elif message.role == "assistant":
            if message.reasoning.strip():
                blocks.append(ReasoningBlock(message.reasoning, is_over=True))
            if message.content.strip():
                is_growing = is_open and place == len(messages) - 1
                blocks.append(AnswerBlock(message.content, is_over=not is_growing))
            for call in message.tool_calls:
                card = cards[call.id] = CardBlock()
                card.set(name=call.name, arguments=call.arguments, id=call.id, state="STOPPED")
                blocks.append(card)
        elif message.role == "tool":
            if message.tool_call_id in cards and message.tool_call_id not in shortened:
                is_denied = message.content.startswith(_NOT_RUN)
                told = {"note" if is_denied else "result": message.content}
                cards[message.tool_call_id].set(state="DENIED" if is_denied else "DONE", **told)
            if is_gone:
                shortened.add(message.tool_call_id)
        for block in blocks[start:]:
            block.message = None if is_gone else index
        index += not is_gone
    if gone_by:
        blocks.append(NoteBlock(_gone_words(gone_by)))
    return blocks, cards


def _gone_words(count: int, is_result: bool = False) -> str:
    if is_result and count == 1:
        return "the result above is no longer in the context; a short notice stands in its place"
    above = "the message above is" if count == 1 else f"the {count} messages above are"
    return f"{above} no longer in the context"
