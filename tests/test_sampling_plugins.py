"""The bundled plugin samplers, each on numbers one can check, and the laws that catch broken ones."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from edgellm_plugins.antislop import Antislop
from edgellm_plugins.entropix import Entropix
from edgellm_plugins.quadratic import Quadratic
from edgellm_plugins.top_a import TopA
from edgellm_plugins.watermark import Watermark, detect, is_green

import edgellm
from edgellm.errors import SamplerError
from edgellm.sampling.chain import Chain, StepContext
from edgellm.testing import ByteVocabulary, check_sampler, draw_tokens, random_logits

BUNDLED: dict[str, Any] = {
    "entropix": Entropix,
    "antislop": lambda: Antislop(["a", "qu", "  "]),
    "watermark": Watermark,
    "top_a": TopA,
    "quadratic": Quadratic,
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_plugins_keep_the_laws(name: str) -> None:
    check_sampler(BUNDLED[name])


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_plugins_are_declared_as_a_users_would_be(name: str) -> None:
    module = importlib.import_module(f"edgellm_plugins.{name}")
    marked = [
        value for value in vars(module).values() if getattr(value, "__edgellm_plugin__", "") == "sampler"
    ]
    assert len(marked) == 1
    assert marked[0].__edgellm_stage__.name == name
    assert marked[0].__edgellm_stage__.doc


def after(stage: object, probs: tuple[float, ...], tokens: tuple[int, ...] = ()) -> dict[int, float]:
    """Probabilities by id behind a stage that sees these rows."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(probs, dtype=np.float32))
    chain = Chain([stage, "greedy"], n_vocab=len(probs), seed=1)
    drawn = chain.sample(logits, StepContext(len(tokens), 0, tokens), trace=len(probs))
    assert drawn.distribution is not None
    rows = drawn.distribution.final
    return {int(i): float(p) for i, p in zip(rows.ids, rows.probs, strict=True)}


def test_top_a_cuts_by_the_square_of_the_best() -> None:
    # 0.5 ** 2 * 0.5 = 0.125: the last row falls.
    assert after(TopA(0.5), (0.5, 0.25, 0.15, 0.1)) == pytest.approx(
        {0: 5 / 9, 1: 2.5 / 9, 2: 1.5 / 9}, abs=1e-5
    )
    # 0.4 ** 2 * 0.5 = 0.08: nothing falls where the model is less sure.
    assert len(after(TopA(0.5), (0.4, 0.3, 0.2, 0.1))) == 4
    assert len(after(TopA(0.0), (0.9, 0.1))) == 2


def test_quadratic_bends_distances() -> None:
    chain = Chain([Quadratic(factor=0.5), "greedy"], n_vocab=4)
    drawn = chain.sample(np.array([5, 4, 3, 1], dtype=np.float32), StepContext(0), trace=4)
    assert drawn.distribution is not None
    # Distances 0, 1, 2, 4 become 0, 0.5, 2, 8.
    assert list(drawn.distribution.final.logits) == [5, 4.5, 3, -3]
    chain = Chain([Quadratic(factor=0.5, curve=3.0), "greedy"], n_vocab=4)
    drawn = chain.sample(np.array([5, 4, 3, 1], dtype=np.float32), StepContext(0), trace=4)
    assert drawn.distribution is not None
    # Cubic: 0, 0.5, 4, 32.
    assert list(drawn.distribution.final.logits) == [5, 4.5, 1, -27]


def test_entropix_sharpens_a_sure_model_and_cuts_a_vague_one() -> None:
    sure = after(Entropix(temperature=1.0), (0.97, 0.01, 0.01, 0.01))
    assert sure[0] > 0.99
    # 16 equal rows: entropy 4 bits, varentropy 0. Equal rows stay equal, and none can be cut.
    assert after(Entropix(), (1 / 16,) * 16) == pytest.approx(dict.fromkeys(range(16), 1 / 16), abs=1e-5)
    # Torn between two: entropy 1 bit of 3, no variance; temperature factor 2/3 · 0.3 + 1/3 · 0.8 = 0.4667.
    two = after(Entropix(temperature=1.0, entropy=3.0, min_p=0.0), (0.5, 0.5 - 1e-6, 1e-6))
    assert two[0] == pytest.approx(0.5, abs=1e-3)
    # Vague: 8 good rows and 8 poor ones; the poor ones fall, being below a tenth of the best.
    probs = (0.12,) * 8 + (0.005,) * 8
    assert set(after(Entropix(entropy=3.0, min_p=0.2), probs)) == set(range(8))


def test_watermark_favours_green_tokens_of_the_previous_one() -> None:
    n = 1000
    green = is_green(np.full(1, 17), np.arange(n), key=15485863, gamma=0.25)
    assert 0.2 < green.mean() < 0.3
    probs = after(Watermark(delta=2.0), (1 / n,) * n, tokens=(3, 17))
    ratio = math.exp(2)
    total = ratio * green.sum() + (n - green.sum())
    for token in range(0, n, 37):
        assert probs[token] == pytest.approx((ratio if green[token] else 1.0) / total, rel=1e-3)
    # Nothing stands before the first token.
    assert len(set(after(Watermark(), (0.25,) * 4).values())) == 1


def test_the_detector_finds_the_watermark_and_only_it() -> None:
    def text(*stages: object) -> list[int]:
        chain = Chain([*stages, "dist(seed=2)"], n_vocab=500, vocabulary=ByteVocabulary(500))
        return draw_tokens(chain, [1], 200, 5)

    marked, plain = text(Watermark(delta=4.0)), text()
    found = detect(marked)
    assert found.z_score > 8 and found.p_value < 1e-12
    assert found.green / found.scored > 0.5
    assert abs(detect(plain).z_score) < 4
    assert abs(detect(marked, key=1).z_score) < 4
    assert detect([5]).z_score == 0.0


def write(chain: Chain, wanted: str, tape: list[int]) -> tuple[list[int], list[Any]]:
    """Lets a chain write a text it strongly wants, space by default; gives the tape and all rewinds."""
    requests: list[Any] = []
    while len(tape) < len(wanted):
        logits = np.zeros(257, dtype=np.float32)
        logits[ord("-")] = 10
        logits[ord(wanted[len(tape)])] = 20
        token = chain.sample(logits, StepContext(len(tape), 0, tape)).token
        tape.append(token)
        request = chain.accept(token)
        if request is not None:
            requests.append(request)
            del tape[request.position :]
            chain.rewind(tape)
    return tape, requests


def antislop(*phrases: str) -> Chain:
    return Chain([Antislop(list(phrases)), "greedy"], n_vocab=257, vocabulary=ByteVocabulary())


def test_antislop_takes_a_banned_phrase_back_and_goes_on_without_it() -> None:
    tape, requests = write(antislop("rich tapestry"), "a Rich tapestry of life", [])
    assert bytes(tape) == b"a -ich tapestry of life"
    assert [(r.tokens, r.position, r.ban) for r in requests] == [(13, 2, (ord("R"),))]
    assert "rich tapestry" in requests[0].reason


def test_antislop_finds_every_phrase_again_and_again() -> None:
    tape, requests = write(antislop("ab", "cd"), "ab cd abab", [])
    assert bytes(tape) == b"-b -d -b-b"
    assert len(requests) == 4


def test_antislop_leaves_the_prompt_alone() -> None:
    chain = antislop("slop")
    chain.replay(list(b"slop sl"))
    assert [chain.accept(byte) for byte in b"op"] == [None, None]


def test_antislop_holds_back_what_may_become_a_phrase() -> None:
    chain = antislop("tapestry", "stop")
    held = []
    for byte in b"a tapest stopp":
        chain.accept(byte)
        held.append(chain.pending_tokens)
    # At "...st" the longest beginning counts: "tapest" has six letters, "st" two.
    assert held[:8] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert held[8:] == [0, 1, 2, 3, 0, 0]


def test_antislop_with_long_tokens_takes_back_the_token_that_holds_the_first_byte() -> None:
    chain = Chain([Antislop(["x word300 y"]), "greedy"], n_vocab=400, vocabulary=ByteVocabulary(400))
    for token in (ord("a"), ord("x"), 300, ord(" ")):
        assert chain.accept(token) is None
    assert chain.pending_tokens == 3
    request = chain.accept(ord("y"))
    assert request is not None and (request.tokens, request.ban) == (4, (ord("x"),))


def test_antislop_without_phrases_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Antislop([])
    with pytest.raises(SamplerError, match="needs a vocabulary"):
        Chain([Antislop(["x"])], n_vocab=4)


# -- the laws catch what breaks them


@edgellm.sampler
class Hoarder:
    def apply(self, candidates: edgellm.Candidates) -> None:
        self.last = candidates.logits


@edgellm.sampler
class Moody:
    def apply(self, candidates: edgellm.Candidates) -> None:
        candidates.logits[:] += np.random.default_rng().standard_normal(candidates.n)


@edgellm.sampler
class Forgetful:
    """Does not clear its memory in reset()."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, candidates: edgellm.Candidates) -> None:
        candidates.logits[self.count % candidates.n] += 20

    def accept(self, token: int) -> None:
        self.count += 1


_SHARED: list[int] = []


@edgellm.sampler
class Sharing:
    """Keeps its memory in the module, where forks meet."""

    def apply(self, candidates: edgellm.Candidates) -> None:
        candidates.logits[len(_SHARED) % candidates.n] += 20

    def accept(self, token: int) -> None:
        _SHARED.append(token)

    def reset(self) -> None:
        _SHARED.clear()


@edgellm.sampler
class Rounding:
    """Breaks on a spread that float32 cannot square."""

    def apply(self, candidates: edgellm.Candidates) -> None:
        weights = np.exp(candidates.logits)
        with np.errstate(all="ignore"):
            candidates.logits[:] = weights / weights.sum()


@edgellm.sampler
class Stubborn:
    """Takes everything back, always."""

    def apply(self, candidates: edgellm.Candidates) -> None: ...

    def accept(self, token: int) -> edgellm.Rewind:
        return edgellm.Rewind(1)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Hoarder, "no view is kept"),
        (Moody, "law: "),
        (Forgetful, "the same tokens follow"),
        (Sharing, "law: "),
        (Rounding, "NaN"),
        (Stubborn, "rewinding comes to an end"),
    ],
)
def test_the_laws_catch(broken: type, message: str) -> None:
    _SHARED.clear()
    with pytest.raises((AssertionError, SamplerError), match=message):
        check_sampler(broken)


def test_random_logits_are_reproducible() -> None:
    assert np.array_equal(random_logits(10, 3), random_logits(10, 3))
    assert not np.array_equal(random_logits(10, 3), random_logits(10, 4))


def test_byte_vocabulary() -> None:
    vocabulary = ByteVocabulary(300)
    assert vocabulary.text_of(vocabulary.tokenize("grün")) == "grün".encode()
    assert vocabulary.is_eog(256) and not vocabulary.is_eog(255)
    assert vocabulary.piece(299) == b" word299"
    with pytest.raises(ValueError, match="outside"):
        vocabulary.piece(300)
    with pytest.raises(ValueError, match="at least"):
        ByteVocabulary(10)
