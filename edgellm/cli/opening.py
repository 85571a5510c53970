"""From command-line options to a loaded model, a set of tools and the options of a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli.render import warn
from edgellm.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from argparse import Namespace

    from edgellm.plugins import Plugins
    from edgellm.runtime import Runtime
    from edgellm.toolbox.tool import Tool
    from edgellm.toolbox.toolset import Toolset

DEFAULT_TOOLS = ("calculator", "clock")
_LOADING = {
    "ctx": "n_ctx",
    "threads": "threads",
    "gpu_layers": "n_gpu_layers",
    "fit": "fit",
    "draft_model": "draft_model",
    "prefix_cache": "prefix_cache_mb",
}


def open_runtime(args: Namespace) -> Runtime:
    """The model that the options name, loaded. Raises EdgeError."""
    from edgellm.cli.samplers import discover_when_needed
    from edgellm.runtime import load

    discover_when_needed()
    return load(args.model or "", **load_options(args))


def load_options(args: Namespace) -> dict[str, Any]:
    """The fields of LoadOptions that the options set."""
    # Any: fields of many types.
    options: dict[str, Any] = {
        field: getattr(args, name) for name, field in _LOADING.items() if getattr(args, name) is not None
    }
    if args.kv_type:
        options["kv_type_k"] = options["kv_type_v"] = args.kv_type
    if args.threads:
        options["threads_batch"] = args.threads
    from edgellm.models.adapter_set import adapters_of_kinds

    chosen = adapters_of_kinds(args.lora, args.control_vector)
    if chosen.lora:
        options["lora"] = chosen.lora
    if chosen.control:
        options["control_vectors"] = chosen.control
    return options


def read_text(path: Path, what: str) -> str:
    """A text file's content. Raises ConfigError naming it."""
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path} ({what}).", hint="Check the path.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text ({what}).", hint="Name a text file.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({what}): {error.strerror}.", hint="Check the path and its permissions."
        ) from None


def read_json(path: Path, what: str) -> Any:
    """A JSON file's value. Raises ConfigError naming file and line."""
    # Any: what JSON holds.
    try:
        return json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON ({what}): line {error.lineno}, column {error.colno}: {error.msg}.",
            hint="Correct that place.",
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply ({what}).", hint="Simplify it.") from None


def chat_options(args: Namespace) -> dict[str, Any]:
    """The fields of ChatOptions that the options set, without tools and approval."""
    # Any: fields of many types.
    options: dict[str, Any] = {"trace": args.logprobs, "settings": settings(args.settings)}
    if args.system is not None:
        options["system"] = args.system
    if args.sampler is not None:
        options["sampler"] = args.sampler
    if args.seed is not None:
        options["seed"] = args.seed
    if args.format is not None:
        options["chat_format"] = args.format
    if args.when_full is not None:
        options["context_policy"] = args.when_full
    check_guesses(args.speculate, args.draft_model)
    if args.speculate is not None:
        options["speculate"] = args.speculate
    if args.speculate_from:
        if args.speculate == "off":
            raise ConfigError(
                "--speculate-from stands beside --speculate off.", hint="Leave one of them out."
            )
        options.setdefault("speculate", "auto")
        options["speculate_from"] = [
            read_text(Path(name), "--speculate-from") for name in args.speculate_from
        ]
    if args.template is not None:
        options["template"] = template_text(args.template)
    if args.lora or args.control_vector:
        from edgellm.models.adapter_set import adapters_of_kinds

        options["adapters"] = adapters_of_kinds(args.lora, args.control_vector)
    return options


def check_guesses(mode: str | None, draft_model: str | None) -> None:
    """Looks at --speculate, or at what /speculate is given. Raises ConfigError where the draft model is missing."""
    if mode == "draft" and not draft_model:
        raise ConfigError(
            "there is no draft model to guess with.",
            hint="Begin with --draft-model NAME, or choose auto or ngram.",
        )


def check_chain(text: str | None) -> None:
    """Looks at a sampler chain before a model is loaded for it. Raises SamplerError."""
    if text is None:
        return
    from edgellm.cli.samplers import discover_when_needed
    from edgellm.sampling.spec import ChainSpec

    discover_when_needed()
    ChainSpec.parse(text)


def check_policy(name: str | None) -> None:
    """Looks at a context policy before a model is loaded for it; plugins that do not load are warned of.

    Raises ConfigError.
    """
    if name is None:
        return
    from edgellm.context_policy import POLICIES, find_policy

    POLICIES.finder = _find_policies
    find_policy(name)


def _find_policies() -> None:
    from edgellm.discovery import discover_policies

    for failure in discover_policies():
        warn(f"warning: {failure.error}")


def template_text(name: str) -> str:
    """A template's text: as it is for a built-in name, else the file's. Raises ConfigError."""
    from edgellm.chat.template import BUILTIN

    if name in BUILTIN:
        return name
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(
            f"There is no chat template {name!r}.",
            hint=f"Name a Jinja file, or one of: {', '.join(BUILTIN)}.",
        )
    source = read_text(path, "chat template")
    if "{" not in source:
        raise ConfigError(f"{path} is no chat template: it has no Jinja in it.", hint="Name a Jinja file.")
    return source


def settings(pairs: list[str]) -> dict[str, Any]:
    """`files.root=./notes` as {"files": {"root": "./notes"}}. Raises ConfigError."""
    # Any: texts, and dicts of them.
    found: dict[str, Any] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        parts = key.split(".")
        if not mark or not all(part.strip() for part in parts):
            raise ConfigError(
                f"--set {pair!r} is not KEY=VALUE.", hint="Write, for example, --set files.root=./notes."
            )
        table = found
        for part in parts[:-1]:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {pair!r} goes below a plain value.", hint="Leave one of the two out."
                )
            table = inner
        table[parts[-1]] = value
    return found


def choose_tools(args: Namespace) -> Toolset:
    """The tools to offer.

    `--tool` names them; without it calculator, clock and all of `--tools`. A path of which `--tool` names nothing
    is offered whole. Discovered plugins that do not load are warned of. Raises EdgeError.
    """
    from edgellm.plugins import Plugins, object_name
    from edgellm.toolbox.toolset import Toolset

    if args.no_tools:
        if args.tool or args.tools:
            raise ConfigError("--no-tools stands beside --tool or --tools.", hint="Leave one of them out.")
        return Toolset()
    plugins = Plugins()
    offered: list[Tool[..., Any]] = []
    from_paths: dict[str, Tool[..., Any]] = {}
    wanted = list(dict.fromkeys(args.tool or DEFAULT_TOOLS))
    for path in args.tools:
        found = plugins.load_path("tool", Path(path))
        picked = [item for item in found if args.tool and object_name(item) in wanted]
        offered += picked or found
        from_paths.update((object_name(item), item) for item in found)
    for name in wanted:
        if name not in from_paths or not args.tool:
            offered += plugins.load("tool", name)
    tell_failures(plugins)
    return Toolset(*offered)


def tell_failures(plugins: Plugins) -> None:
    """Warns of discovered plugins that were left out."""
    for failure in plugins.failures:
        warn(f"warning: {failure.error}")


def check_choice(args: Namespace, toolset: Toolset) -> None:
    """Looks at --tool-choice and --allow before a model is loaded. Raises ConfigError."""
    names = ", ".join(toolset.names) or "none"
    if args.tool_choice not in ("auto", "none", "required") and args.tool_choice not in toolset:
        raise ConfigError(
            f"--tool-choice {args.tool_choice!r} is not a tool that is offered.",
            hint=f"Take auto, none, required, or one of: {names}.",
        )
    if args.tool_choice == "required" and not len(toolset):
        raise ConfigError("--tool-choice required, but no tool is offered.", hint="Offer one with --tool.")
    for name in args.allow:
        if name not in toolset:
            raise ConfigError(f"--allow {name!r} is not a tool that is offered.", hint=f"There is {names}.")
        if not toolset.get(name).spec.is_grantable:
            raise ConfigError(
                f"{name} is asked for at every call: --allow does not apply to it.",
                hint="Leave it out, and answer at a terminal; or run `edgellm tools call` yourself.",
            )


def explained(error: EdgeError) -> str:
    """An error within a longer command, as one line."""
    from edgellm.cli.failure import error_text

    return error_text(error)
