"""`edgellm models`: the catalogue, and the models on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgellm.cli.arguments import Parser, text
from edgellm.cli.render import megabytes, one_line, say, styled, table, warn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.models.catalogue import Catalogue, ModelEntry
    from edgellm.models.store import StoredModel

_EXAMPLES = """\
examples:
  edgellm models list
  edgellm models pull smollm2-135m
  edgellm models pull gemma3-270m --accept-licence
  edgellm models verify smollm2-135m
  edgellm models remove gemma3-270m
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm models`."""
    parser.epilog = _EXAMPLES
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, summary: str, handler: Any, *, example: str) -> ArgumentParser:
        one = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  edgellm models {example}",
        )
        one.set_defaults(handler=handler)
        return one

    one = command("list", "all models of the catalogue, and which are here", list_models, example="list")
    one.add_argument("--json", action="store_true", help="print a JSON array")
    one.add_argument("--here", action="store_true", help="only models that are on this machine")
    one = command(
        "show", "what the catalogue and the store say of a model", show, example="show smollm2-135m"
    )
    _add_name(one)
    one = command("pull", "fetch a model and verify it", pull, example="pull smollm2-135m")
    _add_name(one)
    one.add_argument("--accept-licence", action="store_true", help="you have read and accepted its licence")
    one.add_argument("--force", action="store_true", help="fetch it again, though it is here")
    one.add_argument("--quiet", action="store_true", help="print nothing where it is here already")
    one = command("verify", "read a model whole and compare its hash", verify, example="verify smollm2-135m")
    one.add_argument(
        "names", metavar="NAME", nargs="*", type=text("the name"), help="default: all that are here"
    )
    one = command("remove", "remove a model from this machine", remove, example="remove gemma3-270m")
    _add_name(one)
    one = command("path", "where a model's file lies", path, example="path smollm2-135m")
    _add_name(one)


def _add_name(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=text("the name"))


def _catalogue() -> Catalogue:
    from edgellm.offline import catalog

    return catalog()


def list_models(args: Namespace) -> int:
    """Prints catalogue and store, the default first."""
    from edgellm.models.store import Store

    catalogue, store = _catalogue(), Store()
    stored = {model.name: model for model in store.list()}
    broken = store.broken()
    names = [*catalogue.entries, *sorted({*stored, *broken} - {*catalogue.entries})]
    if args.here:
        names = [name for name in names if name in stored or name in broken]
    if args.json:
        entries = catalogue.entries
        print(json.dumps([_record(name, entries.get(name), stored.get(name)) for name in names], indent=1))
    else:
        print(table([_row(name, catalogue, stored, broken) for name in names], _HEADS))
    for name, reason in broken.items():
        warn(f"warning: {name}: {reason}")
    return 0


_HEADS = ("name", "size", "here", "licence", "description")


def _row(
    name: str, catalogue: Catalogue, stored: dict[str, StoredModel], broken: dict[str, str]
) -> tuple[str, str, str, str, str]:
    entry, model = catalogue.entries.get(name), stored.get(name)
    size = model.size_bytes if model is not None else entry.expected_bytes if entry is not None else 0
    here = "broken" if name in broken else "yes" if model is not None else ""
    licence = entry.licence if entry is not None else model.licence if model is not None else ""
    description = entry.description if entry is not None else "(no longer in the catalogue)"
    if name == catalogue.default:
        description = f"[default] {description}"
    return name, megabytes(size) if size else "?", here, licence, description


def _record(name: str, entry: ModelEntry | None, model: StoredModel | None) -> dict[str, Any]:
    # Any: JSON values.
    record: dict[str, Any] = {"name": name, "is_here": model is not None}
    if entry is not None:
        record |= {
            "description": entry.description,
            "licence": entry.licence,
            "size_bytes": entry.expected_bytes,
            "sources": [str(source) for source in entry.sources],
        }
    if model is not None:
        record |= {"path": str(model.path), "size_bytes": model.size_bytes, "pulled_at": model.pulled_at}
    return record


def show(args: Namespace) -> int:
    """Prints all that is known of one model."""
    from edgellm.models.store import Store

    catalogue, store = _catalogue(), Store()
    model = store.find(args.name)
    entry = catalogue.entries.get(args.name)
    if entry is None and model is None:
        catalogue.find(args.name)  # raises, with the nearest names
    facts: list[tuple[str, str]] = [("name", args.name)]
    if entry is not None:
        facts += [
            ("description", entry.description),
            ("licence", " ".join(part for part in (entry.licence, entry.licence_url) if part)),
            ("file", entry.file),
            ("size", megabytes(entry.expected_bytes) if entry.expected_bytes else "told by its source"),
            ("sha256", entry.sha256 or "told by its source"),
            ("context", f"{entry.context:,}" if entry.context else "as the file says"),
            ("chat format", entry.chat_format),
            ("tool strategy", entry.tool_strategy),
            ("sampler", entry.sampler or "the model's own, else the default"),
            *(("source", str(source)) for source in entry.sources),
            *(("load", f"{key} = {value}") for key, value in asdict(entry.load).items() if value is not None),
            ("listed in", entry.origin),
        ]
        if entry.needs_acceptance:
            facts.append(("to fetch it", f"edgellm models pull {entry.name} --accept-licence"))
    if model is None:
        facts.append(("on this machine", f"no: edgellm models pull {args.name}"))
    else:
        facts += [
            ("on this machine", str(model.path)),
            ("fetched", f"{model.pulled_at} from {model.source}, {megabytes(model.size_bytes)}"),
        ]
    for key, value in facts:
        print(f"{styled(f'{key:<16}', 'dim', sys.stdout)}{one_line(value, 1000)}")
    return 0


def pull(args: Namespace) -> int:
    """Fetches a model; prints its path."""
    from edgellm.cli.interrupt import raising
    from edgellm.cli.progress import shown_progress
    from edgellm.models.store import Store

    entry = _catalogue().find(args.name)
    store = Store()
    size = f" ({megabytes(entry.expected_bytes)})" if entry.expected_bytes else ""
    was_here = store.list()
    with raising(), shown_progress(f"Fetching {entry.name}{size} ...") as progress:
        model = store.pull(entry, accept=args.accept_licence, force=args.force, progress=progress)
    if args.quiet:
        return 0
    is_new = all(one != model for one in was_here)
    say(f"{entry.name} is {'ready' if is_new else 'here already'}: {megabytes(model.size_bytes)}.")
    print(model.path)
    return 0


def verify(args: Namespace) -> int:
    """Reads models whole. 1 where one is damaged; all are looked at."""
    from edgellm.cli.opening import explained
    from edgellm.cli.progress import shown_progress
    from edgellm.errors import ModelCorrupt, ModelNotFound
    from edgellm.models.store import Store

    store = Store()
    broken = store.broken()
    names = args.names or [*(model.name for model in store.list()), *broken]
    if not names:
        raise ModelNotFound(
            "There is no model on this machine.", hint="Fetch one: edgellm models pull smollm2-135m"
        )
    failures: list[ModelCorrupt] = []
    for name in names:
        try:
            with shown_progress(f"Reading {name} ...") as progress:
                model = store.verify(name, progress)
        except ModelCorrupt as error:
            failures.append(error)
            if len(names) > 1:
                warn(explained(error))
            continue
        print(f"{name}: whole ({megabytes(model.size_bytes)}, sha256 {model.files[0].sha256[:12]}…)")
    if failures and len(names) == 1:
        raise failures[0]
    return 1 if failures else 0


def remove(args: Namespace) -> int:
    """Removes a model."""
    from edgellm.offline import remove_model

    freed = remove_model(args.name)
    say(f"{args.name} is removed: {megabytes(freed)} freed.")
    return 0


def path(args: Namespace) -> int:
    """Prints the path of a model's file."""
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store

    print(resolve(args.name, _catalogue(), Store()).path)
    return 0
