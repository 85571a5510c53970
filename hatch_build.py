"""Compiles the C files of edgellm/native while edgellm is installed. Where that cannot be done, others do their work,
slower: numpy that of scan.c, libgomp that of barrier.c."""

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
IS_WINDOWS = os.name == "nt"
# barrier.c is about libgomp, and about the libraries of Linux.
STEMS = ("scan", "barrier") if sys.platform == "linux" else ("scan",)
STAND_INS = {"scan": "numpy", "barrier": "libgomp"}
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


def library_name(stem: str) -> str:
    """The compiled library of a C file."""
    return f"_{stem}.dll" if IS_WINDOWS else f"_{stem}.so"


def compile_file(stem: str, made: Path) -> str:
    """Compiles a C file into `made`, for the processor at hand unless EDGELLM_PORTABLE is set; gives "", or why it
    could not."""
    reason = "there is no C compiler"
    for compiler in compilers():
        for tuning in TUNINGS[-1:] if os.environ.get("EDGELLM_PORTABLE") else TUNINGS:
            command = [*compiler, *FLAGS, *tuning, "-o", str(made), str(FOLDER / f"{stem}.c"), *LIBRARIES]
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


class CompilingBuildHook(BuildHookInterface[Any]):
    """Runs before the wheel is put together, and before an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the libraries to the wheel, which then is for this platform alone; beside the sources only for an
        editable installation, which reads them there."""
        self._folder = tempfile.TemporaryDirectory()
        for stem in STEMS:
            name = library_name(stem)
            made = Path(self._folder.name) / name
            reason = compile_file(stem, made)
            if not reason and version == "editable":
                try:
                    # By way of a file beside it: who has the old one open keeps it.
                    beside = FOLDER / f"{name}.{os.getpid()}"
                    shutil.copyfile(made, beside)
                    beside.replace(FOLDER / name)
                except OSError as error:
                    reason = f"{FOLDER}: {error.strerror or error}"
            if reason:
                print(
                    f"edgellm: {stem}.c was not compiled ({reason}); {STAND_INS[stem]} does its work.",
                    file=sys.stderr,
                )
                continue
            if version != "editable":
                build_data["force_include"][str(made)] = f"edgellm/native/{name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The libraries are in the wheel."""
        self._folder.cleanup()
