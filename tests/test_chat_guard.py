"""The guard: a template that runs wild is stopped in a child process; one that is known costs nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgellm.chat import guard
from edgellm.chat.template import BUILTIN, ChatTemplate
from edgellm.errors import TemplateError
from edgellm.types import Message

HARMLESS = "{{ messages[0].content }}!"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
GREEDY = "{% set ns = namespace(l=['x']) %}{% for a in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l }}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(guard, "_checked", set())
    return tmp_path / "templates"


def forbid_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no processes here")

    monkeypatch.setattr(subprocess, "run", refuse)


def test_harmless_template_is_tried_once_and_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ChatTemplate(HARMLESS).render([Message("user", "Hi")])[0].text == "Hi"
    assert [path.suffix for path in cache.iterdir()] == [".ok"]
    forbid_children(monkeypatch)
    monkeypatch.setattr(guard, "_checked", set())
    assert ChatTemplate(HARMLESS).render([Message("user", "Hi")])


def test_template_that_does_not_end_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CPU_LIMIT_S", 1)
    with pytest.raises(
        TemplateError, match=r"'wild' did not render .* within 1 s of CPU time.*--template chatml"
    ):
        ChatTemplate(ENDLESS, name="wild").render([Message("user", "Hi")])
    assert not cache.exists()


def test_template_that_takes_all_memory_is_refused(cache: Path) -> None:
    with pytest.raises(TemplateError, match="MiB"):
        ChatTemplate(GREEDY).render([Message("user", "Hi")])
    assert not cache.exists()


def test_mistakes_are_reported_by_the_render_not_by_the_guard(cache: Path) -> None:
    for source, words in (("{% if %}", "does not parse"), ("{{ raise_exception('No.') }}", "refuses")):
        with pytest.raises(TemplateError, match=words):
            ChatTemplate(source).render([Message("user", "Hi")])


def test_without_a_child_process_an_unknown_template_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_children(monkeypatch)
    with pytest.raises(TemplateError, match="no child process could be started"):
        ChatTemplate(HARMLESS).render([Message("user", "Hi")])
    for known in BUILTIN.values():
        assert ChatTemplate(known).render([Message("user", "Hi")])


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("", encoding="utf-8")
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(blocker))
    monkeypatch.setattr(guard, "_checked", set())
    assert ChatTemplate(HARMLESS).render([Message("user", "Hi")])


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", "/home/of")
    monkeypatch.delenv("EDGELLM_CACHE_DIR", raising=False)
    assert guard.cache_folder() == Path("/home/of/cache/templates")
    monkeypatch.setenv("EDGELLM_CACHE_DIR", "/cache")
    assert guard.cache_folder() == Path("/cache/templates")
    monkeypatch.delenv("EDGELLM_CACHE_DIR")
    monkeypatch.delenv("EDGELLM_HOME")
    assert guard.cache_folder().name == "templates"


@pytest.mark.slow
@pytest.mark.model
def test_the_default_models_template_is_known(
    smollm2_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFReader

    field = GGUFReader(smollm2_path).fields["tokenizer.chat_template"]
    source = bytes(field.parts[field.data[0]]).decode("utf-8")
    forbid_children(monkeypatch)
    assert ChatTemplate(source).render([Message("user", "Hi")])[-1].text.endswith("<|im_start|>assistant\n")


def test_where_memory_cannot_be_limited_the_other_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limited: list[int] = []

    def refuse_memory(which: int, limits: tuple[int, int]) -> None:
        if which == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")
        limited.append(which)

    monkeypatch.setattr(resource, "setrlimit", refuse_memory)
    monkeypatch.setattr("sys.platform", "darwin")
    guard._limit(5, 1 << 29)
    assert resource.RLIMIT_CPU in limited
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ValueError, match="exceeds"):
        guard._limit(5, 1 << 29)
