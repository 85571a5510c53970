"""llama-bench beside us: found, run on the same model with the same settings, and read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ConfigError
from edgellm.folders import cache_dir

NAME = "llama-bench"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class PeerSpeed:
    """Tokens a second that llama-bench measured, and the build that it says it is."""

    tok_s: float
    build: str


def find_peer(given: str) -> Path:
    """llama-bench: the file that was named, else on PATH, else where `make llama-bench` puts it.

    Raises ConfigError where there is none.
    """
    if given != NAME:
        path = Path(given).expanduser()
        if path.is_file() and os.access(path, os.X_OK):
            return path
        raise ConfigError(f"{given} is no program to run.", hint=f"Name {NAME}, or its file.")
    built = cache_dir() / NAME / NAME
    found = shutil.which(NAME) or (str(built) if built.is_file() else None)
    if found is None:
        raise ConfigError(
            f"{NAME} is neither on PATH nor in {built.parent}.", hint="Build it: make llama-bench."
        )
    return Path(found)


def run_peer(
    program: Path, model: Path, *, prefill: int, decode: int, threads: int, ubatch: int, kv_type: str
) -> PeerSpeed:
    """One run of prefill or of decode, the other 0, weights loaded anew.

    Raises ConfigError where it fails or says what cannot be read.
    """
    words = [str(program), "-m", str(model), "-p", str(prefill), "-n", str(decode), "-t", str(threads)]
    words += ["-ub", str(ubatch), "-ctk", kv_type, "-ctv", kv_type, "-r", "1", "-o", "json"]
    try:
        # The environment is ours, wait policy included: threads of both look as often before they sleep.
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} cannot be run: {error}.", hint="Build it: make llama-bench.") from error
    try:
        return read_peer(done.stdout)
    except (ValueError, KeyError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"{program} failed on {model.name}: {last}", hint="Run it yourself, or leave --against out."
        ) from error


def read_peer(text: str) -> PeerSpeed:
    """Its JSON, of one test. Raises ValueError, KeyError, TypeError for anything else."""
    (run,) = json.loads(text)
    return PeerSpeed(float(run["avg_ts"]), str(run.get("build_commit", "")))
