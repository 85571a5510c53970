"""Compiles edgellm/native/scan.c while edgellm is installed. Where that cannot be done, numpy does its work, slower."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

FOLDER = Path(__file__).parent / "edgellm" / "native"
SOURCE = FOLDER / "scan.c"
IS_WINDOWS = os.name == "nt"
NAME = "_scan.dll" if IS_WINDOWS else "_scan.so"
# Sums keep their order and nothing is fused: fast maths would make what a compiler likes of the exponential.
FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-shared",
    *(() if IS_WINDOWS else ("-fPIC",)),
)
LIBRARIES = () if IS_WINDOWS else ("-lm",)
# GCC for Windows puts vectors of 32 bytes on a stack that it aligns to 16: the program ends where they are touched.
TUNINGS = ((),) if IS_WINDOWS else (("-march=native",), ("-mcpu=native",), ())


def compilers() -> list[list[str]]:
    """Commands to try: what CC says, else what Python was built with and the usual names."""
    given = shlex.split(os.environ.get("CC", ""), posix=not IS_WINDOWS)
    if given:
        return [given]
    built_with = shlex.split(sysconfig.get_config_var("CC") or "")[:1]
    return [[name] for name in dict.fromkeys([*built_with, "cc", "gcc", "clang"]) if shutil.which(name)]


def compile_scan(made: Path) -> str:
    """Compiles into `made`, for the processor at hand unless EDGELLM_PORTABLE is set; gives "", or why it could not."""
    reason = "there is no C compiler"
    for compiler in compilers():
        for tuning in TUNINGS[-1:] if os.environ.get("EDGELLM_PORTABLE") else TUNINGS:
            command = [*compiler, *FLAGS, *tuning, "-o", str(made), str(SOURCE), *LIBRARIES]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                reason = f"{compiler[0]}: {error.strerror or error}"
                break
            if done.returncode == 0:
                return ""
            reason = f"{compiler[0]}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return reason


def platform_tag() -> str:
    """The platform of a wheel with a library that was compiled here, as pip knows it."""
    plain = (tag for tag in platform_tags() if "many" not in tag and "musl" not in tag)
    return next(plain)


class ScanBuildHook(BuildHookInterface[Any]):
    """Runs before the wheel is put together, and before an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library to the wheel, which then is for this platform alone; beside the source only for an editable
        installation, which reads it there."""
        self._folder = tempfile.TemporaryDirectory()
        made = Path(self._folder.name) / NAME
        reason = compile_scan(made)
        if not reason and version == "editable":
            try:
                # By way of a file beside it: who has the old one open keeps it.
                beside = FOLDER / f"{NAME}.{os.getpid()}"
                shutil.copyfile(made, beside)
                beside.replace(FOLDER / NAME)
            except OSError as error:
                reason = f"{FOLDER}: {error.strerror or error}"
        if reason:
            print(f"edgellm: scan.c was not compiled ({reason}); numpy does its work.", file=sys.stderr)
            return
        if version != "editable":
            build_data["force_include"][str(made)] = f"edgellm/native/{NAME}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The library is in the wheel."""
        self._folder.cleanup()
