"""The constraint stage: which tokens a grammar allows next (an llguidance matcher)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import ConstraintError
from edgellm.sampling.schema_relax import relax, relax_lark, schema_grammar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray


class Constraint:
    """A grammar and how much of it has been written.

    tokenizer: `edgellm.native.grammar_vocab.grammar_tokenizer` makes one for a model (once: it is costly).
    n_vocab: length of the logits, where it exceeds the tokenizer's. `notes` say what of a schema is not enforced.
    All methods raise ConstraintError where the matcher fails (too complex a grammar, say).
    """

    def __init__(self, matcher: LLMatcher, n_vocab: int, notes: Sequence[str] = ()) -> None:
        self._matcher = matcher
        self.n_vocab = n_vocab
        self.notes = tuple(notes)
        self._words = np.zeros((n_vocab + 31) // 32, dtype=np.int32)
        self._allowed: NDArray[np.bool_] | None = None
        self._taken = 0
        self._has_end = False
        self._check()

    @classmethod
    def from_lark(cls, tokenizer: LLTokenizer, grammar: str, *, n_vocab: int | None = None) -> Constraint:
        """From a Lark grammar, as llguidance writes them. Schemas in it are relaxed as in `from_json_schema`."""
        from llguidance import LLMatcher

        grammar, notes = relax_lark(grammar)
        return cls._from(tokenizer, LLMatcher.grammar_from_lark(grammar), n_vocab, notes)

    @classmethod
    def from_regex(cls, tokenizer: LLTokenizer, pattern: str, *, n_vocab: int | None = None) -> Constraint:
        """From a regular expression that the whole text must match."""
        from llguidance import LLMatcher

        return cls._from(tokenizer, LLMatcher.grammar_from_regex(pattern), n_vocab)

    @classmethod
    def from_json_schema(
        cls, tokenizer: LLTokenizer, schema: Mapping[str, Any], *, n_vocab: int | None = None
    ) -> Constraint:
        """From a JSON Schema, relaxed where need be: see `notes`, and validate the finished value."""
        # Any: a JSON object.
        relaxed, notes = relax(schema)
        return cls._from(tokenizer, schema_grammar(relaxed), n_vocab, notes)

    @classmethod
    def _from(
        cls, tokenizer: LLTokenizer, grammar: str, n_vocab: int | None, notes: Sequence[str] = ()
    ) -> Constraint:
        from llguidance import LLMatcher

        # log_level 0: the matcher would write its complaints to stderr; they come as errors here.
        return cls(LLMatcher(tokenizer, grammar, log_level=0), n_vocab or tokenizer.vocab_size, notes)

    def _check(self) -> None:
        if self._matcher.is_error():
            # What follows <state> is a dump of the parser for llguidance's authors.
            text = " ".join(self._matcher.get_error().split("<state>")[0].split())
            raise ConstraintError(
                f"the grammar cannot be followed: {text[:300]}.",
                hint="Correct or simplify the grammar or schema.",
            )

    def allowed(self) -> NDArray[np.bool_]:
        """What may come next, (n_vocab,). Computed once a position; not to be written to."""
        if self._allowed is None:
            self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            self._check()
            bits = np.unpackbits(self._words.view(np.uint8), count=self.n_vocab, bitorder="little")
            self._allowed = bits.view(np.bool_)
        return self._allowed

    def allowed_ids(self) -> NDArray[np.intp]:
        """Ids of the tokens that may come next, ascending."""
        return np.flatnonzero(self.allowed())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Sets the logits (n_vocab,) of all other tokens to -inf, in place."""
        np.copyto(logits, np.float32(-np.inf), where=~self.allowed())

    def consume(self, token: int) -> bool:
        """Take one token. False, and no change, where the grammar refuses it."""
        return self.try_consume((token,)) == 1

    def try_consume(self, tokens: Sequence[int]) -> int:
        """Take as many tokens, from the first on, as the grammar allows; returns their number."""
        taken = self._matcher.try_consume_tokens([int(token) for token in tokens])
        self._allowed = None
        self._check()
        self._taken += taken
        if taken < len(tokens) and not self._has_end and self._matcher.is_stopped():
            # A matcher that can go no further counts no end token, though its mask allows one.
            is_end = self._matcher.stop_reason() != "EndOfSentence" and bool(self.allowed()[tokens[taken]])
            self._has_end = is_end
            return taken + is_end
        return taken

    def forced_tokens(self) -> list[int]:
        """Tokens that have to come next whatever the model says; they are not consumed."""
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    @property
    def is_accepting(self) -> bool:
        """True where the text so far is complete (it may go on)."""
        accepting = self._matcher.is_accepting()
        self._check()
        return accepting

    @property
    def is_stopped(self) -> bool:
        """True where the text is complete and nothing but an end token may follow."""
        stopped = self._matcher.is_stopped()
        self._check()
        return stopped

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        # Asked for too much, the matcher would break for good.
        total = self._taken + self._has_end
        if not 0 <= count <= total:
            raise ConstraintError(f"the grammar has taken {total} tokens: {count} cannot be taken back.")
        if count and self._has_end:
            self._has_end = False
            count -= 1
        if count:
            self._matcher.rollback(count)
            self._allowed = None
            self._check()
            self._taken -= count

    def reset(self) -> None:
        """Back to the beginning."""
        self._matcher.reset()
        self._allowed = None
        self._taken, self._has_end = 0, False
        self._check()

    def clone(self) -> Constraint:
        """A copy with a state of its own."""
        copy = Constraint(self._matcher.deep_copy(), self.n_vocab, self.notes)
        copy._taken, copy._has_end = self._taken, self._has_end
        return copy
