"""The full-size evidence: runs what shows each claim and writes its table to docs/evidence/.

    python benchmarks/prove.py                        every part: an hour or more on two cores
    python benchmarks/prove.py --only decode-speed    one part, repeatable

A page says when, from which commit, by which command and on what machine. BFCL's data is not ours: with --bfcl DIR, the
folder with its files, it is measured too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import prove_parts
from evidence import ROOT, Evidence, Options

FOLDER = ROOT / "docs" / "evidence"
PACKAGES = ("llama-cpp-python", "llguidance", "numpy", "jsonschema")


def machine() -> str:
    """CPU model, cores, memory and system."""
    cpu = platform.processor() or platform.machine()
    cores = memory = ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        cpu, cores = (names[0] if names else cpu), f", {text.count('processor')} cores"
        kilobytes = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1])
        memory = f", {kilobytes / 2**20:.0f} GB"
    except (OSError, ValueError, IndexError):
        pass
    return f"{cpu}{cores}{memory}, {platform.system()} {platform.machine()}"


def commit() -> str:
    """The commit that was measured, and whether the code differed from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.rstrip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    files = sorted(line[3:] for line in changed.splitlines())
    return git("rev-parse", "--short=12", "HEAD") + (f", and changes in {', '.join(files)}" if files else "")


def software() -> str:
    """Versions of what the figures depend on."""
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    )


def page(evidence: Evidence, facts: dict[str, str]) -> str:
    """The text of a page of evidence."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    verdict = "Yes." if evidence.is_shown else "**No: see below.**"
    return (
        f"# {evidence.title}\n\n{evidence.claim}\n\nShown by this run: {verdict}\n\n| | |\n|---|---|\n{rows}\n"
        + evidence.body.strip()
        + "\n"
    )


def prove(name: str, options: Options) -> bool:
    """Runs one part and writes its page; true where it shows what it claims."""
    facts = {
        "Date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Commit": commit(),
        "Machine": machine(),
        "Software": software(),
        "Model": f"`{options.model}`",
    }
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    evidence = prove_parts.PARTS[name](options)
    facts["Command"] = "<br>".join(f"`{command}`" for command in evidence.commands)
    facts["Wall time"] = f"{time.monotonic() - started:.0f} s"
    FOLDER.mkdir(parents=True, exist_ok=True)
    # What commands print may be no text.
    (FOLDER / f"{name}.md").write_bytes(page(evidence, facts).encode("utf-8", "backslashreplace"))
    print(f"{name}: {'shown' if evidence.is_shown else 'NOT SHOWN'}", file=sys.stderr, flush=True)
    return evidence.is_shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts from a command line; 1 where one did not show what it claims."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a catalogue name or a .gguf file")
    parser.add_argument(
        "--only", action="append", choices=tuple(prove_parts.PARTS), help="one part; repeatable"
    )
    parser.add_argument("--bfcl", type=Path, help="folder with BFCL's files, see benchmarks/toolcalls.py")
    parser.add_argument("--count", type=int, default=1000, help="random schemas of valid-calls")
    parser.add_argument(
        "--scale", type=int, default=40, help="the laws are tried on this many times the usual"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(given.model, given.bfcl, given.count, given.scale, Path(folder))
        shown = {name: prove(name, options) for name in given.only or prove_parts.PARTS}
    for name, is_shown in shown.items():
        print(f"{name:<16}{'shown' if is_shown else 'NOT SHOWN':<12}docs/evidence/{name}.md")
    print(json.dumps({"benchmark": "prove", "model": given.model, **shown}))
    return 0 if all(shown.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
