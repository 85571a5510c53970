"""What a reader wants to know of a drawn token: from the rows that were kept, else asked of the model again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgellm import ChainSpec, Step
from edgellm_tui.kept import is_thin
from edgellm_tui.whatif import without

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm_tui.strand import Strand
    from edgellm_tui.talk import Talk

_MOST = 512
_LEAST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Look:
    """A token as it is shown. `note` says where the rows are from: "", "raw and final rows only", "recomputed"."""

    step: Step
    note: str = ""


@dataclass(frozen=True, slots=True)
class Without:
    """What would have been drawn without a stage; `token` None: the rows do not tell, the model has to be asked."""

    stage: str
    token: int | None
    is_asked: bool = False


class Looks:
    """Answers kept for the app. All but `ask` is for the screen's side at any time, also while a turn is open."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._steps: dict[tuple[int, int, int], Step] = {}
        self._asked: dict[tuple[int, int, int], dict[int, int]] = {}

    def look(self, strand: Strand, position: int, token: int | None = None) -> Look | None:
        """A token of a branch; `token` is what the tape holds there, where no step was seen."""
        step = strand.steps.get(position)
        token = step.token if step is not None else token
        if token is None:
            return None
        again = self._steps.get((strand.key, position, token))
        if again is not None and (step is None or step.distribution is None or is_thin(step)):
            return Look(again, "recomputed")
        if step is None:
            return None
        return Look(step, "raw and final rows only" if is_thin(step) else "")

    def withouts(self, strand: Strand, step: Step) -> list[Without]:
        """For each stage of the branch's chain, what the same random number would have drawn without it."""
        chain = chain_of(strand)
        if chain is None or step.distribution is None:
            return []
        asked = self._asked.get((strand.key, step.position, step.token), {})
        found: list[Without] = []
        for index, spec in enumerate(chain.stages[:-1]):
            token = asked.get(index)
            if token is None and not step.is_constrained:
                token = without(step, chain, index)
            found.append(Without(spec.name, token, index in asked))
        return found

    def can_ask(self, strand: Strand) -> bool:
        """The model can be asked: no turn is open."""
        return strand.chat is not None and not self._talk.worker.is_busy

    def ask(
        self, strand: Strand, position: int, then: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Recomputes the token's distribution on a fork, and what each stage less would have drawn."""
        chain = chain_of(strand)
        step = strand.steps.get(position)
        rows = max(_LEAST_ROWS, self._talk.settings.trace_rows)

        def job() -> tuple[int, Step, dict[int, int]]:
            chat = strand.chat
            tape = chat.tape
            again: Step = chat.explain(position, rows=rows)
            token = tape[position] if position < len(tape) else again.token
            others: dict[int, int] = {}
            if chain is not None and (step is None or not step.is_constrained):
                for index in range(len(chain.stages) - 1):
                    shorter = ChainSpec(chain.stages[:index] + chain.stages[index + 1 :])
                    others[index] = chat.explain(position, sampler=shorter, rows=1).token
            return token, again, others

        def done(found: tuple[int, Step, dict[int, int]]) -> None:
            token, again, others = found
            if len(self._steps) >= _MOST:
                self._steps.clear()
                self._asked.clear()
            key = (strand.key, position, token)
            self._steps[key] = with_token(again, token, self._talk.runtime.vocabulary)
            self._asked[key] = others
            then()

        self._talk.worker.submit(job, done, failed)


# Any: a vocabulary, or what plays one in tests.
def with_token(step: Step, token: int, vocabulary: Any) -> Step:
    """The step as if `token` had been drawn; its probability is known where it is among the raw rows."""
    if step.token == token or step.distribution is None:
        return step
    raw = step.distribution.raw
    found = raw.ids.tolist().index(token) if token in raw.ids.tolist() else -1
    logprob = math.log(max(float(raw.probs[found]), 1e-30)) if found >= 0 else None
    return replace(
        step,
        token=token,
        piece=vocabulary.piece(token),
        is_eog=vocabulary.is_eog(token),
        is_control=vocabulary.is_control(token),
        logprob=logprob,
    )


def chain_of(strand: Strand) -> ChainSpec | None:
    """The chain a branch draws from."""
    return strand.chat.chain.spec if strand.chat is not None else None
