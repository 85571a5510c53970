"""For people who write plugins: a vocabulary of bytes, and the laws that every sampler stage keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.sampling.candidates import Candidates
from edgellm.sampling.chain import Chain, StepContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llguidance import LLTokenizer
    from numpy.typing import NDArray

_EOG = 256


class ByteVocabulary:
    """A vocabulary without a model: ids 0 to 255 are the bytes, 256 ends a text, later ones are made-up words."""

    def __init__(self, size: int = 257) -> None:
        if size <= _EOG:
            raise ValueError(f"a byte vocabulary has at least {_EOG + 1} tokens")
        self.size = size
        self.bos: int | None = None
        self.eos = _EOG

    def piece(self, token: int) -> bytes:
        """The token's own bytes."""
        if not 0 <= token < self.size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.size}")
        if token == _EOG:
            return b"<eog>"
        return bytes([token]) if token < _EOG else f" word{token}".encode()

    def tokenize(self, text: str) -> list[int]:
        """One token a byte."""
        return list(text.encode("utf-8"))

    def text_of(self, tokens: Sequence[int]) -> bytes:
        """The joined bytes of some tokens."""
        return b"".join(map(self.piece, tokens))

    def is_eog(self, token: int) -> bool:
        """True for the one token that ends a text."""
        return token == _EOG

    def is_control(self, token: int) -> bool:
        """True for the one token that ends a text."""
        return token == _EOG

    def grammar_tokenizer(self) -> LLTokenizer:
        """The same vocabulary for constraints."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Wrapped(self)))


class _Wrapped:
    # The attributes that llguidance's TokenizerWrapper asks for.
    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.eos_token_id = vocabulary.eos
        self.bos_token_id = None
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.size)]
        self.special_token_ids = [vocabulary.eos]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode("utf-8"))


def check_sampler(
    make: Callable[[], object], *, steps: int = 24, sizes: Sequence[int] = (257, 1000, 50_000), seed: int = 1
) -> None:
    """Checks the laws of a sampler stage; raises AssertionError (or the chain's SamplerError) where one is broken.

    make: gives a fresh object of a class decorated with `@edgellm.sampler`. The laws: at least one finite row is
    left and nothing is NaN, for one row as for 50,000, flat as peaked; looking on changes nothing; after
    `reset()` and replaying the tape the same tokens follow; forks do not disturb each other; no view is kept.
    """
    for size in sizes:
        _check_shapes(make, size, seed)
    vocabulary = ByteVocabulary(sizes[0])
    _check_no_view_is_kept(make, vocabulary, seed)
    _check_trace_changes_nothing(make, vocabulary, steps, seed)
    _check_replay(make, vocabulary, steps, seed)
    _check_fork(make, vocabulary, steps, seed)


def random_logits(n: int, seed: int, *, scale: float = 3.0) -> NDArray[np.float32]:
    """Reproducible logits, (n,), normal around 0."""
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def draw_tokens(
    chain: Chain, tape: list[int], count: int, seed: int, *, trace: int = 0, max_rewinds: int = 200
) -> list[int]:
    """Draws up to position `len(tape) + count` from logits that depend on the position alone, rewinding where a
    stage asks for it; extends and returns `tape`."""
    end = len(tape) + count
    rewinds = 0
    while len(tape) < end:
        logits = random_logits(chain.n_vocab, seed * 100_003 + len(tape))
        draw = chain.sample(logits, StepContext(len(tape), 0, tape), trace=trace)
        tape.append(draw.token)
        request = chain.accept(draw.token)
        if request is not None:
            rewinds += 1
            assert rewinds <= max_rewinds, f"law: rewinding comes to an end (still going after {max_rewinds})"
            del tape[request.position :]
            chain.rewind(tape)
    return tape


def _chain(make: Callable[[], object], vocabulary: ByteVocabulary, seed: int, before: str = "") -> Chain:
    stages: list[Any] = [*([before] if before else []), make()]
    return Chain(stages, n_vocab=vocabulary.size, vocabulary=vocabulary, seed=seed)


def _check_shapes(make: Callable[[], object], size: int, seed: int) -> None:
    vocabulary = ByteVocabulary(size)
    one_far_ahead = np.zeros(size, dtype=np.float32)
    one_far_ahead[7] = 80.0
    inputs = {
        "random": random_logits(size, seed),
        "flat": np.zeros(size, dtype=np.float32),
        "one far ahead": one_far_ahead,
        "huge spread": random_logits(size, seed + 1, scale=1e6),
    }
    for before in ("", "top_k(1)", "top_k(2)", "top_k(40)"):
        chain = _chain(make, vocabulary, seed, before)
        for what, logits in inputs.items():
            kept = logits.copy()
            draw = chain.sample(logits, StepContext(3, 0, [65, 66, 67]), trace=3)
            where = f"({what} logits, {size} tokens{', behind ' + before if before else ''})"
            assert np.array_equal(kept, logits), f"law: the model's logits are not written to {where}"
            assert 0 <= draw.token < size, f"law: a token of the vocabulary is drawn {where}"
            assert draw.distribution is not None
            total = float(draw.distribution.final.probs.sum())
            assert total <= 1 + 1e-4, f"law: probabilities sum to at most 1, not {total} {where}"
        chain.close()


def _check_no_view_is_kept(make: Callable[[], object], vocabulary: ByteVocabulary, seed: int) -> None:
    chain = _chain(make, vocabulary, seed)
    draw_tokens(chain, [], 2, seed)
    for name, value in _held_values(chain.python_stages[0]):
        assert not isinstance(value, Candidates), (
            f"law: no view is kept (attribute {name!r} holds the candidates)"
        )
        if isinstance(value, np.ndarray):
            is_shared = any(np.shares_memory(value, memory) for memory in chain.scratch_memory)
            assert not is_shared, f"law: no view is kept (attribute {name!r} is one; store a copy)"
    chain.close()


def _held_values(stage: object) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in vars(stage).items():
        found.append((name, value))
        if isinstance(value, list | tuple | set):
            found += [(name, item) for item in value]
        elif isinstance(value, dict):
            found += [(name, item) for item in value.values()]
    return found


def _check_trace_changes_nothing(
    make: Callable[[], object], vocabulary: ByteVocabulary, steps: int, seed: int
) -> None:
    plain, traced = _chain(make, vocabulary, seed), _chain(make, vocabulary, seed)
    tokens = draw_tokens(plain, [], steps, seed)
    assert tokens == draw_tokens(traced, [], steps, seed, trace=5), "law: looking on changes no token"
    plain.close()
    traced.close()


def _check_replay(make: Callable[[], object], vocabulary: ByteVocabulary, steps: int, seed: int) -> None:
    chain = _chain(make, vocabulary, seed)
    tokens = draw_tokens(chain, [], steps, seed)
    half = steps // 2
    chain.reset()
    chain.replay(tokens[:half])
    again = draw_tokens(chain, tokens[:half], steps - half, seed)
    assert again == tokens, (
        "law: after reset() and accept() of the same tokens, the same tokens follow"
        " (take random numbers from candidates.context.uniform)"
    )
    chain.close()


def _check_fork(make: Callable[[], object], vocabulary: ByteVocabulary, steps: int, seed: int) -> None:
    half = steps // 2
    alone = _chain(make, vocabulary, seed)
    expected = draw_tokens(alone, [], steps, seed)
    chain = _chain(make, vocabulary, seed)
    tokens = draw_tokens(chain, [], half, seed)
    fork = chain.fork(tokens)
    draw_tokens(fork, list(tokens), half, seed + 1)
    assert draw_tokens(chain, tokens, steps - half, seed) == expected, (
        "law: a fork does not disturb its origin"
    )
    twin = alone.fork(expected)
    ahead = draw_tokens(twin, list(expected), half, seed)
    assert ahead == draw_tokens(alone, list(expected), half, seed), "law: a fork goes on as its origin would"
    for each in (alone, chain, fork, twin):
        each.close()
