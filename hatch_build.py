"""Compiles edgellm/native/scan.c while edgellm is installed. Where that cannot be done, numpy does its work, slower."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "edgellm" / "native"
SOURCE = FOLDER / "scan.c"
LIBRARY = FOLDER / ("_scan.dll" if os.name == "nt" else "_scan.so")
# Sums keep their order and nothing is fused: fast maths would make what a compiler likes of the exponential.
FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
)


def compile_scan(flags: tuple[str, ...] = FLAGS) -> str:
    """Writes LIBRARY, for the processor at hand unless EDGELLM_PORTABLE is set; gives "", or why it could not."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
    native = [] if os.environ.get("EDGELLM_PORTABLE") else [["-march=native"], ["-mcpu=native"]]
    reason = ""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = Path(folder) / LIBRARY.name
        for tuning in [*native, []]:
            command = [*compiler, *flags, *tuning, "-o", str(made), str(SOURCE), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return f"{compiler[0]}: {error.strerror or error}"
            if done.returncode == 0:
                made.replace(LIBRARY)
                return ""
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{' '.join(compiler)}: {reason}"


class ScanBuildHook(BuildHookInterface[Any]):
    """Runs before the wheel is put together, and before an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library to the wheel, which then is for this platform alone."""
        reason = compile_scan()
        if reason:
            print(f"edgellm: scan.c was not compiled ({reason}); numpy does its work.", file=sys.stderr)
            LIBRARY.unlink(missing_ok=True)
            return
        build_data["artifacts"].append(str(LIBRARY.relative_to(Path(self.root)).as_posix()))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
