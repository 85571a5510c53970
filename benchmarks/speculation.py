"""Guessing ahead: is the text the same, how many guesses hold, and what is it worth?

Prompts are passages of a text of ours; every second one is followed by its own beginning, as where a file is quoted or
edited. Greedy text with guesses is compared token by token with the text without: at a first difference the two
likeliest tokens must be nearer to each other than what a logit differs by between batches of one row and of several
(measured here, too).
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
from measure import parser, print_result

import edgellm
from edgellm.engine.speculation import FIXED_GUESSES
from edgellm.types import SpanKind
from edgellm.weights.sample_text import SAMPLE_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.engine.session import Session

_PASSAGE = 90
_BEGINNING = 16


def prompts_of(runtime: edgellm.Runtime, count: int) -> list[tuple[str, list[int]]]:
    """(kind, tokens) of so many prompts: passages, and passages with their beginning behind them."""
    tokens = runtime.tokenize(SAMPLE_TEXT)
    step = max(1, (len(tokens) - _PASSAGE) // count)
    found: list[tuple[str, list[int]]] = []
    for number in range(count):
        passage = tokens[number * step : number * step + _PASSAGE]
        found.append(("quoted", passage + passage[:_BEGINNING]) if number % 2 else ("free", passage))
    return found


def answered(session: Session, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """`count` tokens behind a prompt (fewer at an end of generation), and the seconds of their decode."""
    session.rewind(0)
    session.extend([(token, SpanKind.PROMPT) for token in prompt])
    found: list[int] = []
    started = time.perf_counter()
    while len(found) < count:
        step = session.step()
        found.append(step.token)
        if step.is_eog:
            break
    return found, time.perf_counter() - started


def batch_difference(session: Session, prompt: Sequence[int]) -> float:
    """The largest difference of a logit behind one prompt whose last token was computed alone, and with those before.

    With quantized activations the last bits grow from layer to layer.
    """
    rows: list[NDArray[np.float32]] = []
    for size in (1, 1 + FIXED_GUESSES):
        session.rewind(0)
        for part in (prompt[:-size], prompt[-size:]):
            session.extend([(token, SpanKind.PROMPT) for token in part])
        rows.append(session.logits().copy())
    return float(np.abs(rows[0] - rows[1]).max())


def gap_at(runtime: edgellm.Runtime, tokens: Sequence[int]) -> float:
    """How much likelier the first of the next tokens is than the second, in logits."""
    session = runtime.engine.session(runtime.make_chain("greedy"))
    session.extend([(token, SpanKind.PROMPT) for token in tokens])
    top = np.sort(session.logits())[-2:]
    session.close()
    return float(top[1] - top[0])


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, default=200)
    options.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    options.add_argument("--draft", default="", help="a draft model: measured as well")
    given = options.parse_args()
    load = edgellm.LoadOptions(n_ctx=1024, threads=given.threads, draft_model=given.draft)
    modes = ("off", "ngram", "auto", *(("draft",) if given.draft else ()))
    seconds: dict[tuple[str, str], list[float]] = {}
    free: dict[tuple[str, str], list[int]] = {}
    lengths: dict[tuple[str, str], list[int]] = {}
    differing: dict[str, list[float]] = {mode: [] for mode in modes[1:]}
    with edgellm.load(given.model, options=load) as runtime:
        # What is measured must not change while it is.
        runtime.engine.governor.is_active = False
        prompts = prompts_of(runtime, given.prompts)
        sessions: dict[str, Session] = {}
        for mode in modes:
            session = sessions[mode] = runtime.engine.session(runtime.make_chain("greedy"))
            session.speculation = runtime.speculation(mode)
        for number, (kind, prompt) in enumerate(prompts):
            texts: dict[str, list[int]] = {}
            for mode in modes if number % 4 < 2 else reversed(modes):
                session = sessions[mode]
                speculation = session.speculation
                if speculation is not None:
                    # What other prompts have said is no part of this tape; what was measured stays.
                    session.speculation = speculation = speculation.fork()
                texts[mode], spent = answered(session, prompt, given.tokens)
                seconds.setdefault((kind, mode), []).append(spent)
                lengths.setdefault((kind, mode), []).append(len(texts[mode]))
                held = speculation.free_tokens if speculation is not None else 0
                free.setdefault((kind, mode), []).append(held)
            for mode in modes[1:]:
                place = next(
                    (
                        i
                        for i, pair in enumerate(zip(texts["off"], texts[mode], strict=False))
                        if len(set(pair)) > 1
                    ),
                    None,
                )
                if place is not None:
                    differing[mode].append(gap_at(runtime, [*prompt, *texts["off"][:place]]))
        bound = max(batch_difference(sessions["off"], prompt) for _, prompt in prompts[:50])
        threads = runtime.engine.context.n_threads
    rows = [["prompts", "mode", "ms a token", "free tokens", "speed against off (quartiles of the answers)"]]
    figures: dict[str, object] = {
        "model": given.model,
        "threads": threads,
        "prompts": given.prompts,
        "batch_difference": round(bound, 4),
    }
    for kind in ("free", "quoted"):
        for mode in modes:
            # Of all answers together: a short one, whose first token needs no decode, says little.
            own, off = (sum(seconds[kind, each]) / sum(lengths[kind, each]) for each in (mode, "off"))
            pairs = zip(
                seconds[kind, "off"],
                lengths[kind, "off"],
                seconds[kind, mode],
                lengths[kind, mode],
                strict=True,
            )
            low, _, high = statistics.quantiles([(a / n) / (b / m) for a, n, b, m in pairs], n=4)
            share = sum(free[kind, mode]) / sum(lengths[kind, mode])
            speed = f"{off / own:.3f} ({low:.3f} to {high:.3f})"
            rows.append([kind, mode, f"{1e3 * own:.2f}", f"{100 * share:.0f} %", speed])
            figures[f"{mode}_{kind}_speed"] = round(off / own, 4)
            figures[f"{mode}_{kind}_free"] = round(share, 4)
    for mode, gaps in differing.items():
        figures[f"{mode}_differing"] = len(gaps)
        figures[f"{mode}_near_ties"] = sum(gap <= bound for gap in gaps)
        figures[f"{mode}_largest_gap"] = round(max(gaps, default=0.0), 4)
        rows.append(
            ["all", mode, "", "", f"{len(gaps)} texts differ, {figures[f'{mode}_near_ties']} at a near-tie"]
        )
    print_result(rows, figures)


if __name__ == "__main__":
    main()
