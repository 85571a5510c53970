"""What follows a candidate as long as the model is certain: a choice shows a phrase, not a syllable."""

from __future__ import annotations

from typing import Any

import edgellm
from edgellm_tui.token_text import token_text

MOST = 24
CERTAIN = 0.9


# Any: a Chat, or what plays one in tests.
def look_ahead(chat: Any, position: int, token: int) -> tuple[str, int, float]:
    """(text, number of certain tokens, probability of the best token that was not certain any more).

    Runs on a scratch fork, for the engine's thread; no tool runs. The tokens are the most probable ones, while
    each has at least CERTAIN of the raw probability, and at most MOST of them. Raises EdgeError.
    """
    scratch = chat.branch(position, token)
    try:
        if not scratch.is_answer_open:
            return "", 0, 1.0
        scratch.set_sampler("greedy")
        scratch.set_trace(1)
        text, count, best = b"", 0, 1.0
        turn = scratch.send(None, tool_choice="none", max_tokens=MOST)
        for event in turn:
            if not isinstance(event, edgellm.TokenDrawn):
                continue
            step = event.step
            seen = step.distribution
            best = float(seen.raw.probs[0]) if seen is not None else 1.0
            if step.is_eog or best < CERTAIN - 1e-6:
                break
            text += step.piece
            count += 1
        turn.close()
        return token_text(text), count, best
    finally:
        scratch.close()
