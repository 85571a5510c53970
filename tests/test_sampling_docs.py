"""The documentation's example runs, and its reference is the registry's."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgellm.sampling.chain import Chain, StepContext
from edgellm.sampling.reference import reference
from edgellm.sampling.registry import NATIVE_STAGES, StageRegistry
from edgellm.sampling.spec import ChainSpec
from edgellm.sampling.stage import register
from edgellm.testing import ByteVocabulary

DOCS = Path(__file__).parent.parent / "docs"


def test_the_example_of_writing_a_sampler_is_complete_and_lawful(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / "writing-a-sampler.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 2
    module = ModuleType("documented_sampler")
    # Type hints are looked up in the module a class says it is from.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        exec(compile(block, "writing-a-sampler.md", "exec"), module.__dict__)
    registry = StageRegistry(NATIVE_STAGES)
    register(module.Capitals, registry=registry)
    spec = ChainSpec.parse("top_k(40) | capitals(boost=3) | greedy", registry)
    chain = Chain(spec, n_vocab=257, vocabulary=ByteVocabulary())
    logits = np.zeros(257, dtype=np.float32)
    logits[[ord("a"), ord("A")]] = [2, 1]
    drawn = []
    for position in range(4):
        drawn.append(chain.sample(logits, StepContext(position)).token)
        chain.accept(drawn[-1])
    assert bytes(drawn) == b"AAAa"


def test_the_reference_is_the_registrys() -> None:
    written = (DOCS / "samplers.md").read_text(encoding="utf-8")
    assert written == reference(NATIVE_STAGES), "run: python -m edgellm.sampling.reference"
