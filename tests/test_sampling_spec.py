"""Chains as text: what parses, what is printed back, and where errors point."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from edgellm.errors import SamplerError
from edgellm.sampling.metadata import chain_from_metadata
from edgellm.sampling.registry import NATIVE_STAGES, Param, StageInfo, StageRegistry
from edgellm.sampling.spec import DEFAULT_CHAIN, ChainSpec, StageSpec, default_chain, resolve_chain, stage
from edgellm.sampling.stage import register, sampler
from edgellm.sampling.syntax import ChainSyntaxError

_NATIVE = {info.name: info for info in NATIVE_STAGES}


def test_the_default_chain() -> None:
    assert str(default_chain()) == DEFAULT_CHAIN == "top_k(40) | top_p(0.9) | temperature(0.7) | dist"


def test_a_written_chain() -> None:
    spec = ChainSpec.parse(
        "penalties(repeat=1.1)|top_k( 40 ) | top_p(0.95, min_keep=2,) | temperature(1) | dist(seed=7)"
    )
    assert [one.name for one in spec.stages] == ["penalties", "top_k", "top_p", "temperature", "dist"]
    assert spec.stages[2].complete_args == {"p": 0.95, "min_keep": 2}
    assert spec.stages[3].args == (("temperature", 1.0),)
    assert spec.seed == 7
    assert str(spec) == "penalties(1.1) | top_k(40) | top_p(0.95, min_keep=2) | temperature(1.0) | dist(7)"


def test_dist_is_added_where_nothing_chooses() -> None:
    assert str(ChainSpec.parse("top_k(3)")) == "top_k(3) | dist"
    assert str(ChainSpec.parse("greedy")) == "greedy"


def test_values_of_all_kinds() -> None:
    spec = ChainSpec.parse(
        r"""logit_bias({1: -inf, 22: 2}) | dry(breakers=["\n", 'it\'s "x"', "|"]) | top_k(1_000)"""
    )
    assert spec.stages[0].complete_args == {"bias": {1: -math.inf, 22: 2.0}}
    assert spec.stages[1].complete_args["breakers"] == ("\n", 'it\'s "x"', "|")
    assert spec.stages[2].complete_args == {"k": 1000}
    assert ChainSpec.parse(str(spec)) == spec


BAD = [
    # text, column, part of the message, part of the hint
    ("", 1, "empty", "top_k(40)"),
    ("   ", 1, "empty", ""),
    ("top_k(40) |", 12, "expected the name of a stage, found the end", ""),
    ("top_k(40) | | dist", 13, "expected the name of a stage, found '|'", ""),
    ("topk(40)", 1, "unknown stage 'topk'", "'top_k'"),
    ("top_k(40) | temp(0.7)", 13, "unknown stage 'temp'", "'temperature'"),
    ("top_k(40) | zzz", 13, "unknown stage 'zzz'", "samplers list"),
    ("top_k(k=40, kk=3)", 13, "no argument 'kk'", "'k'"),
    ("top_k(40, 3)", 11, "at most 1", "top_k(k=40)"),
    ("top_k(40, k=3)", 11, "given twice", ""),
    ("top_p(p=0.9, 3)", 14, "without a name after", ""),
    ("top_k(0)", 7, "'k' must be a whole number from 1", ""),
    ("top_k(2.5)", 7, "must be a whole number", ""),
    ("top_k(True)", 7, "must be a whole number", ""),
    ("top_p(0)", 7, "a number above 0 to 1, not 0", ""),
    ("top_p(1.01)", 7, "a number above 0 to 1", ""),
    ("temperature(hot)", 13, "expected a value, found 'hot'", "'hot'"),
    ("temperature('hot')", 13, "must be a number", ""),
    ("temperature(0.7", 16, "expected ',' or ')', found the end", ""),
    ("temperature 0.7", 13, "expected '|' or the end", ""),
    ("temperature(0.7) $", 18, "'$' has no meaning", ""),
    ("dry(breakers=['a)", 15, "a string without its end", ""),
    ("dry(breakers=[1])", 14, "a list of strings", ""),
    ("logit_bias", 1, "needs 'bias'", ""),
    ("logit_bias({1: 'a'})", 12, "a dict of token id", ""),
    ("logit_bias({1 2})", 15, "expected ':'", ""),
    ("logit_bias({1: nan})", 16, "expected a value", ""),
    ("dist | top_k(3)", 1, "'dist' chooses the token and must be the last", "last stage"),
    ("top_k(3) | greedy | dist", 12, "'greedy' chooses", ""),
    ("dist(seed=-1)", 11, "from 0 to", ""),
    ("top_k(" + "[" * 40 + ")", 16, "nested deeper", ""),
]


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"), BAD, ids=[row[0][:24] or "empty" for row in BAD]
)
def test_errors_point_at_their_column(text: str, column: int, message: str, hint: str) -> None:
    with pytest.raises(ChainSyntaxError) as caught:
        ChainSpec.parse(text)
    error = caught.value
    assert message in error.message
    assert hint in error.hint
    assert error.column == column
    lines = str(error).splitlines()
    assert lines[0].startswith(f"sampler chain, column {column}: ")
    if text.strip():
        assert lines[2].index("^") == 2 + column - 1
        assert lines[1][2:] == text
    assert len(lines) <= 4


def test_the_caret_stays_under_its_column_in_a_long_chain() -> None:
    text = " | ".join(["top_k(40)"] * 30) + " | oops"
    with pytest.raises(ChainSyntaxError) as caught:
        ChainSpec.parse(text)
    _, shown, caret, _ = str(caught.value).splitlines()
    assert shown[caret.index("^") :].startswith("oops")


def _values(param: Param) -> st.SearchStrategy[Any]:
    low = -1e6 if param.low == -math.inf else param.low
    high = 1e6 if param.high == math.inf else param.high
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(int(low), int(high)),
        "float": st.floats(low, high, exclude_min=param.is_low_open, exclude_max=param.is_high_open),
        "strings": st.lists(st.text(max_size=8), max_size=3).map(tuple),
        "bias": st.dictionaries(
            st.integers(-5, 2**31), st.floats(allow_nan=False).filter(lambda x: x != math.inf), max_size=3
        ),
    }
    values = by_kind[param.kind]
    return values | st.none() if param.is_optional else values


@st.composite
def stages(draw: st.DrawFn, *, chooses: bool) -> StageSpec:
    info = draw(st.sampled_from([info for info in NATIVE_STAGES if info.chooses is chooses]))
    args = {
        param.name: draw(_values(param)) for param in info.params if param.is_required or draw(st.booleans())
    }
    return stage(info.name, **args)


@given(st.lists(stages(chooses=False), max_size=4), stages(chooses=True))
def test_every_chain_survives_being_printed_and_parsed(before: list[StageSpec], last: StageSpec) -> None:
    spec = ChainSpec((*before, last))
    again = ChainSpec.parse(str(spec))
    assert again == spec
    assert str(again) == str(spec)


@given(st.text(max_size=40) | st.text(alphabet="top_k(40)|[]{}:=,.'\" \\-1e", max_size=40))
def test_any_text_parses_or_is_a_syntax_error(text: str) -> None:
    try:
        spec = ChainSpec.parse(text)
    except ChainSyntaxError as error:
        assert 1 <= error.column <= len(text) + 1
    else:
        assert ChainSpec.parse(str(spec)) == spec


def test_defaults_lie_within_their_own_ranges() -> None:
    for info in NATIVE_STAGES:
        assert info.doc.endswith(".")
        for param in info.params:
            if not param.is_required:
                param.checked(param.default)


# -- chains from lists


@sampler
class Halve:
    """Halves logits."""

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def apply(self, candidates: Any) -> None:
        candidates.logits[:] = candidates.logits / self.by


def test_a_chain_from_a_list() -> None:
    spec = ChainSpec.of([stage("top_k", 40), Halve(by=3), "temperature(0.5)"])
    assert str(spec) == "top_k(40) | halve(3.0) | temperature(0.5) | dist"
    assert ChainSpec.of(spec) is spec
    assert ChainSpec.of("greedy") == ChainSpec.parse("greedy")


def test_bad_lists_say_what_is_wrong() -> None:
    with pytest.raises(SamplerError, match="empty sampler chain"):
        ChainSpec.of([])
    with pytest.raises(SamplerError, match="int is not a sampler stage"):
        ChainSpec.of([3])
    with pytest.raises(SamplerError, match="'by' must be a number"):
        ChainSpec.of([Halve(by="much")])  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="must be the last"):
        ChainSpec.of([stage("greedy"), stage("top_k")])
    with pytest.raises(SamplerError, match="has no argument 'q'"):
        stage("top_p", q=1)
    with pytest.raises(SamplerError, match="takes at most 1"):
        stage("top_k", 1, 2)


def test_with_seed() -> None:
    assert str(ChainSpec.parse("top_k(3) | dist(1)").with_seed(9)) == "top_k(3) | dist(9)"
    assert str(ChainSpec.parse("greedy").with_seed(9)) == "greedy"


# -- plugins by name


def test_registered_classes_are_found_by_name_and_collisions_are_errors() -> None:
    registry = StageRegistry(NATIVE_STAGES)
    register(Halve, source="a test", registry=registry)
    register(Halve, source="a test again", registry=registry)
    assert str(ChainSpec.parse("halve(by=4)", registry)) == "halve(4.0) | dist"
    with pytest.raises(ChainSyntaxError, match="unknown stage 'halve'"):
        ChainSpec.parse("halve")

    @sampler(name="halve")
    class Other:
        def apply(self, candidates: Any) -> None: ...

    with pytest.raises(SamplerError, match="has the name of one from a test"):
        register(Other, registry=registry)

    @sampler(name="top_k")
    class TopK:
        def apply(self, candidates: Any) -> None: ...

    with pytest.raises(SamplerError, match=r"has the name of one from llama\.cpp"):
        register(TopK, registry=registry)
    with pytest.raises(SamplerError, match=r"has the name of one from llama\.cpp"):
        ChainSpec.of([TopK(), "dist"])


@pytest.mark.parametrize("name", ["a b", "1x", "a|b", "naïve"])
def test_a_name_that_no_chain_could_write_is_refused(name: str) -> None:
    with pytest.raises(SamplerError, match="is not a name for a sampler stage"):
        sampler(name=name)(type("Stage", (), {"apply": lambda self, candidates: None}))


def test_what_is_no_chain_is_refused() -> None:
    with pytest.raises(SamplerError, match="int is no sampler chain"):
        ChainSpec.of(5)  # pyright: ignore[reportArgumentType]


def test_the_finder_is_asked_once_for_names_nobody_knows() -> None:
    registry = StageRegistry(NATIVE_STAGES)
    asked: list[int] = []

    def find() -> None:
        asked.append(1)
        register(Halve, registry=registry)

    registry.finder = find
    assert registry.get("top_k") is not None and not asked
    assert registry.lookup("halve").name == "halve"
    assert registry.get("zzz") is None
    assert asked == [1]


def test_arguments_come_from_the_constructor() -> None:
    @sampler(name="all_kinds", chooses=True)
    class AllKinds:
        """First
        line.

        More."""

        def __init__(
            self,
            share: Annotated[float, Meta(gt=0, le=1, description="how much")],
            words: list[str],
            count: int = 3,
            name: str | None = None,
            is_loud: bool = False,
        ) -> None: ...

        def apply(self, candidates: Any) -> None: ...

    registry = StageRegistry()
    info = register(AllKinds, registry=registry)
    assert (info.doc, info.chooses) == ("First line.", True)
    share, words, count, name, is_loud = info.params
    assert (share.kind, share.low, share.is_low_open, share.high, share.doc) == (
        "float",
        0,
        True,
        1,
        "how much",
    )
    assert (words.kind, count.kind, name.kind, name.is_optional, is_loud.kind) == (
        "strings",
        "int",
        "str",
        True,
        "bool",
    )
    assert (
        str(ChainSpec.parse("all_kinds(0.5, ['a'], is_loud=True)", registry))
        == "all_kinds(0.5, words=['a'], is_loud=True)"
    )
    with pytest.raises(ChainSyntaxError, match="above 0 to 1"):
        ChainSpec.parse("all_kinds(0, [])", registry)


def test_what_cannot_be_a_stage_is_refused_at_once() -> None:
    with pytest.raises(SamplerError, match="has no method apply"):

        @sampler
        class NoApply:
            pass

    with pytest.raises(SamplerError, match="type that a chain cannot write"):

        @sampler
        class Odd:
            def __init__(self, thing: complex) -> None: ...

            def apply(self, candidates: Any) -> None: ...


# -- advice inside a GGUF

METADATA = [
    ({}, None),
    ({"general.name": "x"}, None),
    ({"general.sampling.temp": "0.6"}, "top_k(40) | top_p(0.9) | temperature(0.6) | dist"),
    (
        {
            "general.sampling.temp": "0.6",
            "general.sampling.top_k": "20",
            "general.sampling.top_p": "0.95",
            "general.sampling.min_p": "0.0",
        },
        "top_k(20) | top_p(0.95) | temperature(0.6) | dist",
    ),
    ({"general.sampling.top_k": "0", "general.sampling.top_p": "1.0"}, "temperature(0.7) | dist"),
    ({"general.sampling.min_p": "0.1"}, "top_k(40) | top_p(0.9) | min_p(0.1) | temperature(0.7) | dist"),
    ({"general.sampling.temp": "0"}, "greedy"),
    (
        {"general.sampling.penalty_repeat": "1.05"},
        "penalties(1.05, last_n=64) | top_k(40) | top_p(0.9) | temperature(0.7) | dist",
    ),
    (
        {"general.sampling.xtc_probability": "0.5", "general.sampling.xtc_threshold": "0.2"},
        "top_k(40) | top_p(0.9) | xtc(0.5, threshold=0.2) | temperature(0.7) | dist",
    ),
    (
        {"general.sampling.sequence": "temp;top-p;unknown;top_k", "general.sampling.top_k": "5"},
        "temperature(0.7) | top_p(0.9) | top_k(5) | dist",
    ),
    (
        {"general.sampling.mirostat": "2", "general.sampling.mirostat_tau": "4"},
        "temperature(0.7) | mirostat_v2(4.0, eta=0.1)",
    ),
    ({"general.sampling.temp": "warm"}, None),
]


@pytest.mark.parametrize(("metadata", "expected"), METADATA)
def test_metadata(metadata: dict[str, str], expected: str | None) -> None:
    spec = chain_from_metadata(metadata)
    assert (None if spec is None else str(spec)) == expected


def test_the_user_outranks_the_catalogue_and_that_the_model() -> None:
    metadata = {"general.sampling.temp": "0.6"}
    assert resolve_chain(user="greedy", catalogue="top_k(1)", metadata=metadata)[1] == "user"
    assert resolve_chain(catalogue="top_k(1)", metadata=metadata)[1] == "catalogue"
    assert resolve_chain(metadata=metadata)[1] == "model"
    assert resolve_chain(metadata={}) == (default_chain(), "default")


def test_signature_shows_defaults() -> None:
    assert _NATIVE["top_p"].signature() == "top_p(p=0.9, min_keep=1)"
    assert _NATIVE["logit_bias"].signature() == "logit_bias(bias)"
    assert StageInfo("x", "").signature() == "x()"
