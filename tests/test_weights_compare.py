"""Quantizations beside each other: what is measured, what is recommended, what is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_harness import cli, own_catalogue

import edgellm
from edgellm.cli.compare import plot
from edgellm.errors import Cancelled, ConfigError, EdgeError, OutOfMemory
from edgellm.weights.compare import Comparison, Measured
from edgellm.weights.windows import windows_of

TEXT = "The kettle is on the stove, and the rain is at the window. " * 30


@pytest.fixture(scope="module")
def copies(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and copies of it."""
    folder = tmp_path_factory.mktemp("copies")
    source = tiny_model("llama")
    made = {kind: edgellm.quantize(source, folder / f"m.{kind}.gguf", kind) for kind in ("Q8_0", "Q4_0")}
    return {"F32": source, **made}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.slow
def test_losses_are_what_the_logits_say(copies: dict[str, Path]) -> None:
    """Perplexity, KL and same-top against a computation token by token with plain sessions."""
    from edgellm.types import SpanKind

    found = edgellm.compare([copies["F32"], copies["Q4_0"]], TEXT, windows=1, rounds=1)
    rows: list[list[np.ndarray]] = []
    tokens: list[int] = []
    for path in (copies["F32"], copies["Q4_0"]):
        with edgellm.load(path, n_ctx=512) as runtime:
            tokens = windows_of(runtime.model, TEXT, most=1)[0]
            session = runtime.engine.session(runtime.make_chain("greedy"))
            session.extend([(token, SpanKind.PROMPT) for token in tokens[: len(tokens) // 2]])
            mine: list[np.ndarray] = []
            for token in tokens[len(tokens) // 2 : -1]:
                session.extend([(token, SpanKind.PROMPT)])
                mine.append(_log_softmax(session.logits()))
            rows.append(mine)
    nexts = tokens[len(tokens) // 2 + 1 :]
    kl = np.mean([np.dot(np.exp(a), a - b) for a, b in zip(*rows, strict=True)])
    same = np.mean([a.argmax() == b.argmax() for a, b in zip(*rows, strict=True)])
    loss = np.mean([-row[token] for row, token in zip(rows[1], nexts, strict=True)])
    q4 = found.files[1]
    assert found.scored_tokens == len(nexts)
    assert q4.kl == pytest.approx(kl, rel=0.02)
    assert q4.perplexity == pytest.approx(np.exp(loss), rel=0.01)
    assert q4.same_top == pytest.approx(same, abs=0.02)
    assert found.reference.kl == 0 and found.reference.same_top == 1.0
    assert all(file.prefill_tok_s > 0 and file.decode_tok_s > 0 for file in found.files)


def test_finer_types_lose_less(copies: dict[str, Path]) -> None:
    found = edgellm.compare(list(copies.values()), TEXT, windows=1, rounds=1)
    by_name = dict(zip(copies, found.files, strict=True))
    assert found.reference is by_name["F32"]
    assert 0 < by_name["Q8_0"].kl < by_name["Q4_0"].kl
    assert by_name["Q8_0"].kl_99 >= by_name["Q8_0"].kl


def test_what_cannot_be_compared_is_said(copies: dict[str, Path], tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="two files or more"):
        edgellm.compare([copies["F32"]])
    with pytest.raises(ConfigError, match="another vocabulary"):
        edgellm.compare([copies["F32"], tiny_model("llama", tokenizer="llama")], TEXT)
    with pytest.raises(ConfigError, match="at least 64"):
        edgellm.compare(list(copies.values()), "short")
    with pytest.raises(Cancelled):
        edgellm.compare(list(copies.values()), TEXT, progress=lambda done, _total, _what: done < 2)


def test_what_nothing_can_be_measured_with_is_refused_before(copies: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds=0"):
        edgellm.compare(list(copies.values()), TEXT, rounds=0)
    for options, said in (
        ({"bound": -1.0}, "bounds nothing"),
        ({"bound": float("nan")}, "bounds nothing"),
        ({"rounds": 0}, "rounds=0"),
        ({"kinds": ["Q8_0", "Q99"]}, "'Q99' is unknown"),
        ({"kinds": ["Q8_0", "Q1_0"]}, "cannot quantize"),
    ):
        with pytest.raises(EdgeError, match=said):
            edgellm.optimize(copies["F32"], tmp_path / "out", TEXT, **options)  # pyright: ignore[reportArgumentType]
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="the text has 0 tokens"):
        edgellm.compare(list(copies.values()), "")
    text = tmp_path / "empty.txt"
    text.touch()
    for words in (("compare", *copies.values()), ("optimize", copies["F32"])):
        outcome = cli(*words, "--text", text)
        assert outcome.code == 1
        assert "empty.txt is empty" in outcome.err


def test_a_type_that_needs_an_importance_matrix_is_refused_before_a_copy_is_made(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    from tiny_models import Shape

    wide = tiny_model("llama", shape=Shape(n_embd=256, n_ff=256, n_head=4, head_dim=64))
    with pytest.raises(ConfigError, match="IQ2_XXS needs an importance matrix, and none is made here"):
        edgellm.optimize(wide, tmp_path / "out", kinds=["Q8_0", "IQ2_XXS"])
    assert not (tmp_path / "out").exists()


def test_words_of_optimize_are_read_as_they_are_meant(
    copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def record(_source: Path, _folder: Path, _text: str, **options: object) -> None:
        seen.update(options)
        raise Cancelled("recorded")

    monkeypatch.setattr("edgellm.weights.optimize.optimize_file", record)
    cli("optimize", copies["F32"], "--types", " Q8_0, q4_0,", "--windows", "7")
    assert (seen["kinds"], seen["windows"]) == (("Q8_0", "q4_0"), 7)
    for words, said in ((("--types", ","), "names no type"), (("--bound", "nan"), "between 0 and 10")):
        outcome = cli("optimize", copies["F32"], *words)
        assert outcome.code == 2
        assert said in outcome.err


def test_all_parts_of_a_split_model_count(copies: dict[str, Path], tiny_model: Callable[..., Path]) -> None:
    first = tiny_model("llama", split_max_tensors=8)
    second = first.with_name(first.name.replace("-00001-", "-00002-"))
    found = edgellm.compare([copies["Q8_0"], second], TEXT, windows=1, rounds=1)
    whole = found.files[1]
    assert whole.path == first
    assert whole.size_bytes == edgellm.inspect(first).size_bytes > first.stat().st_size
    assert found.reference is whole
    assert whole.perplexity > 0


def test_models_that_do_not_fit_beside_each_other_are_refused_with_the_sum(
    copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgellm.planning.demand import Machine

    room = [80_000_000]

    def machine(_devices: tuple[str, ...] = ()) -> Machine:
        return Machine(room_bytes=room[0], total_bytes=1 << 30, cores=2)

    monkeypatch.setattr("edgellm.planning.together.this_machine", machine)
    found = edgellm.compare([copies["F32"], copies["Q8_0"]], TEXT, windows=1, rounds=1)
    assert found.scored_tokens > 0
    room[0] = 65_000_000  # of which 64 MB are kept free
    with pytest.raises(OutOfMemory, match=r"3 models do not fit into memory together: \d MB = ") as caught:
        edgellm.compare(list(copies.values()), TEXT)
    assert "fewer files" in caught.value.hint
    with pytest.raises(OutOfMemory, match="as Q4_0"):
        edgellm.optimize(copies["F32"], tmp_path / "out", TEXT, kinds=["Q4_0"])
    assert not (tmp_path / "out").exists()
    room[0] = 64_000_000
    with pytest.raises(OutOfMemory, match="does not fit into memory: it takes"):
        edgellm.calibrate(copies["F32"], TEXT)


def _measured(name: str, size: int, speed: float, kl: float, error: float = 0.0) -> Measured:
    return Measured(Path(name), size, speed, speed / 5, 10.0, kl, error, kl * 5, 0.9)


def test_the_best_is_the_quickest_within_the_bound_for_sure() -> None:
    files = (
        _measured("big", 100, 100.0, 0.0),
        _measured("fine", 60, 200.0, 0.004, 0.001),
        _measured("unsure", 50, 300.0, 0.008, 0.002),
        _measured("coarse", 40, 400.0, 0.3),
    )
    found = Comparison(files, files[0], 500, 3, 2)
    assert found.best(0.01).path.name == "fine"
    assert found.best(0.02).path.name == "unsure"
    assert found.best(1.0).path.name == "coarse"
    assert found.best(0.0).path.name == "big"
    drawn = plot(found).splitlines()
    assert "d" in drawn[0] and drawn[0].startswith("  0.3000 |")
    assert "a" in drawn[10] and "c" not in drawn[0]


def test_compare_on_the_command_line(copies: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    files = [copies["F32"], copies["Q8_0"]]
    shown = cli("compare", *files, "--text", text, "--windows", 1, "--rounds", 1)
    assert shown.code == 0, shown.err
    assert "reference" in shown.out and "perplexity" in shown.out and "seconds a turn" in shown.out
    told = json.loads(cli("compare", *files, "--text", text, "--windows", 1, "--rounds", 1, "--json").out)
    assert [file["path"] for file in told["files"]] == [str(file) for file in files]
    assert told["files"][0]["kl"] == 0
    assert cli("compare", files[0]).code == 2


def _own_model(folder: Path, source: Path) -> None:
    own_catalogue(
        folder / "config",
        "# mine alone\n[models.mine]\n"
        'description = "mine"\nlicence = "MIT"\nfile = "mine.gguf"\nsampler = "greedy"\n'
        "[models.mine.load]\nn_ctx = 256\n"
        f"[[models.mine.sources]]\nkind = 'path'\npath = '{source}'\n",
    )
    edgellm.pull("mine")


def test_a_kept_copy_is_removed_with_file_and_entry(
    copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own_model(tmp_path, copies["F32"])
    catalogue, home = tmp_path / "config/models.toml", tmp_path / "home"
    before = catalogue.read_text()

    def keep() -> str:
        copy = tmp_path / "any.Q8_0.gguf"
        copy.write_bytes(copies["Q8_0"].read_bytes())
        return edgellm.keep_copy("mine", copy)

    assert keep() == "mine-q8_0"
    assert (home / "derived/mine-q8_0.gguf").is_file()
    catalogue.write_text('default = "mine-q8_0"\n' + catalogue.read_text())
    assert "is the default model" in cli("models", "remove", "mine-q8_0").err
    catalogue.write_text(catalogue.read_text().partition("\n")[2])
    outcome = cli("models", "remove", "mine-q8_0")
    assert outcome.code == 0, outcome.err
    assert int(outcome.err.split()[-3]) >= copies["Q8_0"].stat().st_size // 1000
    assert list((home / "derived").iterdir()) == []
    assert catalogue.read_text().strip() == before.strip()
    assert keep() == "mine-q8_0"
    (home / "models/mine-q8_0/mine-q8_0.gguf").unlink()  # and half of it is gone
    (home / "models/mine-q8_0/model.json").unlink()
    (home / "models/mine-q8_0").rmdir()
    assert edgellm.remove_model("mine-q8_0") == copies["Q8_0"].stat().st_size
    assert "mine-q8_0" not in edgellm.catalog().entries
    assert cli("models", "remove", "mine").code == 0
    assert copies["F32"].is_file()
    assert "mine" in edgellm.catalog().entries


def test_what_could_not_be_kept_is_said_before_anything_is_measured(
    copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("edgellm.weights.optimize.optimize_file", never)
    outcome = cli("optimize", copies["F32"], "--keep")
    assert outcome.code == 1
    assert "the model is a file" in outcome.err
    _own_model(tmp_path, copies["F32"])
    copy = tmp_path / "any.Q8_0.gguf"
    copy.write_bytes(copies["Q8_0"].read_bytes())
    edgellm.keep_copy("mine", copy)
    outcome = cli("optimize", "mine", "--keep")
    assert outcome.code == 1
    assert "there is a model mine-q8_0 already" in outcome.err
    outcome = cli("optimize", "mine", "--output", tmp_path / "x-00001-of-00002.gguf")
    assert outcome.code == 1
    assert "one part of 2" in outcome.err


def test_copies_that_are_measured_lie_beside_the_store_and_go_however_it_ends(
    copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "home/optimizing/.killed"
    left.mkdir(parents=True)
    (left / "copy.gguf").touch()
    mark = left.with_name(".killed.owned")
    mark.touch()
    os.utime(mark, (1, 1))
    seen: list[Path] = []

    def fail(_source: Path, folder: Path, _text: str, **_: object) -> None:
        assert not left.exists()
        (folder / "copy.gguf").touch()
        seen.append(folder)
        raise Cancelled("ended")

    monkeypatch.setattr("edgellm.weights.optimize.optimize_file", fail)
    assert cli("optimize", copies["F32"]).code != 0
    assert seen[0].parent == left.parent
    assert list(left.parent.iterdir()) == []


def test_where_the_copy_cannot_be_kept_nobody_is_asked(
    copies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(found: Comparison, _bound: float) -> Measured:
        return found.files[1]

    monkeypatch.setattr("edgellm.weights.optimize._WORTH", 1e9)
    monkeypatch.setattr("edgellm.weights.compare.Comparison.best", second)
    outcome = cli("optimize", copies["F32"], "--types", "Q8_0", "--rounds", 1, "--windows", 1)
    assert outcome.code == 0, outcome.err
    assert (
        "To keep the copy: --output FILE (the model is a file, not a name of the catalogue)." in outcome.err
    )


@pytest.mark.slow
def test_a_better_copy_is_kept_under_a_name_of_its_own(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_model("llama")
    _own_model(tmp_path, source)
    monkeypatch.setattr("edgellm.weights.optimize._WORTH", 1e9)

    def second(found: Comparison, _bound: float) -> Measured:
        return found.files[1]

    monkeypatch.setattr("edgellm.weights.compare.Comparison.best", second)
    words = ("optimize", "mine", "--types", "q8_0", "--rounds", 1)
    assert cli(*words).out.count("\n") > 5
    assert "mine-q8_0" not in edgellm.catalog().entries  # nobody was asked, nothing is kept
    outcome = cli(*words, "--keep")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "mine-q8_0"
    entry = edgellm.catalog().find("mine-q8_0")
    assert (entry.sampler, entry.licence, entry.load.n_ctx) == ("greedy", "MIT", 256)
    with edgellm.load("mine-q8_0") as runtime:
        assert runtime.n_ctx == 256
        assert "Q8_0" in edgellm.inspect("mine-q8_0").quantization
    assert edgellm.inspect("mine").quantization == edgellm.inspect(source).quantization
    again = cli(*words, "--keep")
    assert again.code == 1 and "already" in again.err
    output = tmp_path / "fast.gguf"
    assert cli("optimize", source, *words[2:], "--output", output).code == 0
    assert output.is_file()


@pytest.mark.slow
def test_where_no_copy_is_better_the_original_stays(copies: dict[str, Path], tmp_path: Path) -> None:
    found = edgellm.optimize(copies["F32"], tmp_path, TEXT, kinds=["Q4_0"], bound=1e-9, rounds=1)
    assert not found.is_better
    assert found.best_kind == ""
    assert found.original.path == copies["F32"]
    outcome = cli("optimize", copies["F32"], "--types", "Q4_0", "--bound", "0.000000001", "--rounds", 1)
    assert outcome.code == 0, outcome.err
    assert "Keep " in outcome.out and "nothing here is 5 % quicker" in outcome.out
