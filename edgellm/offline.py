"""What one can ask without a model in memory: the catalogue, a file's own words, raw output, plugins, this machine."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import SamplerError
from edgellm.types import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from edgellm.chat.formats import Marks
    from edgellm.models.catalogue import Catalogue
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.plugins import PluginFailure
    from edgellm.types import ToolCall


def catalog() -> Catalogue:
    """The shipped catalogue of models, with the user's own on top and those of trusted folders beside it.

    Trusted folders count when they are the working directory or above it. Raises ConfigError for a broken file.
    """
    from edgellm.models.catalogue import FILE_NAME, load_catalogue
    from edgellm.trust import FOLDER, Trust

    here, trust = Path.cwd(), Trust()
    files = [folder / FOLDER / FILE_NAME for folder in (here, *here.parents)]
    return load_catalogue(
        [file for file in files if file.is_file() and trust.state(file.parents[1]) == "trusted"]
    )


def inspect(model: str | Path) -> GGUFInfo:
    """What a GGUF says of itself, without loading it. Raises ModelNotFound, ModelCorrupt."""
    from edgellm.models.gguf_info import inspect_gguf
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store

    return inspect_gguf(resolve(model, catalog(), Store()).path)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A model's raw output, read: answer text, reasoning, complete calls."""

    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]


def parse(
    text: str,
    *,
    format: str = "auto",
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prefix: str = "",
) -> Parsed:
    """Reads a model's raw output in a wire format.

    `format` is a format's id; "auto" chooses by `template` (a chat template's text), else hermes. `tools` are
    OpenAI tool objects; `prefix` is the generation prompt that the output continues. Raises ConfigError for
    an unknown format.
    """
    from edgellm.chat.formats import choose_format
    from edgellm.chat.parser import OutputParser
    from edgellm.types import ToolSpec

    override = "hermes" if format == "auto" and template is None else format
    specs = [
        ToolSpec(str(item["name"]), str(item.get("description", "")), dict(item.get("parameters", {})))
        for item in (tool.get("function", tool) for tool in tools or ())
    ]
    wire_format = choose_format(template or "", (), override)
    if template is None:
        # No template says whether the model thinks: marks of reasoning are taken for what they look like.
        wire_format = replace(wire_format, is_thinking=True)
        prefix = prefix or _implied_prefix(text, wire_format.marks)
    parser = OutputParser(wire_format, prefix=prefix, tools=specs)
    parser.feed(text)
    parser.finish()
    return Parsed(parser.text, parser.reasoning, tuple(parser.calls))


def _implied_prefix(text: str, marks: Marks) -> str:
    """The opening mark of reasoning where the output closes reasoning that it has not opened."""
    opens, closes = marks.reasoning_open, marks.reasoning_close
    if not opens or closes not in text:
        return ""
    return "" if text.lstrip().startswith(opens) else opens


@contextmanager
def read_vocabulary(model: str | Path) -> Generator[Vocabulary]:
    """A model's vocabulary, without its weights: in milliseconds, whatever its size.

    Raises ModelNotFound, ModelCorrupt, ModelUnsupported.
    """
    from edgellm.native.model import Model

    loaded = Model.load(inspect(model).path, LoadOptions(), vocabulary_only=True)
    try:
        yield loaded.vocabulary
    finally:
        loaded.close()


def discover_samplers() -> tuple[PluginFailure, ...]:
    """Makes the sampler stages of all plugins known by name; gives those that were left out."""
    from edgellm.plugins import PluginFailure, Plugins, object_name
    from edgellm.sampling.stage import register

    plugins = Plugins()
    taken: list[PluginFailure] = []
    for stage in plugins.load_all("sampler"):
        try:
            register(stage)
        except SamplerError as error:
            taken.append(PluginFailure(object_name(stage), "sampler", str(stage), error))
    return (*plugins.failures, *taken)


def quantize(source: str | Path, target: str | Path, kind: str, *, threads: int = 0) -> Path:
    """Writes `source` in another quantization ("Q4_0", "Q8_0" ...) to `target`, with llama.cpp's quantizer.

    Raises ConfigError for an unknown kind, ModelNotFound, ModelCorrupt.
    """
    from edgellm.native.quantizer import quantize_file

    return quantize_file(Path(source), Path(target), kind, threads=threads)


def doctor() -> Any:
    """What this machine and installation offer and what is wrong with them: a `DoctorReport`."""
    from edgellm.doctor import examine

    return examine()
