"""Decode speed: our loop against the bare one, against llama-cpp-python's, and what a Python stage costs.

All figures are ratios of speed (tokens a second), measured in alternation on one context size and one prompt.
The bare loop is llama_decode + llama_sampler_sample with llama.cpp's own chain of the same stages.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Any

from measure import alternate, busy_python_thread, parser, print_result, speed_ratio, timed

import edgellm
from edgellm.native.context import Context
from edgellm.native.library import lib
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable

CHAIN = "top_k(40) | top_p(0.9) | temperature(0.7) | dist(seed=7)"
PROMPT = "Once upon a time, in a small village at the edge of a large forest, there lived"


@edgellm.sampler
class Nothing:
    """Looks at the rows and changes nothing."""

    def apply(self, candidates: edgellm.Candidates) -> None:
        candidates.probs()


class Bare:
    """The loop as one would write it on the bindings."""

    def __init__(self, runtime: edgellm.Runtime, tokens: list[int]) -> None:
        self._llama = lib()
        self._context = Context(runtime.model, runtime.options)
        self._start = len(tokens)
        self._context.decode([(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
        llama = self._llama
        params = llama.llama_sampler_chain_default_params()
        self._chain = llama.llama_sampler_chain_init(params)
        for stage in (
            llama.llama_sampler_init_top_k(40),
            llama.llama_sampler_init_top_p(0.9, 1),
            llama.llama_sampler_init_temp(0.7),
            llama.llama_sampler_init_dist(7),
        ):
            llama.llama_sampler_chain_add(self._chain, stage)
        self._batch = llama.llama_batch_init(1, 0, 1)
        self._first = tokens[-1]
        self.rewind()

    def rewind(self) -> None:
        self._context.remove(0, self._start - 1)
        self._token, self._position = self._first, self._start - 1

    def run(self, count: int) -> int:
        """The next `count` tokens."""
        llama, context, batch = self._llama, self._context.pointer, self._batch
        token, position = self._token, self._position
        for _ in range(count):
            batch.n_tokens = 1
            batch.token[0] = token
            batch.pos[0] = position
            batch.n_seq_id[0] = 1
            batch.seq_id[0][0] = 0
            batch.logits[0] = 1
            llama.llama_decode(context, batch)
            token = llama.llama_sampler_sample(self._chain, context, -1)
            position += 1
        self._token, self._position = token, position
        return count


def session_arm(
    runtime: edgellm.Runtime, tokens: list[int], count: int, sampler: Any, trace: int
) -> Callable[[], float]:
    """`count` steps from the same place of the tape."""
    session = runtime.engine.session(runtime.make_chain(sampler, 7))
    session.trace = trace
    session.extend([(token, SpanKind.PROMPT) for token in tokens])

    def run() -> float:
        session.rewind(len(tokens))

        def steps() -> int:
            for _ in range(count):
                session.step()
            return count

        return timed(steps)

    return run


def peer_arm(path: str, options: edgellm.LoadOptions, threads: int, count: int) -> Callable[[], float]:
    """llama-cpp-python's own stream with a logits processor that does nothing."""
    from llama_cpp import Llama, LogitsProcessorList

    llama = Llama(
        path, n_ctx=options.n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False, seed=7
    )
    processors = LogitsProcessorList([lambda _ids, scores: scores])

    def run() -> float:
        def stream() -> int:
            made = llama.create_completion(
                PROMPT,
                max_tokens=count,
                top_k=40,
                top_p=0.9,
                temperature=0.7,
                repeat_penalty=1.0,
                stream=True,
                logits_processor=processors,
                logit_bias=None,
            )
            return max(1, sum(1 for _ in made))

        return timed(stream)

    return run


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--tokens", type=int, default=32, help="tokens a round and arm")
    options.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    given = options.parse_args()
    load = edgellm.LoadOptions(n_ctx=1024, threads=given.threads)
    with edgellm.load(given.model, options=load) as runtime:
        # What is measured must not change while it is.
        runtime.engine.governor.is_active = False
        tokens = runtime.tokenize(PROMPT, add_special=True)
        threads = runtime.engine.context.n_threads
        bare = Bare(runtime, tokens)

        def bare_arm() -> float:
            bare.rewind()
            return timed(lambda: bare.run(given.tokens))

        arms = {
            "bare": bare_arm,
            "ours, 20 rows traced": session_arm(runtime, tokens, given.tokens, CHAIN, 20),
            "ours": session_arm(runtime, tokens, given.tokens, CHAIN, 0),
            "ours, Python stage": session_arm(
                runtime, tokens, given.tokens, ["top_k(40)", Nothing(), *CHAIN.split(" | ")[1:]], 0
            ),
        }
        if given.peer:
            arms["llama-cpp-python"] = peer_arm(str(runtime.model.path), load, threads, given.tokens)
        seconds = alternate(arms, given.rounds)
        with busy_python_thread():
            beside = alternate({name: arms[name] for name in list(arms)[:2]}, max(4, given.rounds // 2))
    rows = [["arm", "ms a token", "tokens/s", "speed against bare (quartiles)"]]
    for name, values in seconds.items():
        middle, low, high = speed_ratio(values, seconds["bare"])
        one = statistics.median(values)
        rows.append([name, f"{one * 1e3:.2f}", f"{1 / one:.1f}", f"{middle:.3f} ({low:.3f} to {high:.3f})"])
    figures = {
        "model": given.model,
        "threads": threads,
        "rounds": given.rounds,
        "ratio_vs_bare": round(speed_ratio(seconds["ours, 20 rows traced"], seconds["bare"])[0], 4),
        "ratio_vs_bare_untraced": round(speed_ratio(seconds["ours"], seconds["bare"])[0], 4),
        "ratio_python_stage": round(speed_ratio(seconds["ours, Python stage"], seconds["ours"])[0], 4),
    }
    middle, low, high = speed_ratio(beside["ours, 20 rows traced"], beside["bare"])
    rows.append(["traced, beside a busy Python thread", "", "", f"{middle:.3f} ({low:.3f} to {high:.3f})"])
    figures["ratio_vs_bare_busy"] = round(middle, 4)
    if given.peer:
        figures["ratio_vs_llama_cpp_python"] = round(
            speed_ratio(seconds["ours, 20 rows traced"], seconds["llama-cpp-python"])[0], 4
        )
    print_result(rows, figures)


if __name__ == "__main__":
    main()
