"""What a constrained token costs: edgellm's constraint against llama.cpp's own grammar sampler, for the same schema.

A valid answer is walked token by token, without a model running. `check` is what the default mode pays for a token that
was drawn freely and is allowed; `mask` what a forced draw, or a second draw after a refusal, pays on top;
`llama.cpp` is its grammar sampler applied to the whole vocabulary and told of the token. Microseconds, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "count": {"type": "integer"},
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "tags", "count", "kind"],
    "additionalProperties": False,
}
VALUE = {"name": "A harbour at dawn", "tags": ["sea", "early light", "boats"], "count": 128, "kind": "large"}


def timed(action: Callable[[], object]) -> float:
    """Microseconds of one call."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e6


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    import ctypes

    import llama_cpp.llama_cpp as llama
    import numpy as np
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    import edgellm

    check: list[float] = []
    mask: list[float] = []
    theirs: list[float] = []
    with edgellm.load(args.model, n_ctx=256) as runtime:
        text = json.dumps(VALUE)
        tokens = runtime.tokenize(text)
        n_vocab = runtime.vocabulary.size
        logits = np.zeros(n_vocab, np.float32)
        constraint = runtime.json_constraint(SCHEMA)
        vocab = llama.llama_model_get_vocab(runtime.model.live_pointer())
        gbnf = json_schema_to_gbnf(json.dumps(SCHEMA))
        rows = np.zeros(n_vocab, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        rows["id"] = np.arange(n_vocab)
        for _ in range(args.rounds):
            constraint.reset()
            sampler = llama.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
            for token in tokens:
                mask.append(timed(lambda: constraint.mask(logits.copy())))
                check.append(
                    timed(lambda token=token: (constraint.consume(token), constraint.forced_tokens()))
                )
                view = llama.llama_token_data_array(
                    data=ctypes.cast(rows.ctypes.data, llama.llama_token_data_p),
                    size=n_vocab,
                    selected=-1,
                    sorted=False,
                )

                def apply(token: int = token, view: object = view, sampler: object = sampler) -> None:
                    llama.llama_sampler_apply(sampler, ctypes.byref(view))
                    llama.llama_sampler_accept(sampler, token)

                theirs.append(timed(apply))
                rows["logit"] = 0
            llama.llama_sampler_free(sampler)
    figures = {
        "tokens": len(tokens),
        "vocabulary": n_vocab,
        "check_us": round(statistics.median(check), 1),
        "check_mean_us": round(statistics.fmean(check), 1),
        "mask_us": round(statistics.median(mask), 1),
        "llama_cpp_us": round(statistics.median(theirs), 1),
    }
    print(f"{'':<34}{'microseconds a token':>22}")
    print(f"{'check (the default), median':<34}{figures['check_us']:>22}")
    print(f"{'check, mean':<34}{figures['check_mean_us']:>22}")
    print(f"{'mask, where it is needed':<34}{figures['mask_us']:>22}")
    print(f"{'llama.cpp grammar sampler':<34}{figures['llama_cpp_us']:>22}")
    print(json.dumps({"benchmark": "constraint", "model": args.model, **figures}))


if __name__ == "__main__":
    main()
