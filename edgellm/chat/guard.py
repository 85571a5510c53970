"""The first render of an unknown template happens in a child process, with limits on CPU time and memory.

A template is a program from a stranger's file. One that loops for an hour or asks for all memory must not
take the runtime with it. The child renders small conversations of every shape; its verdict is kept, by the
template's hash, in the cache folder, so that a known template costs one look at a file. Where no child can
be started, the template is refused: rendering it unguarded would be a silent fallback.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError, TemplateError

CPU_LIMIT_S = 5
WALL_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 768 * 1024 * 1024
_VERDICT = "1"

# Templates read by people and shipped with, or fetched by, a catalogue default: nothing to find out.
KNOWN_SHA256 = frozenset(
    {
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # SmolLM2-Instruct
    }
)

_CHILD = (
    "import json, sys; task = json.load(sys.stdin); sys.path[:] = task['path']; "
    "from edgellm.chat.guard import run_probe; run_probe(task)"
)
_HINT = "Take another template with `--template chatml` (or `--template FILE`)."

_checked: set[str] = set()


def cache_folder() -> Path:
    """Where verdicts are kept: EDGELLM_CACHE_DIR, else EDGELLM_HOME/cache, else the user's cache folder."""
    if explicit := os.environ.get("EDGELLM_CACHE_DIR"):
        return Path(explicit) / "templates"
    if home := os.environ.get("EDGELLM_HOME"):
        return Path(home) / "cache" / "templates"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("edgellm", appauthor=False)) / "templates"


def check_template(source: str, *, bos_text: str = "", eos_text: str = "", name: str = "default") -> None:
    """Return if the template is known to end within its limits; try it in a child if that is not known.

    Raises TemplateError if it exceeds CPU time or memory, or if no child process can be started.
    """
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if digest in KNOWN_SHA256 or digest in _checked:
        return
    verdict = cache_folder() / f"{digest}.ok"
    if _read(verdict) != _VERDICT:
        _try_in_child(source, bos_text, eos_text, name)
        _write(verdict)
    _checked.add(digest)


def _try_in_child(source: str, bos_text: str, eos_text: str, name: str) -> None:
    task = {
        "path": [entry for entry in sys.path if entry],
        "source": source,
        "bos_text": bos_text,
        "eos_text": eos_text,
        "cpu_s": CPU_LIMIT_S,
        "memory_bytes": MEMORY_LIMIT_BYTES,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps(task).encode("utf-8"),
            capture_output=True,
            timeout=WALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TemplateError(
            f"chat template {name!r} was still rendering a short conversation after {WALL_LIMIT_S} s.",
            hint=_HINT,
        ) from error
    except OSError as error:
        raise TemplateError(
            f"chat template {name!r} is unknown, and no child process could be started to try it in: {error}.",
            hint=_HINT,
        ) from error
    words = done.stdout.decode("utf-8", "replace").strip()
    if words == "ok":
        return
    if words == "memory" or "MemoryError" in done.stderr.decode("utf-8", "replace"):
        problem = f"needs more than {MEMORY_LIMIT_BYTES // 2**20} MiB to render a short conversation"
    elif done.returncode < 0:
        problem = f"did not render a short conversation within {CPU_LIMIT_S} s of CPU time"
    else:
        problem = f"could not be tried in a child process (exit code {done.returncode})"
    detail = done.stderr.decode("utf-8", "replace").strip()
    raise TemplateError(f"chat template {name!r} {problem}.", hint=_HINT, log=detail[-2000:])


def run_probe(task: dict[str, Any]) -> None:
    """Child side: set the limits, render conversations of every shape, print the verdict."""
    # Imported before the limits are set, so that the memory limit measures the template.
    from edgellm.chat import sandbox, template

    _ = sandbox
    _limit(task["cpu_s"], task["memory_bytes"])
    subject = template.ChatTemplate(
        task["source"], bos_text=task["bos_text"], eos_text=task["eos_text"], is_guarded=False
    )
    try:
        for messages, tools in template.probe_conversations():
            try:
                subject.render(messages, tools=tools)
            except EdgeError as error:
                # A refusal or a mistake ends the render, which is all that is asked here.
                if isinstance(error.__cause__, (MemoryError, OverflowError)):
                    raise error.__cause__ from error
    except (MemoryError, OverflowError):
        print("memory")
        return
    print("ok")


def _limit(cpu_s: int, memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        # No such limits on this system: the parent's wall clock remains.
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except ValueError:
        # macOS refuses any limit below what its programs map from the start, which is hundreds of GB.
        if sys.platform != "darwin":
            raise


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: Path) -> None:
    # A cache that cannot be written only means that the next process tries again.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".verdict", delete=False
        ) as file:
            file.write(_VERDICT + "\n")
        os.replace(file.name, path)
    except OSError:
        return
