"""The barrier of llama.cpp's threads: they meet at it, wait for each other, and a model computes the same."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import edgellm
from edgellm.native import barrier
from edgellm.native.library import lib
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="the barrier is for Linux, and compiled"
)

# Each round all write their number, meet, look at what the others wrote, and meet again.
MEETING = """
#include <omp.h>
int meet(int threads, int rounds) {
    int wrong = 0;
    volatile int written[64] = {0};
    #pragma omp parallel num_threads(threads) reduction(+ : wrong)
    {
        int self = omp_get_thread_num(), size = omp_get_num_threads();
        wrong += size != threads;
        for (int round = 1; round <= rounds; round++) {
            written[self] = round;
            #pragma omp barrier
            for (int other = 0; other < size; other++) wrong += written[other] != round;
            #pragma omp barrier
        }
    }
    return wrong;
}
"""
# How often its threads would look: within a team, within teams of a team, and outside.
TURNS = """
#include <omp.h>
typedef unsigned (*turns_t)(void);
unsigned within(int threads, turns_t turns) {
    unsigned seen = 0;
    #pragma omp parallel num_threads(threads)
    {
        #pragma omp barrier
        #pragma omp single
        seen = omp_get_num_threads() == threads ? turns() : 0;
    }
    return seen;
}
unsigned nested(turns_t turns) {
    unsigned seen = 0;
    omp_set_max_active_levels(2);
    #pragma omp parallel num_threads(2)
    {
        int self = omp_get_thread_num();
        #pragma omp barrier
        unsigned inner = self == 0 ? within(2, turns) : 0;
        #pragma omp barrier
        if (self == 0) seen = inner;
    }
    return seen;
}
"""
# A libgomp of one thread, under another name, that counts.
COUNTING = """
int barriers = 0, regions = 0;
void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags) {
    (void)threads; (void)flags;
    regions++;
    function(data);
}
void GOMP_barrier(void) { barriers++; }
int omp_get_num_threads(void) { return 1; }
"""
CALLING = """
void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
void GOMP_barrier(void);
int omp_get_num_threads(void);
static void body(void *data) { *(int *)data += omp_get_num_threads(); GOMP_barrier(); }
int call(void) { int calls = 0; GOMP_parallel(body, &calls, 1, 0); return calls; }
void alone(void) { GOMP_barrier(); }
"""


def compiled(folder: Path, name: str, code: str, *flags: str) -> Path:
    source, made = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(code, encoding="utf-8")
    assert COMPILER is not None
    subprocess.run(
        [COMPILER, "-O2", "-shared", "-fPIC", "-o", str(made), str(source), *flags], check=True, cwd=folder
    )
    return made


def counting_libgomp(folder: Path) -> Path:
    return compiled(folder, "libgomp-1a2b", COUNTING, "-Wl,-soname,libgomp-1a2b.so")


def calling_it(folder: Path, *flags: str) -> tuple[Path, Path]:
    """A library that calls the counting libgomp, linked with `flags`, and that libgomp."""
    gomp = counting_libgomp(folder)
    where = (f"-L{folder}", f"-l:{gomp.name}", f"-Wl,-rpath,{folder}")
    return compiled(folder, "calling", CALLING, *flags, *where), gomp


def in_a_process(code: str, environment: Mapping[str, str] | None = None) -> str:
    """What a process says whose libgomp has not been used before; the barrier is put into one of it alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


INSTALLED = """
import ctypes, sys
from edgellm.native import barrier
def install(function, spins, cores):
    return barrier.compiled().edgellm_barrier_install(ctypes.cast(function, ctypes.c_void_p), spins, cores)
"""


def test_llamas_threads_meet_there() -> None:
    assert barrier.compiled() is not None
    lib()
    assert barrier.is_installed


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, 2000),
        ({"GOMP_SPINCOUNT": "7"}, 7),
        ({"GOMP_SPINCOUNT": " 20K "}, 20_000),
        ({"GOMP_SPINCOUNT": "3m", "OMP_WAIT_POLICY": "passive"}, 3_000_000),
        ({"GOMP_SPINCOUNT": "infinity"}, 2**32 - 1),
        ({"GOMP_SPINCOUNT": "30g"}, 2**32 - 1),
        ({"GOMP_SPINCOUNT": "9" * 20}, None),
        ({"GOMP_SPINCOUNT": "9" * 9999}, None),
        ({"GOMP_SPINCOUNT": "9", "OMP_WAIT_POLICY": ""}, 9),
        ({"GOMP_SPINCOUNT": ""}, None),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 0),
        ({"OMP_WAIT_POLICY": "active"}, 2**32 - 1),
        ({"OMP_WAIT_POLICY": ""}, None),
        ({"OMP_WAIT_POLICY": "lazy"}, None),
        ({"GOMP_SPINCOUNT": "many"}, None),
        ({"GOMP_SPINCOUNT": "-3"}, None),
        ({"GOMP_SPINCOUNT": "k"}, None),
    ],
)
def test_turns_are_those_that_libgomp_would_take_or_it_is_left_alone(
    given: dict[str, str], spins: int | None
) -> None:
    assert barrier.spins_of(given) == spins


def test_what_the_user_sets_to_nothing_is_left_alone() -> None:
    code = "from edgellm.native import barrier, library; library.lib(); print(barrier.is_installed)"
    assert in_a_process(code, {"OMP_WAIT_POLICY": ""}) == "False"
    assert in_a_process(code) == "True"


@pytest.mark.parametrize("spins", [0, 3, 2000])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_nobody_goes_on_before_all_have_come(tmp_path: Path, threads: int, spins: int) -> None:
    library = compiled(tmp_path, "meeting", MEETING, "-fopenmp")
    code = INSTALLED + (
        f"meet = ctypes.CDLL({str(library)!r}).meet\n"
        # One region with libgomp's barrier, in whose threads then ours are.
        f"before = meet({threads}, 3)\n"
        f"done = install(meet, {spins}, 2)\n"
        f"print(done, before, *(meet({threads}, 700) for _ in range(3)))"
    )
    assert in_a_process(code) == "1 0 0 0 0"


@pytest.mark.parametrize(
    "flags",
    [("-Wl,-z,lazy",), ("-Wl,-z,now,-z,relro",), ("-fno-plt", "-Wl,-z,now,-z,relro"), ("-Wl,-z,norelro",)],
    ids=["open to others", "sealed", "without a table of calls", "never sealed"],
)
def test_calls_come_to_it_however_a_library_was_linked(tmp_path: Path, flags: tuple[str, ...]) -> None:
    library, gomp = calling_it(tmp_path, *flags)
    code = INSTALLED + (
        f"calling, gomp = ctypes.CDLL({str(library)!r}), ctypes.CDLL({str(gomp)!r})\n"
        "def counts(): return [ctypes.c_int.in_dll(gomp, name).value for name in ('regions', 'barriers')]\n"
        "calling.call(); before = counts()\n"
        "done = install(calling.call, 10, 1), install(calling.call, 20, 1)\n"
        "calling.call(); within = counts()\n"
        "calling.alone(); print(done, before, within, counts())"
    )
    # Regions are libgomp's as before; its barrier is that of who is in none.
    assert in_a_process(code) == "(1, 1) [1, 1] [2, 1] [2, 2]"


def test_where_calls_were_not_looked_up_yet_nothing_is_changed(tmp_path: Path) -> None:
    library, _ = calling_it(tmp_path, "-Wl,-z,lazy")
    code = INSTALLED + (
        "import os\n"
        "dlopen = ctypes.CDLL(None).dlopen\n"
        "dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p\n"
        f"handle = dlopen({str(library)!r}.encode(), os.RTLD_LAZY)\n"
        f"calling = ctypes.CDLL({str(library)!r}, handle=handle)\n"
        "before = install(calling.call, 1, 1)\n"
        "calling.call(); print(before, install(calling.call, 1, 1), calling.call())"
    )
    assert in_a_process(code) == "0 1 1"


def test_another_libgomp_that_came_first_goes_on_being_used(tmp_path: Path) -> None:
    """Half of the calls to one and half to the other is nobody's team."""
    gomp = counting_libgomp(tmp_path)
    meeting = compiled(tmp_path, "meeting", MEETING, "-fopenmp")
    code = INSTALLED + (
        f"gomp = ctypes.CDLL({str(gomp)!r}, mode=ctypes.RTLD_GLOBAL)\n"
        f"meet = ctypes.CDLL({str(meeting)!r}).meet\n"
        "def regions(): return ctypes.c_int.in_dll(gomp, 'regions').value\n"
        "done = install(meet, 10, 2), regions(); meet(1, 5); print(*done, regions())"
    )
    # One region more of the one that counts, though the library was linked with the system's.
    assert in_a_process(code) == "1 0 1"


def test_where_more_threads_work_than_there_are_cores_they_look_less_often(tmp_path: Path) -> None:
    library = compiled(tmp_path, "turns", TURNS, "-fopenmp")
    code = INSTALLED + (
        f"library = ctypes.CDLL({str(library)!r})\n"
        "turns = ctypes.cast(barrier.compiled().edgellm_barrier_turns, ctypes.c_void_p)\n"
        "done = install(library.within, 5000, 2)\n"
        "print(done, barrier.compiled().edgellm_barrier_turns(), library.within(2, turns), library.within(3, turns),\n"
        "      library.nested(turns), library.within(2, turns))\n"
        "install(library.within, 30, 1); print(library.within(3, turns))"
    )
    assert in_a_process(code).split() == ["1", "5000", "5000", "100", "100", "5000", "30"]


def test_a_library_without_libgomp_and_one_with_another_stay_as_they_are(tmp_path: Path) -> None:
    plain = compiled(tmp_path, "plain", "int call(void) { return 5; }")
    meeting = compiled(tmp_path, "meeting", MEETING, "-fopenmp")
    other, _ = calling_it(tmp_path)
    code = INSTALLED + (
        f"plain, meeting, other = (ctypes.CDLL(path) for path in {[str(plain), str(meeting), str(other)]})\n"
        "print(install(plain.call, 1, 1), install(ctypes.c_void_p(16), 1, 1), install(meeting.meet, 1, 1),\n"
        "      install(other.call, 1, 1), plain.call(), other.call(), meeting.meet(2, 9))"
    )
    assert in_a_process(code) == "0 0 1 0 5 1 0"


LOGITS = """
import sys
import edgellm
from edgellm.native import barrier
from edgellm.types import SpanKind
with edgellm.load(sys.argv[1], threads=int(sys.argv[2]), threads_batch=int(sys.argv[2]), n_ctx=128) as runtime:
    session = runtime.engine.session(runtime.make_chain("greedy", 7))
    session.extend([(token, SpanKind.PROMPT) for token in range(3, 40)])
    tokens = [session.step().token for _ in range(12)]
    print(barrier.is_installed, tokens, session.logits().tobytes().hex())
"""


@pytest.mark.parametrize("threads", [2, 5])
def test_a_model_computes_the_same_with_either(tiny_model: Callable[..., Path], threads: int) -> None:
    model = str(tiny_model("llama"))
    said = {
        policy: in_a_process(f"import sys; sys.argv[1:] = {[model, str(threads)]}\n{LOGITS}", given)
        for policy, given in {
            "libgomp": {"OMP_WAIT_POLICY": ""},
            "ours": {},
            "sleeping": {"OMP_WAIT_POLICY": "passive"},
        }.items()
    }
    assert said["ours"].startswith("True") and said["libgomp"].startswith("False")
    assert said["sleeping"] == said["ours"] == said["libgomp"].replace("False", "True", 1)


def test_two_models_at_once_have_teams_of_their_own(tiny_model: Callable[..., Path]) -> None:
    def answer() -> list[int]:
        with edgellm.load(tiny_model("llama"), threads=2, threads_batch=2, n_ctx=256) as runtime:
            session = runtime.engine.session(runtime.make_chain("greedy", 7))
            session.extend([(token, SpanKind.PROMPT) for token in range(3, 40)])
            return [session.step().token for _ in range(60)]

    alone = answer()
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(answer())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 3


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ctypes.CDLL(str(barrier.LIBRARY))
    assert known.edgellm_barrier_version() == barrier.VERSION
    monkeypatch.setattr(barrier, "VERSION", barrier.VERSION + 1)
    assert barrier.compiled.__wrapped__() is None
