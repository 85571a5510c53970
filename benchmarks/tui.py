"""What the app costs: decode with the panel live against decode alone, a key's way to the screen, memory.

The app runs as a user's would, in a pseudo-terminal of its own, and everything it draws is read. In turn with it a
plain script decodes as many tokens with the same chain. `ratio` is the app's speed through the script's; `key_ms`
the time from a key's byte to the first byte of its glyph, while tokens are decoded; `memory_growth_mb` what the
process grew by from the 500th token to the end of one long answer.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

from measure import parser, print_result

import edgellm

PROMPT = "Tell me a very long story about a lighthouse, with every detail."
# Typed one at a time: an answer does not hold them.
KEYS = "ЖДЯЩЫЭЮЙЦЪ"
ENDLESS = "top_k(40) | logit_bias({%s}) | top_p(0.95) | temperature(0.8) | dist(seed=7)"
WARM_TOKENS = 500
_SETTLE_S = 6.0


def endless_chain(runtime: edgellm.Runtime) -> str:
    """A chain that never ends the answer."""
    vocabulary = runtime.vocabulary
    ends = [token for token in vocabulary.special_tokens.values() if vocabulary.is_eog(token)]
    return ENDLESS % ", ".join(f"{token}: -inf" for token in sorted(set(ends)))


def options_of(runtime: edgellm.Runtime, tokens: int) -> dict[str, Any]:
    """What both arms give a chat."""
    return {
        "tools": [],
        "sampler": endless_chain(runtime),
        "limits": edgellm.AgentLimits(max_tokens=tokens),
    }


class Watch:
    """Tokens a second of one answer, by the clock: from its first text to its end."""

    def __init__(self) -> None:
        self._first: float | None = None
        self.tok_s = 0.0
        self.tokens = 0

    def hear(self, event: edgellm.Event, at: float) -> None:
        """Takes an event, with the time at which it came from the engine."""
        if isinstance(event, edgellm.PrefillProgress | edgellm.TokenDrawn):
            return
        if self._first is None and isinstance(event, edgellm.TextDelta):
            self._first = at
        if isinstance(event, edgellm.TurnFinished) and self._first is not None:
            self.tokens = event.usage.decode_tokens
            self.tok_s = (self.tokens - 1) / (at - self._first)


# -- the two children ---------------------------------------------------------------------------------------------


def headless_child(model: str, n_ctx: int, threads: int) -> None:
    """Decodes as many tokens as each line of its input says, and answers with tokens a second."""
    with edgellm.load(model, n_ctx=n_ctx, threads=threads) as runtime:
        print("ready", flush=True)
        for line in sys.stdin:
            with runtime.chat(**options_of(runtime, int(line))) as chat:
                watch = Watch()
                for event in chat.send(PROMPT):
                    watch.hear(event, time.perf_counter())
                print(watch.tok_s, flush=True)


def app_child(model: str, n_ctx: int, threads: int, tokens: int, report: str) -> None:
    """The app; each finished turn becomes a line of the report."""
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.settings import Settings
    from edgellm_tui.worker import Ended, Heard

    class Watched(EdgeApp):
        watch = Watch()

        def _take(self, item: object) -> None:
            if isinstance(item, Heard):
                self.watch.hear(item.event, item.at)
            super()._take(item)

        def _turn_over(self, item: Ended) -> None:
            super()._turn_over(item)
            values = {"error": str(item.error or ""), "tok_s": self.watch.tok_s, "tokens": self.watch.tokens}
            self.watch = Watch()
            with open(report, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def load(name: str) -> edgellm.Runtime:
        runtime = edgellm.load(name, n_ctx=n_ctx, threads=threads)
        plain = app.talk.chat_options
        app.talk.chat_options = lambda: {**plain(), **options_of(runtime, tokens)}
        return runtime

    app = Watched(model, settings=Settings(tools=[]), load=load)
    app.run()


def child(args: argparse.Namespace) -> None:
    """The process that is measured."""
    if args.child == "headless":
        headless_child(args.model, args.n_ctx, args.threads)
    else:
        app_child(args.model, args.n_ctx, args.threads, args.tokens, args.report)


# -- driving them -------------------------------------------------------------------------------------------------


def command(kind: str, args: argparse.Namespace, n_ctx: int, tokens: int = 0, report: str = "") -> list[str]:
    """How a child is started."""
    given = [sys.executable, __file__, "--child", kind, "--model", args.model, "--threads", str(args.threads)]
    return [*given, "--n-ctx", str(n_ctx), "--tokens", str(tokens), "--report", report]


class Headless:
    """The script's process."""

    def __init__(self, args: argparse.Namespace, n_ctx: int) -> None:
        self._process = subprocess.Popen(
            command("headless", args, n_ctx),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # As the app has one with its terminal: the scheduler shares a busy machine out by sessions.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def tok_s(self, tokens: int) -> float:
        """Decodes so many tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class App:
    """The app's process in a pseudo-terminal; a thread reads all that it draws."""

    def __init__(self, args: argparse.Namespace, n_ctx: int, tokens: int, folder: Path) -> None:
        self.report = folder / f"report-{tokens}"
        columns, rows = args.size
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "LANG": "C.UTF-8",
            "EDGELLM_CONFIG_DIR": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            line = command("app", args, n_ctx, tokens, str(self.report))
            os.execvpe(line[0], line, environment)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._drawn = bytearray()
        self._lock = threading.Condition()
        self.bytes_drawn = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                select.select([self._terminal], [], [])
                data = os.read(self._terminal, 65536)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self._drawn += data
                self.bytes_drawn += len(data)
                del self._drawn[:-200_000]
                self._lock.notify_all()

    def write(self, keys: str) -> None:
        """Presses keys."""
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 120.0) -> float:
        """Seconds until a text is drawn that had not been drawn before this call."""
        wanted, started = text.encode(), time.perf_counter()
        with self._lock:
            while wanted not in self._drawn:
                left = started + timeout_s - time.perf_counter()
                if left <= 0 or not self._lock.wait(left):
                    raise TimeoutError(
                        f"{text!r} was not drawn; the last that was: {bytes(self._drawn[-500:])!r}"
                    )
            return time.perf_counter() - started

    def forget(self) -> None:
        """What has been drawn so far does not count for `wait_for`."""
        with self._lock:
            self._drawn.clear()

    def ask(self, *, is_first: bool) -> None:
        """Sends the prompt in a new chat."""
        if not is_first:
            self.write("\x0e")
            time.sleep(1.0)
        self.write("\x15" + PROMPT + "\r")

    def turns(self) -> list[dict[str, Any]]:
        """What is in the report so far."""
        if not self.report.exists():
            return []
        return [json.loads(line) for line in self.report.read_text(encoding="utf-8").splitlines()]

    def wait_for_turn(self, number: int, timeout_s: float) -> dict[str, Any]:
        """The report of the turn of that number (from 1)."""
        ends = time.monotonic() + timeout_s
        while len(self.turns()) < number:
            if time.monotonic() > ends:
                raise TimeoutError("the turn does not end")
            time.sleep(0.05)
        found = self.turns()[number - 1]
        if found["error"]:
            raise RuntimeError(found["error"])
        return found

    def key_ms(self, key: str) -> float:
        """Milliseconds from a key to its glyph on the screen."""
        self.forget()
        self.write(key)
        return 1000 * self.wait_for(key, 10.0)

    def screen_cpu_s(self) -> float:
        """CPU seconds of the thread that draws."""
        parts = (
            Path(f"/proc/{self._pid}/task/{self._pid}/stat")
            .read_text(encoding="utf-8")
            .rpartition(")")[2]
            .split()
        )
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        """Quits."""
        self.write("\x11")
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                break
            time.sleep(0.05)
        else:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        os.close(self._terminal)


class Answers:
    """Answers of the app, one after the other, and what was seen meanwhile."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._count = 0
        self.key_ms: list[float] = []
        self.shares: list[float] = []

    def tok_s(self, *, presses_keys: bool = False) -> float:
        """One answer in a new chat."""
        app = self._app
        app.ask(is_first=self._count == 0)
        self._count += 1
        app.forget()
        app.wait_for("DECODE")
        cpu, started = app.screen_cpu_s(), time.perf_counter()
        for key in KEYS if presses_keys else ():
            time.sleep(0.15)
            if len(app.turns()) >= self._count:
                break
            self.key_ms.append(app.key_ms(key))
        found = app.wait_for_turn(self._count, 600)
        if not presses_keys:
            self.shares.append((app.screen_cpu_s() - cpu) / (time.perf_counter() - started))
        return float(found["tok_s"])


def measure_speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of both arms in turn, keys pressed in rounds of their own."""
    n_ctx = args.tokens + 512
    script, app = Headless(args, n_ctx), App(args, n_ctx, args.tokens, folder)
    answers = Answers(app)
    ours: list[float] = []
    others: list[float] = []
    try:
        app.wait_for("READY")
        script.tok_s(args.tokens)
        for index in range(args.rounds):
            if index % 2:
                others.append(script.tok_s(args.tokens))
            ours.append(answers.tok_s())
            # The app saves the chat a few seconds after its answer.
            time.sleep(_SETTLE_S)
            if not index % 2:
                others.append(script.tok_s(args.tokens))
        for _ in range(args.key_rounds):
            answers.tok_s(presses_keys=True)
    finally:
        app.close()
        script.close()
    keys = sorted(answers.key_ms)
    return {
        "ratio": round(statistics.median(a / b for a, b in zip(ours, others, strict=True)), 3),
        "app_tok_s": round(statistics.median(ours), 1),
        "script_tok_s": round(statistics.median(others), 1),
        "key_ms": round(statistics.median(keys), 1) if keys else None,
        "key_ms_p90": round(keys[len(keys) * 9 // 10], 1) if keys else None,
        "key_ms_worst": round(keys[-1], 1) if keys else None,
        "screen_share": round(statistics.median(answers.shares), 3),
    }


def measure_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One long answer."""
    if not args.long:
        return {}
    app = App(args, args.long + 512, args.long, folder)
    try:
        app.wait_for("READY")
        app.ask(is_first=True)
        app.forget()
        app.wait_for(f"DECODE {WARM_TOKENS // 100}", 600)
        before = app.rss_mb()
        started = time.monotonic()
        found = app.wait_for_turn(1, 3600)
        growth = app.rss_mb() - before
        return {
            "long_tokens": found["tokens"],
            "memory_growth_mb": round(growth, 1),
            "memory_mb": round(before + growth, 1),
            "long_bytes_per_s": round(app.bytes_drawn / max(1e-9, time.monotonic() - started)),
        }
    finally:
        app.close()


def main() -> None:
    """Prints a table, and the figures as JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5, help="pairs of answers")
    options.add_argument("--key-rounds", type=int, default=3, help="answers during which keys are pressed")
    options.add_argument("--tokens", type=int, default=300, help="tokens of an answer")
    options.add_argument(
        "--long", type=int, default=10_000, help="tokens of the long answer; 0 leaves it out"
    )
    options.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(80, 24))
    options.add_argument("--child", choices=("app", "headless"), help=argparse.SUPPRESS)
    options.add_argument("--n-ctx", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--report", default="", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {**measure_speed(args, folder), **measure_memory(args, folder)}
    rows = [("figure", "value"), *((key, str(value)) for key, value in figures.items())]
    print_result(rows, figures)


if __name__ == "__main__":
    main()
