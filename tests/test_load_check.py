"""Values of LoadOptions that llama.cpp cannot take: refused in words, wherever they come from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.cli import arguments
from edgellm.errors import ConfigError
from edgellm.load_check import MAX_CTX, MAX_THREADS, RULES, check_options
from edgellm.offline import merged_options
from edgellm.types import LoadOptions


def test_every_field_has_its_rule_and_every_default_keeps_it() -> None:
    assert set(RULES) == {item.name for item in fields(LoadOptions)}
    check_options(LoadOptions())
    check_options(LoadOptions(n_ctx=MAX_CTX, n_gpu_layers="all", cpu_moe=3, rope_freq_scale=1))
    # Written out there, so that --help need not wait for them.
    assert (arguments.MAX_CTX, arguments.MAX_THREADS) == (MAX_CTX, MAX_THREADS)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("n_ctx", -5, "a whole number from 0 to 2,147,483,647"),
        ("n_ctx", 5_000_000_000, "a whole number"),
        ("n_ctx", "4096", "a whole number"),
        ("n_ctx", True, "a whole number"),
        ("n_ubatch", -1, "a whole number"),
        ("n_seq_max", 257, "from 0 to 256"),
        ("threads", -1, "from 0 to 1,024"),
        ("threads_batch", -4, "from 0 to 1,024"),
        ("n_gpu_layers", "some", 'a count of layers, "all" or "auto"'),
        ("n_gpu_layers", -1, 'a count of layers, "all" or "auto"'),
        ("cpu_moe", "half", 'a count of layers, "all" or "auto"'),
        ("fit", "on", "one of auto, off"),
        ("flash_attention", "maybe", "one of auto, on, off"),
        ("rope_scaling", None, "one of model, none, linear, yarn"),
        ("rope_freq_scale", float("nan"), "a number, 0 or more"),
        ("use_mmap", 1, "True or False"),
        ("devices", "GPU0", "a tuple of texts"),
        ("tensor_split", (1, -1), "a tuple of numbers"),
        ("lora", ("x.gguf",), "a tuple of LoraAdapter objects"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_can(name: str, value: Any, allowed: str) -> None:
    for options, overrides in ((LoadOptions(**{name: value}), {}), (None, {name: value})):
        with pytest.raises(ConfigError) as caught:
            merged_options(options, None, overrides)
        assert f"{name}={value!r} is not" in caught.value.message
        assert allowed in caught.value.message
        assert f"leave {name} out" in caught.value.hint


def test_hints_of_a_catalogue_are_checked_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_CONFIG_DIR", str(tmp_path))
    entry = '[models.mine]\ndescription = "x"\nlicence = "MIT"\nfile = "x.gguf"\n'
    entry += 'sources = [{ kind = "path", path = "x.gguf" }]\n[models.mine.load]\nn_ctx = -5\n'
    (tmp_path / "models.toml").write_text(entry, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[models\.mine\] key 'load': n_ctx=-5 is not a whole number"):
        edgellm.catalog()
