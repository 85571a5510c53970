"""A long chat saved and taken up again: quicker than computing it, and whole however often the writer is killed.

    python benchmarks/resume.py                  4,000 tokens, 200 kills: about twenty minutes on two cores
    python benchmarks/resume.py --kills 10

Each round a second process opens the chat, goes on with it and saves it over itself; it gets SIGKILL at a random moment
around the saving. What stands in the file then is opened: it must be the state before or after, with memory that gives
the logits it gave. "Resume" is from opening the file to the first token of the next answer, "prefill" is the same with
the memory left out of account. The model is in memory in both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import edgellm
from edgellm.engine import session_file

QUESTION = "And what came of it?"
ROOM = 512
WARM_ROUNDS = 5


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4000, help="length of the chat")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(args: argparse.Namespace) -> edgellm.Runtime:
    """The model with room for the chat."""
    return edgellm.load(args.model, n_ctx=args.tokens + ROOM, n_seq_max=2, prefix_cache_mb=0)


def fingerprint(chat: edgellm.Chat) -> str:
    """Tells one state of a chat from another."""
    return hashlib.blake2b(repr(chat.tape).encode(), digest_size=8).hexdigest()


def write(args: argparse.Namespace) -> None:
    """The process that is killed: goes on with the chat and saves it, for as long as it lives."""
    with load(args) as runtime:
        chat = runtime.open_chat(args.write)
        while True:
            for event in chat.send(QUESTION, max_tokens=2):
                del event
            print(fingerprint(chat), flush=True)
            chat.save(args.write)
            print("saved", flush=True)


def first_token_s(runtime: edgellm.Runtime, path: Path) -> tuple[float, edgellm.Resumed]:
    """Seconds from opening the file to the first token of the next answer, and the verdict on the memory."""
    started = time.perf_counter()
    with runtime.open_chat(path, trace=1) as chat:
        for event in chat.send(QUESTION, max_tokens=1):
            if isinstance(event, edgellm.TokenDrawn):
                took = time.perf_counter() - started
                assert chat.resumed is not None
                return took, chat.resumed
    raise RuntimeError("no token was drawn")


def make(runtime: edgellm.Runtime, tokens: int, path: Path) -> float:
    """A chat of about so many tokens in a file; returns how long saving took, in seconds."""
    words = (
        "the old mill by the river had been empty for years when she came back to the village with a plan "
    )
    text = (words * (tokens // 8)).split()
    budget = tokens - 60
    low, high = 1, len(text)
    while low < high:  # the longest text of so many tokens
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if len(runtime.tokenize(" ".join(text[:middle]))) <= budget else (low, middle - 1)
        )
    with runtime.chat(sampler="greedy") as chat:
        for event in chat.send(" ".join(text[:low]), max_tokens=8):
            del event
        started = time.perf_counter()
        chat.save(path)
        return time.perf_counter() - started


def kill_once(args: argparse.Namespace, path: Path, chance: random.Random, save_s: float) -> list[str]:
    """One writer started and killed; returns the states it has announced."""
    words = [
        sys.executable,
        __file__,
        "--model",
        args.model,
        "--tokens",
        str(args.tokens),
        "--write",
        str(path),
    ]
    announced: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Sometimes in the second saving: then the former state is not the first one.
        for _ in range(1 + chance.randrange(2)):
            line = process.stdout.readline().strip()
            while line == "saved":
                line = process.stdout.readline().strip()
            announced.append(line)
        time.sleep(chance.uniform(0.0, 1.3 * save_s))
        process.send_signal(signal.SIGKILL)
        announced += [line for line in process.stdout.read().split() if line != "saved"]
        process.wait()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended by itself ({process.returncode})")
    return announced


def main() -> int:
    """Measures, kills, prints a table and one line of JSON; 1 where a state was lost or resuming is slow."""
    args = options()
    if args.write is not None:
        write(args)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder, load(args) as runtime:
        base, path = Path(folder) / "base.chat", Path(folder) / "work.chat"
        save_s = make(runtime, args.tokens, base)
        warm = [first_token_s(runtime, base) for _ in range(WARM_ROUNDS)]
        read = session_file.read_sessions

        def without_memory(file: Path, count: int | None = None) -> session_file.SavedSessions:
            saved = read(file, count)
            return replace(saved, branches=tuple(replace(one, memory=b"") for one in saved.branches))

        with patch.object(session_file, "read_sessions", without_memory):
            prefill_s, cold = first_token_s(runtime, base)
        assert cold.verdict == "rebuilt"
        resume_s = statistics.median(took for took, _ in warm)
        with runtime.open_chat(base) as chat:
            first, length = fingerprint(chat), len(chat.tape)
        counts = {"former": 0, "newer": 0, "lost": 0}
        verdicts: dict[str, int] = {}
        for _ in range(args.kills):
            shutil.copyfile(base, path)
            announced = kill_once(args, path, chance, save_s)
            try:
                with runtime.open_chat(path) as chat:
                    state, verdict = fingerprint(chat), chat.resumed.verdict if chat.resumed else ""
            except edgellm.EdgeError as error:
                print(f"lost: {error}", file=sys.stderr)
                counts["lost"] += 1
                continue
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
            known = [first, *announced]
            where = known.index(state) if state in known else -1
            is_sound = where >= 0 and verdict != "rebuilt"
            counts["lost" if not is_sound else "newer" if where == len(known) - 1 else "former"] += 1
        time.sleep(1.1)
        with runtime.open_chat(base) as chat:
            chat.save(path)
        leftovers = len([file for file in Path(folder).iterdir() if file.name.endswith(".part")])
        figures = {
            "tokens": length,
            "file_mb": round(base.stat().st_size / 1e6, 1),
            "save_s": round(save_s, 3),
            "prefill_s": round(prefill_s, 3),
            "resume_s": round(resume_s, 3),
            "speedup": round(prefill_s / resume_s, 1),
            "kills": args.kills,
            **counts,
            "verdicts": verdicts,
            "leftovers": leftovers,
        }
    for key, value in figures.items():
        print(f"{key:<12}{value}")
    print(json.dumps(figures))
    return 1 if counts["lost"] or leftovers else 0


if __name__ == "__main__":
    sys.exit(main())
