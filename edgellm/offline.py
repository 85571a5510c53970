"""What one can ask without a model in memory: the catalogue, a file's own words, raw output, plugins, this machine."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError, ModelCorrupt, SamplerError
from edgellm.types import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from edgellm.chat.formats import WireFormat
    from edgellm.chat.parser import OutputParser
    from edgellm.examination import DoctorReport
    from edgellm.models.catalogue import Catalogue, ModelEntry
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.models.merges import Merges
    from edgellm.models.store import StoredModel
    from edgellm.native.importance import ImportanceMatrix
    from edgellm.native.quantizer import QuantizePlan
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.planning.plan import Plan
    from edgellm.plugins import PluginFailure
    from edgellm.sampling.registry import StageInfo
    from edgellm.toolbox.tool import Tool
    from edgellm.types import ToolCall, ToolResult, ToolSpec
    from edgellm.weights.compare import Comparison
    from edgellm.weights.optimize import Optimization


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


def plan(
    model: str | Path = "",
    *,
    options: LoadOptions | None = None,
    is_measured: bool = True,
    has_tools: bool = False,
    **overrides: Any,
) -> Plan:
    """What a model would take of this machine, setting by setting, and what `load` would choose; nothing is loaded.

    `overrides` are fields of LoadOptions, as for `load`. `is_measured` measures this machine's speed where that has
    not been done yet (two seconds, kept in the cache folder); `has_tools` adds what spoils tool calls to the notes.
    Raises ModelNotFound, ModelCorrupt, ModelUnsupported, ConfigError; where nothing fits, `Plan.refusal` says so.
    """
    from edgellm.models.gguf_info import inspect_gguf
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store
    from edgellm.planning.plan import make_plan

    found = resolve(model, catalog(), Store())
    chosen = merged_options(options, found.entry, overrides)
    return make_plan(
        inspect_gguf(found.path),
        chosen,
        draft=inspect_draft(chosen),
        model=found.entry.name if found.entry is not None else found.path.name,
        is_measured=is_measured,
        has_tools=has_tools,
    )


def inspect_draft(options: LoadOptions) -> GGUFInfo | None:
    """What the draft model that the options name says of itself; None where they name none.

    Raises ModelNotFound, ModelCorrupt.
    """
    return inspect(options.draft_model) if options.draft_model else None


def merged_options(
    options: LoadOptions | None, entry: ModelEntry | None, overrides: Mapping[str, Any]
) -> LoadOptions:
    """Load options as given, else as the catalogue has them for the model, with single fields replaced.

    Raises ConfigError for a field that does not exist.
    """
    known = [item.name for item in fields(LoadOptions)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"load option {name!r} is unknown.",
                hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.",
            )
    hints = entry.load.changes() if entry is not None else {}
    return replace(options or LoadOptions(**hints), **overrides)


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
    OpenAI tool objects; `prefix` is the generation prompt that the output continues: without it, output that closes
    reasoning it has not opened begins inside it. Raises ConfigError for an unknown format, and for tools that are none.
    """
    prefix = prefix or implied_prefix(text, format=format, template=template)
    parser = stream_parser(format=format, template=template, tools=tools, prefix=prefix)
    parser.feed(text)
    parser.finish()
    return Parsed(parser.text, parser.reasoning, tuple(parser.calls))


def stream_parser(
    *,
    format: str = "auto",
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prefix: str = "",
) -> OutputParser:
    """`parse` for text that is still being written: `feed(piece)` and `finish()` give events.

    Options as for `parse`; whether the output starts inside reasoning is told by `prefix` alone.
    """
    from edgellm.chat.parser import OutputParser

    return OutputParser(_parse_format(format, template), prefix=prefix, tools=_specs(tools or ()))


def _specs(tools: Sequence[Any]) -> list[ToolSpec]:
    """Tools in the form of the OpenAI API, with or without their envelope. Raises ConfigError for anything else."""
    from edgellm.types import ToolSpec

    specs: list[ToolSpec] = []
    for number, tool in enumerate(tools):
        inner: Any = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ConfigError(
                f"tool {number} has no name.", hint='Write {"name": "...", "parameters": {...}}.'
            )
        parameters: Any = inner.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ConfigError(
                f"the parameters of tool {inner['name']!r} are no object.", hint="Give a JSON Schema."
            )
        specs.append(ToolSpec(inner["name"], str(inner.get("description") or ""), dict(parameters)))
    return specs


def _parse_format(format: str, template: str | None) -> WireFormat:
    from edgellm.chat.formats import choose_format
    from edgellm.chat.template import ChatTemplate

    if template is not None:
        return choose_format(template, (), format, ChatTemplate(template).text)
    # No template says whether the model thinks: marks of reasoning are taken for what they look like.
    return replace(choose_format("", (), "hermes" if format == "auto" else format), is_thinking=True)


def implied_prefix(text: str, *, format: str = "auto", template: str | None = None) -> str:
    """The opening mark of reasoning where the output `text` closes reasoning that it has not opened, else ""."""
    wire_format = _parse_format(format, template)
    marks = wire_format.scan_marks()
    closes = [mark.text for mark in marks if mark.does == "answer" and mark.inside == "reasoning"]
    end = min((text.index(close) for close in closes if close in text), default=-1)
    opens = [mark for mark in marks if mark.does == "reason"]
    has_opened = any(
        text.lstrip().startswith(mark.text) or (mark.where == "anywhere" and mark.text in text[: max(end, 0)])
        for mark in opens
    )
    return "" if end < 0 or has_opened else wire_format.marks.reasoning_open


def stored_models() -> tuple[StoredModel, ...]:
    """The models that are whole on this machine, by name."""
    from edgellm.models.store import Store

    return Store().list()


def pull(
    name: str = "", *, accept_licence: bool = False, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Fetches a model of the catalogue ("" is the default one), unless it is here; gives the file's path.

    `progress` gets bytes done, bytes in all (0: unknown) and what is going on; what it raises ends the pull, and
    the next one goes on from there. Raises ModelNotFound, DownloadError (also for a licence that is not accepted).
    """
    from edgellm.models.files import silent
    from edgellm.models.store import Store

    catalogue = catalog()
    entry = catalogue.find(name or catalogue.default)
    return Store().pull(entry, accept=accept_licence, progress=progress or silent).path


def remove_model(name: str) -> int:
    """Removes a fetched model and what there is of an unfinished download; gives the bytes freed.

    Raises ModelNotFound.
    """
    from edgellm.models.store import Store

    return Store().remove(name)


def find_tools() -> tuple[tuple[Tool[..., Any], ...], tuple[PluginFailure, ...]]:
    """All tools that are installed or lie in the user's and trusted folders, and the plugins that were left out."""
    from edgellm.plugins import Plugins

    plugins = Plugins()
    return plugins.load_all("tool"), plugins.failures


def call_tool(
    tool: Tool[..., Any], arguments: Mapping[str, Any], *, settings: Mapping[str, Any] | None = None
) -> ToolResult:
    """Runs a tool as a chat would, without asking anybody: time limit, capture and conversions included.

    Failure is data: see ToolResult. Raises ToolError where the arguments do not fit the schema.
    """
    from edgellm.toolbox.runner import Runner
    from edgellm.types import ToolCall

    given = dict(arguments)
    tool.check(given)
    return Runner(settings=settings).start(tool, ToolCall("call_0", tool.name, given)).result()


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


def read_merges(model: str | Path) -> Merges:
    """How the tokens of a byte-level BPE vocabulary are put together from bytes: `read_merges(name).steps(b" the")`.

    Raises ModelNotFound, ModelCorrupt, and ConfigError for vocabularies of another kind.
    """
    from edgellm.models import merges

    return merges.read_merges(inspect(model).path)


def native_log(*, min_level: int = 0) -> str:
    """What llama.cpp has logged of late (the last 400 lines). Levels: 1 debug, 2 info, 3 warning, 4 error."""
    from edgellm.native.library import log_text

    return log_text(min_level=min_level)


def sampler_stages() -> tuple[StageInfo, ...]:
    """All sampler stages with what they do, their arguments, ranges and defaults; those of plugins behind llama.cpp's.

    `discover_samplers` says which plugins were left out, and why.
    """
    from edgellm.sampling.registry import REGISTRY

    discover_samplers()
    return tuple(REGISTRY.all())


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


def discover_policies() -> tuple[PluginFailure, ...]:
    """Makes the context policies of all plugins known by name; gives those that were left out."""
    from edgellm.context_policy import POLICIES
    from edgellm.plugins import PluginFailure, Plugins, object_name

    plugins = Plugins()
    taken: list[PluginFailure] = []
    for policy in plugins.load_all("policy"):
        try:
            POLICIES.register(policy)
        except ConfigError as error:
            origin = str(getattr(policy, "__module__", ""))
            taken.append(PluginFailure(object_name(policy), "policy", origin, error))
    return (*plugins.failures, *taken)


def quantize(
    source: str | Path,
    target: str | Path,
    kind: str,
    *,
    importance: str | Path = "",
    calibrate_text: str = "",
    tensors: Mapping[str, str] | None = None,
    pure: bool = False,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Path:
    """Writes `source` in another quantization ("Q4_0", "Q8_0" ...) to `target`, with llama.cpp's quantizer.

    `importance` is a file with an importance matrix; or one is made of `calibrate_text` on the way, a text like
    those the model is for. `tensors` gives tensors whose name matches a regular expression a type of their own,
    `pure` all the same. `progress` gets steps done, in all, and what is going on; where it returns False,
    Cancelled is raised. Whatever ends it early, no file is left. Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    import tempfile

    from edgellm.native.quantizer import QuantizeOptions, quantize_file

    path, target = inspect(source).path, Path(target)
    options = QuantizeOptions(str(importance), dict(tensors or {}), pure, threads)
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        if calibrate_text:
            plan_quantize(source, kind, tensors=tensors)  # what is wrong is said before the text is read
            file = Path(folder) / "importance.gguf"
            calibrate(source, calibrate_text, threads=threads, progress=progress).save(file)
            options = replace(options, importance=str(file))
        return quantize_file(path, target, kind, options, progress=progress)


def plan_quantize(
    source: str | Path, kind: str, *, tensors: Mapping[str, str] | None = None, pure: bool = False
) -> QuantizePlan:
    """What `quantize` would write: each tensor's type and size, and their sum; nothing is computed or written.

    Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    from edgellm.native.quantizer import QuantizeOptions, plan_quantization

    options = QuantizeOptions(tensors=dict(tensors or {}), pure=pure)
    return plan_quantization(inspect(source).path, kind, options)


def plan_every_quantize(source: str | Path) -> dict[str, QuantizePlan | ModelCorrupt]:
    """The plans of all quantizations by name, finest first; an error where llama.cpp refuses one for this model.

    Raises ModelNotFound, ModelCorrupt.
    """
    from edgellm.native.quantizer import plan_every_kind

    return plan_every_kind(inspect(source).path)


def calibrate(
    model: str | Path,
    text: str,
    *,
    source: str = "",
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> ImportanceMatrix:
    """How strongly each weight of a model is used while it reads a text: what low quantizations are steered by.

    `.save(path)` writes it as llama.cpp's tools do. `source` names the text in it; `progress` as for `quantize`.
    Raises ConfigError for a text of under 64 tokens, ModelNotFound, ModelCorrupt, OutOfMemory.
    """
    from edgellm.weights.calibrate import calibrate

    def tell(done: int, total: int) -> bool | None:
        return progress(done, total, "reading the text") if progress is not None else None

    return calibrate(inspect(model).path, text, source=source, threads=threads, progress=tell)


def compare(
    models: Sequence[str | Path],
    text: str = "",
    *,
    windows: int = 4,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Comparison:
    """Quantizations of one model beside each other: size, speed here, and how far their predictions are from the
    largest's on `text` (a short text of ours where none is given; see `compare_files`).

    Raises ConfigError for files of different vocabularies or a short text, Cancelled, and what loading raises.
    """
    from edgellm.weights.compare import compare_files
    from edgellm.weights.sample_text import SAMPLE_TEXT

    return compare_files(
        [inspect(model).path for model in models],
        text or SAMPLE_TEXT,
        windows=windows,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )


def optimize(
    model: str | Path,
    folder: str | Path,
    text: str = "",
    *,
    kinds: Sequence[str] = (),
    bound: float | None = None,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Optimization:
    """Copies of a model in types with fast kernels, written to `folder` and measured beside it; the model itself stays
    as it is. `best` is the quickest whose mean divergence from the original is at most `bound` nats a token.

    Raises ConfigError, Cancelled, ModelNotFound, ModelCorrupt, and what loading raises.
    """
    from edgellm.weights.optimize import FAST_KINDS, LOSS_BOUND, optimize_file
    from edgellm.weights.sample_text import SAMPLE_TEXT

    return optimize_file(
        inspect(model).path,
        Path(folder),
        text or SAMPLE_TEXT,
        kinds=kinds or FAST_KINDS,
        bound=LOSS_BOUND if bound is None else bound,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )


def keep_copy(model: str | Path, copy: str | Path) -> str:
    """Makes a copy of a model that `optimize` wrote the user's own: the file moves into the store, and the user's
    catalogue gets an entry with the original's settings. Gives its name; the original stays what its name means.

    Raises ConfigError where the name is taken, or where the model is none of the catalogue's.
    """
    from edgellm.models.derived import keep_derived
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store

    catalogue, store = catalog(), Store()
    return keep_derived(resolve(model, catalogue, store).entry, Path(copy), catalogue, store)


def doctor() -> DoctorReport:
    """What this machine and installation offer and what is wrong with them: a `DoctorReport`."""
    from edgellm.examination import examine

    return examine()
