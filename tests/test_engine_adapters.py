"""LoRA adapters and control vectors: each chat has its own set, and none takes what another computed for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models

import edgellm
from edgellm import AdapterSet, ConfigError, ControlVector, LoraAdapter, Notice, SessionError, SpanKind
from edgellm.engine.engine import Engine
from edgellm.engine.session import Session
from edgellm.engine.surgery import splice
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.types import LoadOptions

OPTIONS = LoadOptions(n_ctx=512, n_seq_max=4, threads=1, threads_batch=1)
PROMPT = [(token, SpanKind.PROMPT) for token in range(40, 80)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": tiny_models.build_lora(folder / "one.gguf", seed=1),
        "two": tiny_models.build_lora(folder / "two.gguf", seed=2),
        "calm": tiny_models.build_control_vector(folder / "calm.gguf", seed=3),
        "foreign": tiny_models.build_lora(folder / "foreign.gguf", arch="qwen3"),
        "wide": tiny_models.build_control_vector(folder / "wide.gguf", n_embd=32),
    }


@pytest.fixture
def engine(tiny_model: Callable[..., Path]) -> Iterator[Engine]:
    model = Model.load(tiny_model("llama"), OPTIONS)
    engine = Engine(model, OPTIONS)
    yield engine
    engine.close()
    model.close()


@pytest.fixture
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), options=OPTIONS) as runtime:
        yield runtime


def lora(path: Path, scale: float = 1.0) -> AdapterSet:
    return AdapterSet(lora=(LoraAdapter(str(path), scale),))


def control(path: Path, scale: float = 1.0, *layers: int) -> AdapterSet:
    return AdapterSet(control=(ControlVector(str(path), scale, *layers),))


def session(engine: Engine, adapters: AdapterSet | None = None) -> Session:
    chain = Chain("temperature(1.2) | dist(seed=5)", n_vocab=engine.vocabulary.size)
    return engine.session(chain, engine.adapters.overlay(adapters))


def logits(engine: Engine, adapters: AdapterSet | None = None) -> np.ndarray:
    made = session(engine, adapters)
    made.extend(PROMPT)
    found = made.logits().copy()
    made.close()
    return found


def text(session: Session, count: int = 12) -> list[int]:
    return [session.step().token for _ in range(count)]


def test_adapters_change_the_logits_and_scale_zero_does_not(engine: Engine, files: dict[str, Path]) -> None:
    plain = logits(engine)
    for make, name in ((lora, "one"), (lora, "two"), (control, "calm")):
        assert np.abs(logits(engine, make(files[name])) - plain).max() > 0.1, name
        assert np.array_equal(logits(engine, make(files[name], 0.0)), plain), name
        assert not np.array_equal(
            logits(engine, make(files[name], 0.5)), logits(engine, make(files[name]))
        ), name
    assert np.array_equal(logits(engine), plain)


def test_lora_is_what_its_matrices_say(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    # Merged by hand into the weights, it gives the same logits.
    path = tiny_models.build_lora(tmp_path / "one.gguf", seed=7)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(tiny_model("llama").read_bytes())
    weights = {tensor.name: tensor for tensor in gguf.GGUFReader(merged, "r+").tensors}
    for name, tensor in weights.items():
        if f"{name}.lora_a" in tensors:
            tensor.data[:] += 0.5 * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
            if isinstance(tensor.data.base, np.memmap):
                tensor.data.base.flush()
    found: list[np.ndarray] = []
    for file, adapters in ((tiny_model("llama"), lora(path, 0.5)), (merged, None)):
        model = Model.load(file, OPTIONS)
        engine = Engine(model, OPTIONS)
        found.append(logits(engine, adapters))
        engine.close()
        model.close()
    assert np.abs(found[0] - found[1]).max() < 1e-3


def test_control_vector_is_added_behind_the_layers_named(engine: Engine, files: dict[str, Path]) -> None:
    assert engine.adapters.overlay(control(files["calm"])) is engine.adapters.overlay(
        control(files["calm"], 1.0, 1, 1)
    )
    with pytest.raises(ConfigError, match="no layers 1 to 2"):
        engine.adapters.overlay(control(files["calm"], 1.0, 1, 2))


def test_control_vector_has_a_range_of_layers(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = str(tiny_models.build_control_vector(tmp_path / "six.gguf", layers=6, n_embd=32))
    model = Model.load(tiny_model("gemma3"), OPTIONS)
    engine = Engine(model, OPTIONS)
    found = [
        logits(engine, AdapterSet(control=tuple(ControlVector(path, 0.5, *layers) for layers in ranges)))
        for ranges in ([(1, 0)], [(1, 2)], [(3, 5)], [(3, 5), (1, 2)], [(5, 5)])
    ]
    engine.close()
    model.close()
    assert np.array_equal(found[0], found[3])
    assert len({one.tobytes() for one in found}) == 4


def test_sets_add_up_and_equal_sets_are_one(engine: Engine, files: dict[str, Path]) -> None:
    one, two = LoraAdapter(str(files["one"]), 0.5), LoraAdapter(str(files["two"]))
    made = engine.adapters.overlay(AdapterSet(lora=(one, two, one)))
    assert made is engine.adapters.overlay(AdapterSet(lora=(two, LoraAdapter(str(files["one"]), 1.0))))
    assert made is not engine.adapters.overlay(AdapterSet(lora=(one, two)))
    assert engine.adapters.overlay(None) is engine.adapters.overlay(AdapterSet())


def test_chats_with_different_sets_side_by_side_equal_each_alone(
    engine: Engine, files: dict[str, Path]
) -> None:
    sets = [None, lora(files["one"]), control(files["calm"]), lora(files["one"])]
    alone: list[list[int]] = []
    for adapters in sets[:3]:
        only = session(engine, adapters)
        only.branch = 7
        only.extend(PROMPT)
        alone.append(text(only))
        only.close()
    assert len({tuple(tokens) for tokens in alone}) == 3
    together = [session(engine, adapters) for adapters in sets]
    for one in together:
        one.branch = 7
        one.extend(PROMPT)
    written: list[list[int]] = [[] for _ in together]
    for _ in range(12):
        for one in together:
            one.request()
        for tokens, one in zip(written, together, strict=True):
            tokens.append(one.step().token)
    assert written == [*alone, alone[1]]
    assert all(one.check_memory() for one in together)


def test_chats_with_different_sets_that_take_turns_equal_each_alone(
    engine: Engine, files: dict[str, Path]
) -> None:
    # Nobody else waits: the quick way of a lone session must see that another's adapters are in use.
    sets = [None, lora(files["one"]), control(files["calm"])]
    together = [session(engine, adapters) for adapters in sets]
    for one in together:
        one.branch = 7
        one.extend(PROMPT)
    written: list[list[int]] = [[] for _ in sets]
    for _ in range(10):
        for tokens, one in zip(written, together, strict=True):
            tokens += text(one, 1)
    for tokens, adapters in zip(written, sets, strict=True):
        only = session(engine, adapters)
        only.branch = 7
        only.extend(PROMPT)
        assert text(only, 10) == tokens
        only.close()


def test_only_one_set_is_in_a_batch(engine: Engine, files: dict[str, Path]) -> None:
    sets = [None, lora(files["one"]), lora(files["one"]), None]
    together = [session(engine, adapters) for adapters in sets]
    for one in together:
        one.extend(PROMPT)
        one.step()
    seen: list[tuple[object, set[int]]] = []
    decode = engine.context.decode

    def watched(rows: list[tuple[int, int, int, bool]]) -> object:
        seen.append((engine.context.overlay, {seq for _, _, seq, _ in rows}))
        return decode(rows)

    engine.context.decode = watched  # type: ignore[method-assign]  # looks at each batch
    for _ in range(2):
        for one in together:
            one.request()
        for one in together:
            one.step()
    assert len(seen) == 4
    for overlay, seqs in seen:
        assert seqs == {one.seq for one in together if one.overlay is overlay}
    # The set in use comes first: of two batches a step, one changes it.
    assert seen[1][0] is seen[2][0]


def test_fork_scratch_and_looks_have_the_session_s_own_set(engine: Engine, files: dict[str, Path]) -> None:
    from edgellm.engine.scoring import score_continuations

    steered, plain = session(engine, lora(files["one"])), session(engine)
    for one in (steered, plain):
        one.extend(PROMPT)
    wanted = logits(engine, lora(files["one"]))
    plain.step()
    fork = steered.fork()
    assert fork.overlay is steered.overlay
    assert np.allclose(fork.logits(), wanted, atol=1e-5)
    plain.step()
    looked = steered.peek(45)
    longer = session(engine, lora(files["one"]))
    longer.extend([*PROMPT, (45, SpanKind.PROMPT)])
    assert np.allclose(looked, longer.logits(), atol=1e-4)
    plain.step()
    (score,) = score_continuations(steered, [[45, 46]])
    shifted = longer.logits() - longer.logits().max()
    assert score[1] == pytest.approx(float(shifted[46] - np.log(np.exp(shifted).sum())), abs=1e-4)


def test_swap_in_mid_chat_equals_a_chat_that_had_the_set_from_the_start(
    engine: Engine, files: dict[str, Path]
) -> None:
    swapped = session(engine)
    swapped.extend(PROMPT)
    text(swapped, 5)
    length = len(swapped.tape)
    swapped.use_adapters(engine.adapters.overlay(lora(files["two"])))
    assert swapped.memory.lost_tokens == length - 1
    swapped.extend([(90, SpanKind.USER)])
    assert swapped.rebuilt_tokens == length - 1
    fresh = session(engine, lora(files["two"]))
    fresh.extend([(token, SpanKind.PROMPT) for token in swapped.tape.tokens])
    fresh.branch = swapped.branch
    assert np.allclose(fresh.logits(), swapped.logits(), atol=1e-4)
    assert text(fresh) == text(swapped)
    swapped.use_adapters(fresh.overlay)
    assert swapped.memory.lost_tokens == 0


def test_guesses_are_dropped_with_the_set(tiny_model: Callable[..., Path], files: dict[str, Path]) -> None:
    with edgellm.load(tiny_model("llama"), options=OPTIONS) as runtime:
        texts: list[list[int]] = []
        for mode in ("ngram", "off"):
            made = runtime.engine.session(runtime.make_chain("greedy"))
            made.speculation = runtime.speculation(mode)
            made.extend([(40 + index % 5, SpanKind.PROMPT) for index in range(40)])
            text(made, 10)
            made.use_adapters(runtime.overlay(lora(files["one"])))
            texts.append(text(made, 20))
            assert made.check_memory()
        assert texts[0] == texts[1]


def test_recurrent_memory_is_rebuilt_as_well(tiny_model: Callable[..., Path]) -> None:
    # An empty change is none; the checkpoints of other adapters would be of no use.
    model = Model.load(tiny_model("mamba"), OPTIONS)
    engine = Engine(model, OPTIONS)
    made = session(engine)
    made.extend(PROMPT)
    made.use_adapters(engine.adapters.overlay(AdapterSet()))
    assert made.memory.lost_tokens == 0
    made.memory.use(made.overlay)
    assert not len(made.memory.checkpoints)
    text(made, 2)
    assert made.rebuilt_tokens == len(PROMPT)
    engine.close()
    model.close()


def test_parked_memory_of_the_old_set_is_not_taken_up(engine: Engine, files: dict[str, Path]) -> None:
    made = session(engine)
    made.extend(PROMPT)
    others = [session(engine) for _ in range(4)]
    for one in others:
        one.extend(PROMPT)
    assert made.seq is None
    made.use_adapters(engine.adapters.overlay(lora(files["one"])))
    made.extend([(90, SpanKind.USER)])
    wanted = session(engine, lora(files["one"]))
    wanted.extend([*PROMPT, (90, SpanKind.USER)])
    assert np.allclose(made.logits(), wanted.logits(), atol=1e-4)


def test_what_was_computed_ahead_with_the_old_set_is_computed_again(
    engine: Engine, files: dict[str, Path]
) -> None:
    made, wanted = session(engine), session(engine, lora(files["one"]))
    made.extend(PROMPT)
    longer = [*made.tape.tokens, 90, 91, 92]
    assert list(made.prefill_ahead(longer))[-1] == 3
    made.use_adapters(wanted.overlay)
    for one in (made, wanted):
        one.extend([(token, SpanKind.USER) for token in longer[len(one.tape) :]])
    assert np.allclose(made.logits(), wanted.logits(), atol=1e-4)
    assert made.rebuilt_tokens == len(PROMPT)


# -- chats ----------------------------------------------------------------------------------------------


def test_chat_says_what_a_change_of_adapters_costs(runtime: edgellm.Runtime, files: dict[str, Path]) -> None:
    chat = runtime.chat(sampler="greedy", adapters=lora(files["one"]))
    chat.ask("user and the system", max_tokens=8)
    assert chat.adapters == lora(files["one"])
    assert chat.set_adapters(chat.adapters) == 0
    held = chat.conversation.session.kv_length
    assert chat.set_adapters(None) == held > 0
    assert chat.adapters == AdapterSet()
    before = chat.usage.rebuilt_tokens
    events = list(chat.send("name", max_tokens=4))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any(f"{held} tokens are computed again" in notice for notice in notices), notices
    assert chat.usage.rebuilt_tokens - before == held
    again = [event.message for event in chat.send("name", max_tokens=4) if isinstance(event, Notice)]
    assert not any("adapters" in notice for notice in again)


def test_adapters_are_not_changed_in_an_open_turn(runtime: edgellm.Runtime, files: dict[str, Path]) -> None:
    chat = runtime.chat(sampler="greedy")
    turn = chat.send("user", max_tokens=8)
    next(turn)
    with pytest.raises(ConfigError, match="cannot change the adapters while a turn is open"):
        chat.set_adapters(lora(files["one"]))
    turn.close()
    chat.set_adapters(lora(files["one"]))
    assert chat.options.adapters == chat.adapters == lora(files["one"])


def test_texts_are_completed_and_embedded_with_adapters(
    tiny_model: Callable[..., Path], files: dict[str, Path]
) -> None:
    def completed(runtime: edgellm.Runtime, adapters: AdapterSet | None) -> str:
        events = runtime.complete("the user", max_tokens=12, sampler="greedy", adapters=adapters)
        return next(event.text for event in events if isinstance(event, edgellm.TurnFinished))

    options = LoadOptions(n_ctx=512, threads=1, threads_batch=1, lora=(LoraAdapter(str(files["one"])),))
    with (
        edgellm.load(tiny_model("llama"), options=options) as adapted,
        edgellm.load(tiny_model("llama"), options=OPTIONS) as plain,
    ):
        assert completed(adapted, None) == completed(plain, lora(files["one"]))
        assert completed(adapted, AdapterSet()) == completed(plain, None) != completed(adapted, None)
        assert not np.allclose(adapted.embed(["the user"]), plain.embed(["the user"]), atol=1e-3)


def test_load_time_adapters_are_the_default(tiny_model: Callable[..., Path], files: dict[str, Path]) -> None:
    options = LoadOptions(n_ctx=512, threads=1, threads_batch=1, lora=(LoraAdapter(str(files["one"])),))
    with edgellm.load(tiny_model("llama"), options=options) as runtime:
        chat = runtime.chat(sampler="greedy")
        assert chat.adapters == lora(files["one"])
        plain = runtime.chat(sampler="greedy", adapters=AdapterSet())
        assert plain.adapters == AdapterSet()
        assert chat.ask("user name", max_tokens=12) != plain.ask("user name", max_tokens=12)
        assert chat.fork().adapters == chat.adapters


def test_spans_say_with_which_adapters_their_tokens_came(
    runtime: edgellm.Runtime, files: dict[str, Path], tmp_path: Path
) -> None:
    chat = runtime.chat(sampler="greedy")
    chat.ask("user and the system", max_tokens=8)
    plain = len(chat.tape)
    chat.set_adapters(lora(files["one"]))
    chat.ask("name", max_tokens=8)
    for one in (chat, chat.fork()):
        assert {span.adapters for span in one.spans if span.end <= plain} == {AdapterSet()}
        assert {span.adapters for span in one.spans if span.start >= plain} == {lora(files["one"])}
        assert [span.end for span in one.spans[:-1]] == [span.start for span in one.spans[1:]]
    chat.save(tmp_path / "a.chat")
    with runtime.open_chat(tmp_path / "a.chat", adapters=AdapterSet()) as again:
        assert again.spans == chat.spans
        again.ask("name", max_tokens=2)
        assert again.spans[-1].adapters == AdapterSet()
    middle = chat.conversation.session
    splice(middle, 2, 4, [(50, SpanKind.USER)])
    assert middle.tape.spans()[0].adapters == AdapterSet()
    assert middle.tape.sets[2] == lora(files["one"])
    assert middle.tape.sets[3:] == (AdapterSet(),) * (plain - 4) + (lora(files["one"]),) * (
        len(chat.tape) - plain + 1
    )


def test_saved_chat_comes_back_with_its_adapters(
    runtime: edgellm.Runtime, files: dict[str, Path], tmp_path: Path
) -> None:
    mine = tiny_models.build_lora(tmp_path / "mine.gguf", seed=9)
    chat = runtime.chat(sampler="greedy", adapters=lora(mine, 0.5))
    chat.ask("user and the system", max_tokens=8)
    path = tmp_path / "a.chat"
    chat.save(path)
    expected = chat.ask("name", max_tokens=8)
    with runtime.open_chat(path) as again:
        assert again.resumed is not None and again.resumed.verdict == "exact"
        assert again.adapters == chat.adapters
        assert again.ask("name", max_tokens=8) == expected
    with runtime.open_chat(path, adapters=AdapterSet()) as other:
        assert other.resumed is not None and other.resumed.verdict == "rebuilt"
        assert "other adapters" in other.resumed.reason
    tiny_models.build_lora(mine, seed=10)
    with runtime.open_chat(path) as changed:
        assert changed.resumed is not None and changed.resumed.verdict == "rebuilt"
        assert changed.resumed.rebuilt_tokens > 0
    mine.unlink()
    with pytest.raises(SessionError, match=r"mine\.gguf, which is not there") as caught:
        runtime.open_chat(path)
    assert "adapters=" in caught.value.hint


def test_prefix_snapshot_is_of_one_set(
    tiny_model: Callable[..., Path],
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGELLM_PREFIX_CACHE", "on")
    taken: list[int] = []
    for adapters in (None, lora(files["one"]), lora(files["one"]), lora(files["one"], 0.5), None):
        with edgellm.load(tiny_model("llama"), options=OPTIONS) as runtime:
            made = runtime.engine.session(runtime.make_chain("greedy"), runtime.overlay(adapters))
            made.extend([(40 + index % 50, SpanKind.SYSTEM) for index in range(100)], head=90)
            taken.append(made.snapshot_tokens)
    assert taken == [0, 0, 90, 0, 90]


def test_guided_tools_are_chosen_with_the_chat_s_adapters(
    tiny_model: Callable[..., Path], files: dict[str, Path]
) -> None:
    def double(number: int) -> int:
        """Doubles a number."""
        return 2 * number

    def scores(runtime: edgellm.Runtime, adapters: AdapterSet | None) -> dict[str, float]:
        with runtime.chat(
            tools=[double],
            strategy="guided",
            sampler="greedy",
            adapters=adapters,
            permissions={"double": "deny"},
        ) as chat:
            events = list(chat.send("the name of a user", max_tokens=4))
        (found,) = [event.scores for event in events if isinstance(event, edgellm.ToolChoiceScored)]
        return dict(found)

    sets = (None, lora(files["one"]), lora(files["two"]), control(files["calm"]))
    options = LoadOptions(n_ctx=4096, threads=1, threads_batch=1, fit="off")
    path = tiny_model("llama", n_ctx=4096)
    with edgellm.load(path, options=options) as runtime:
        mixed = [scores(runtime, adapters) for adapters in (*sets, *sets)]
    # What was computed the first time lies elsewhere the second time: the last bits may differ.
    assert all(
        again == pytest.approx(first, abs=0.01) for first, again in zip(mixed[:4], mixed[4:], strict=True)
    )
    assert len({round(found["double"], 1) for found in mixed[:4]}) == len(sets)


# -- files that do not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lora, "none", "no LoRA adapter at"),
        (control, "none", "no control vector at"),
        (lora, "calm", "is no LoRA adapter"),
        (control, "one", "is no control vector"),
        (lora, "foreign", "was made for a qwen3 model, this one is llama"),
        (control, "wide", "does not fit this model"),
        (lora, "text", "is no LoRA adapter"),
        (lora, "cut", "is no LoRA adapter"),
        (lora, "model", "is no LoRA adapter"),
        (lora, "large", "does not fit this model"),
    ],
)
def test_wrong_file_is_named_with_a_remedy(
    runtime: edgellm.Runtime,
    files: dict[str, Path],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    make: Callable[..., AdapterSet],
    name: str,
    message: str,
) -> None:
    path = files.get(name, tmp_path / f"{name}.gguf")
    if name == "text":
        path.write_text("hello", encoding="utf-8")
    elif name == "cut":
        path.write_bytes(files["one"].read_bytes()[:-100])
    elif name == "model":
        path = tiny_model("llama")
    elif name == "large":
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 96), dtype=np.float32))
        writer.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((96, 2), dtype=np.float32))
        tiny_models.write(writer, path)
    chat = runtime.chat(sampler="greedy")
    chat.ask("user", max_tokens=3)
    with pytest.raises(ConfigError, match=message) as caught:
        chat.set_adapters(make(path))
    assert caught.value.hint
    # Nothing has changed for the chat.
    assert chat.adapters == AdapterSet()
    assert chat.ask("name", max_tokens=3) is not None
    assert not chat.usage.rebuilt_tokens


def test_scale_that_is_no_number_is_refused(runtime: edgellm.Runtime, files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="the scale of"):
        runtime.chat(adapters=lora(files["one"], float("nan")))


@pytest.mark.parametrize("name", ["C:\\adapters\\x.gguf", "C:/adapters/x.gguf", "C:\\x.gguf:0.5"])
def test_a_drive_letter_is_no_file_with_a_scale(name: str) -> None:
    with pytest.raises(edgellm.EdgeError) as caught:
        edgellm.adapter_set(name)
    assert "x.gguf" in str(caught.value) and "scale" not in str(caught.value)
