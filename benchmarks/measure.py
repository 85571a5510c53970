"""Paired, alternating measurements: ratios that survive a noisy machine, and their printing."""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", default="smollm2-135m", help="a catalogue name or a .gguf file")
    made.add_argument("--threads", type=int, default=0, help="decode threads (0: as the runtime picks)")
    return made


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs every arm once a round, in an order that reverses each round; seconds a token, by arm."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        arms[name]()  # warm up
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            seconds[name].append(arms[name]())
    return seconds


def speed_ratio(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) of other's seconds ÷ ours, pair by pair: above 1 we are faster."""
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


@contextmanager
def busy_python_thread() -> Generator[None]:
    """One thread that runs Python without a pause, as a user's own code might."""
    is_over = threading.Event()

    def spin() -> None:
        count = 0
        while not is_over.is_set():
            for _ in range(1000):
                count += 1

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def timed(run: Callable[[], int]) -> float:
    """Seconds a token of a function that returns how many tokens it decoded."""
    started = time.perf_counter()
    count = run()
    return (time.perf_counter() - started) / count


def print_result(rows: Sequence[Sequence[str]], figures: Mapping[str, Any]) -> None:
    """A table for people; then, as the last line, one JSON object."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(json.dumps(figures))
