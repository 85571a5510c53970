"""`edgellm doctor`: prints what is there and what is wrong, with a remedy for each."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from edgellm.cli.failure import ERROR
from edgellm.cli.render import megabytes, one_line, styled

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.examination import DoctorReport

_EXAMPLES = """\
examples:
  edgellm doctor
  edgellm doctor --json | jq .backends

It leaves with 0 where nothing is broken, else with 1.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm doctor`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--clear-prefixes", action="store_true", help="remove the computed system turns and tools, and leave"
    )
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Prints the report; 1 where something is broken."""
    from edgellm.examination import examine

    if args.clear_prefixes:
        return _clear_prefixes()
    report = examine()
    if args.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)
    return 0 if report.is_well else ERROR


def _clear_prefixes() -> int:
    from edgellm.engine.prefixes import PrefixStore
    from edgellm.errors import ConfigError

    store = PrefixStore()
    try:
        print(f"{megabytes(store.clear())} removed from {one_line(str(store.folder), 2000)}.")
    except OSError as error:
        raise ConfigError(
            f"{store.folder} cannot be cleared: {error}.", hint="Remove the folder by hand."
        ) from error
    return 0


def _print(report: DoctorReport) -> None:
    from edgellm.examination import TESTED_SERIES

    llama = report.versions["llama-cpp-python"]
    others = ", ".join(
        f"{name} {version or 'not installed'}"
        for name, version in report.versions.items()
        if name not in ("edgellm", "llama-cpp-python")
    )
    memory = report.memory
    in_use = megabytes(memory.total_bytes) if memory.total_bytes else "unknown"
    if memory.available_bytes:
        in_use += f", {megabytes(memory.available_bytes)} available"
    if memory.limit_bytes:
        in_use += f", this process may use {megabytes(memory.limit_bytes)} (cgroup)"
    facts = (
        ("edgellm", f"{report.versions['edgellm'] or 'not installed'}, Python {report.python}"),
        ("system", report.system),
        ("llama.cpp", f"llama-cpp-python {llama or 'not installed'} (tested with {TESTED_SERIES})"),
        ("backends", ", ".join(report.backends) or "unknown"),
        *(("device", device) for device in report.devices),
        ("features", ", ".join(report.features) or "unknown"),
        (
            "threads",
            f"{report.usable_cores} of {report.cores} cores usable, wait policy {report.wait_policy},"
            f" {report.barrier} barrier",
        ),
        (
            "scan",
            f"of the vocabulary by {'compiled code' if report.vocabulary_scan == 'compiled' else 'numpy'}",
        ),
        ("memory", in_use),
        (
            "store",
            f"{report.store}, {megabytes(report.store_bytes)}, {megabytes(report.store_free_bytes)} free",
        ),
        ("models", ", ".join(report.store_models) or "none: edgellm models pull smollm2-135m"),
        ("prefixes", f"{report.prefixes}, {report.prefix_count} kept, {megabytes(report.prefix_bytes)}"),
        ("config", report.config),
        ("plugins", ", ".join(report.plugins) or "none"),
        ("packages", others),
    )
    for key, value in facts:
        print(f"{styled(f'{key:<11}', 'dim', sys.stdout)}{one_line(value, 2000)}")
    if not report.problems:
        print(styled("\nNothing is wrong.", "green", sys.stdout))
        return
    print()
    for problem in report.problems:
        style, mark = ("red", "broken ") if problem.is_broken else ("yellow", "note   ")
        print(
            f"{styled(mark, style, sys.stdout)}{one_line(problem.what, 1000)} {one_line(problem.remedy, 500)}"
        )
