"""What reading a model's output costs: a long answer through decoder and parser token by token, against decoding it.

Answers of `--tokens` tokens are made of the model's own pieces: prose, code, reasoning, one call with a long argument,
many calls. `share` is their parsing time a token over the model's decoding time a token, which is measured at the
beginning of a context, where it is least. Twice the length must cost twice the time: `growth` is their ratio by token.
"""

from __future__ import annotations

import argparse
import json
import time

import edgellm
from edgellm.chat.utf8 import TextDecoder

_PROSE = "The harbour wakes early. Boats go out before five, and 3 < 4 holds even at sea; [maps](x) are for tourists. "
_CODE = "```python\nfor i in range(10):\n    print({'a': i, \"b\": [i, i * 2]})\n```\n"
_CALL = '<tool_call>\n{"name": "note", "arguments": {"text": "TEXT"}}\n</tool_call>\n'


def answers(size: int) -> dict[str, str]:
    """Texts of each kind, a little longer than `size` tokens."""
    times = size // 20 + 1
    return {
        "prose": _PROSE * times,
        "code": _CODE * times,
        "reasoning": "<think>\n" + _PROSE * times + "\n</think>\n\nYes.",
        "one long call": _CALL.replace("TEXT", _PROSE * times),
        "many calls": _CALL.replace("TEXT", _PROSE) * times,
    }


def parse_s(pieces: list[bytes]) -> float:
    """Seconds to read these tokens."""
    tools = [{"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}]
    parser, decoder = edgellm.stream_parser(format="hermes", tools=tools), TextDecoder()
    started = time.perf_counter()
    for piece in pieces:
        parser.feed(decoder.feed(piece))
    parser.finish()
    return time.perf_counter() - started


def decode_s(runtime: edgellm.Runtime) -> float:
    """Seconds a token of a short answer."""
    *_, end = runtime.complete("Once upon a time", max_tokens=128, seed=1)
    assert isinstance(end, edgellm.TurnFinished)
    (leg,) = end.usage.legs
    return leg.decode_s / max(1, leg.decode_tokens)


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with edgellm.load(args.model, n_ctx=512) as runtime:
        decode_us = min(decode_s(runtime) for _ in range(args.rounds)) * 1e6
        for name, text in answers(args.tokens).items():
            pieces = [runtime.vocabulary.piece(token) for token in runtime.tokenize(text)[: args.tokens]]
            half = min(parse_s(pieces[: len(pieces) // 2]) for _ in range(args.rounds))
            whole = min(parse_s(pieces) for _ in range(args.rounds))
            figures[name] = {
                "us_per_token": round(1e6 * whole / len(pieces), 2),
                "share": round(1e6 * whole / len(pieces) / decode_us, 5),
                "growth": round(whole / len(pieces) / (half / (len(pieces) // 2)), 2),
            }
    print(f"decoding takes {decode_us:,.0f} µs a token; answers of {args.tokens:,} tokens")
    print(f"{'answer':<16}{'parsing, µs a token':>20}{'share of decoding':>20}{'growth':>10}")
    for name, row in figures.items():
        print(f"{name:<16}{row['us_per_token']:>20}{row['share']:>20.3%}{row['growth']:>10}")
    print(
        json.dumps(
            {
                "benchmark": "parsing",
                "model": args.model,
                "tokens": args.tokens,
                "decode_us": round(decode_us, 1),
                "worst_share": max(row["share"] for row in figures.values()),
                "answers": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
