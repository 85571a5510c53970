"""Decode beside busy neighbours: edgellm against the bare loop with libgomp's defaults.

Each arm is a process of its own, since libgomp reads its wait policy once. In each round both decode, in alternation,
beside processes that only count: none, one, and so many for each core (`--per-core`), as a desktop, a browser or a
parallel build has them. The last line is one JSON object: `ratios` has edgellm's tokens a second over the bare loop's
by the number of processes, `idle_ratio` the one beside none, `busy_ratio` the one beside the most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from measure import print_result

if TYPE_CHECKING:
    from collections.abc import Generator

PROMPT = "Once upon a time, in a small village at the edge of a large forest, there lived"
_SETTLE_S = 1.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m", help="a catalogue name or a .gguf file")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=6.0, help="how long an arm decodes, at most")
    options.add_argument(
        "--per-core", type=int, nargs="+", default=[1, 2, 4, 8], help="busy processes a core"
    )
    options.add_argument("--arm", choices=("bare", "edgellm"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.arm:
        serve(given)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy_counts = sorted({0, 1, *(cores * count for count in given.per_core)})
    rates: dict[tuple[str, int], list[float]] = {}
    policy: dict[tuple[str, int], Any] = {}
    arms = {name: start(name, given) for name in ("bare", "edgellm")}
    try:
        for index in range(given.rounds):
            for busy in busy_counts:
                with hogs(busy):
                    for name in arms if index % 2 == 0 else reversed(arms):
                        answer = ask(arms[name], given.seconds)
                        rates.setdefault((name, busy), []).append(answer["tok_s"])
                        policy[name, busy] = answer["threads"]
    finally:
        for process in arms.values():
            process.kill()
            process.wait()
    rows = [["busy processes", "bare loop, tokens/s", "edgellm, tokens/s", "edgellm's threads", "ratio"]]
    ratios: dict[int, float] = {}
    for busy in busy_counts:
        bare, ours = (statistics.median(rates[name, busy]) for name in ("bare", "edgellm"))
        pairs = [b / a for a, b in zip(rates["bare", busy], rates["edgellm", busy], strict=True)]
        ratios[busy] = statistics.median(pairs)
        rows.append(
            [
                f"{busy} on {cores} cores",
                f"{bare:.2f}",
                f"{ours:.2f}",
                str(policy["edgellm", busy]),
                f"{ratios[busy]:.2f}",
            ]
        )
    figures = {
        "model": given.model,
        "cores": cores,
        "rounds": given.rounds,
        "ratios": {str(busy): round(ratio, 3) for busy, ratio in ratios.items()},
        "busy_processes": busy_counts[-1],
        "busy_ratio": round(ratios[busy_counts[-1]], 3),
        "idle_ratio": round(ratios[0], 3),
    }
    print_result(rows, figures)


@contextmanager
def hogs(count: int) -> Generator[None]:
    """So many processes that only count."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(_SETTLE_S)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def start(arm: str, given: argparse.Namespace) -> subprocess.Popen[str]:
    """An arm that has loaded the model and waits to be asked."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    environment.pop("EDGELLM_GOVERNOR", None)
    if arm == "bare":
        # libgomp complains of the empty value and then behaves as where nobody has set one; edgellm leaves it alone.
        environment["OMP_WAIT_POLICY"] = ""
    process = subprocess.Popen(
        [sys.executable, __file__, "--arm", arm, "--model", given.model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ask(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Lets an arm decode; gives its tokens a second and threads."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(given: argparse.Namespace) -> None:
    """Runs in a child: loads, then decodes for as long as each line of stdin says."""
    import edgellm
    from edgellm.types import SpanKind

    with edgellm.load(given.model, n_ctx=2048) as runtime:
        tokens = runtime.tokenize(PROMPT, add_special=True)
        chain = "top_k(40) | top_p(0.9) | temperature(0.7) | dist(seed=7)"
        if given.arm == "bare":
            from decode import Bare

            loop = Bare(runtime, tokens)
        session = runtime.engine.session(runtime.make_chain(chain, 7))
        session.extend([(token, SpanKind.PROMPT) for token in tokens])
        print("ready", flush=True)
        for line in sys.stdin:
            count, started = 0, time.perf_counter()
            deadline = started + float(line)
            if given.arm == "bare":
                loop.rewind()
                while time.perf_counter() < deadline:
                    count += loop.run(1)
            else:
                session.rewind(len(tokens))
                runtime.engine.begin_turn()
                while time.perf_counter() < deadline:
                    session.step()
                    count += 1
            taken = time.perf_counter() - started
            threads = runtime.engine.context.n_threads
            print(json.dumps({"tok_s": count / taken, "threads": threads}), flush=True)


if __name__ == "__main__":
    main()
