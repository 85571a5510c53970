"""`edgellm bench`: every part gives its figures, an earlier run is compared, llama-bench is run in alternation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_harness import cli

from edgellm.benching.energy import EnergyMeter
from edgellm.benching.peer import find_peer, read_peer
from edgellm.cli import bench as cli_bench
from edgellm.cli.opening import open_runtime
from edgellm.errors import ConfigError

SMALL = ("--rounds", "2", "--prefill", "48", "--decode", "8")
PEER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
*"-n 0 "*) echo '[{{"build_commit": "abc", "avg_ts": 0.5}}]' ;;
*"-p 0 "*) echo '[{{"build_commit": "abc", "avg_ts": 0.25}}]' ;;
esac
"""


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", n_ctx=4096)


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
    return file


def test_every_part_is_measured_and_compared(model: Path, tmp_path: Path) -> None:
    outcome = cli("bench", "-m", model, *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    bench = json.loads(outcome.out)
    figures = {figure["name"]: figure for figure in bench["figures"]}
    for name in ("prefill", "decode", "constraint: mask", "turn with a tool, first", "save a chat", "memory"):
        assert figures[name]["value"] > 0, name
    assert any(name.startswith("sampler: top_k") for name in figures)
    assert any(name.startswith("resume ") for name in figures)
    assert bench["against"] == {}
    # An earlier run of half the speed and a tenth of the memory.
    earlier = {
        "figures": [
            {"name": "decode", "value": figures["decode"]["value"] / 2},
            {"name": "memory", "value": figures["memory"]["value"] / 10},
        ]
    }
    before = tmp_path / "before.json"
    before.write_text(json.dumps(earlier), encoding="utf-8")
    outcome = cli("bench", "-m", model, *SMALL, "--json", "--compare", before)
    compared = json.loads(outcome.out)["compared"]
    assert set(compared) == {"decode", "memory"}
    assert compared["memory"] < 0.5
    assert "does not say its model, " in outcome.err


def test_runs_of_different_things_are_compared_with_a_warning(model: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    earlier = json.loads(cli("bench", "-m", model, *SMALL, "--threads", "1", "--json").out)
    before.write_text(json.dumps({**earlier, "model": "another", "threads": 3}), encoding="utf-8")
    outcome = cli("bench", "-m", model, *SMALL, "--threads", "1", "--json", "--compare", before)
    assert f"model another before, {model.name} now; threads 3 before, 1 now." in outcome.err
    assert json.loads(outcome.out)["differs"] == {"model": ["another", model.name], "threads": [3, 1]}
    before.write_text(json.dumps(earlier), encoding="utf-8")
    outcome = cli("bench", "-m", model, *SMALL, "--threads", "1", "--compare", before)
    assert "warning" not in outcome.err


def test_what_needs_a_chat_template_is_left_out_and_said(tiny_model: Callable[..., Path]) -> None:
    outcome = cli("bench", "-m", tiny_model("llama", chat_template=None), *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    assert "turn: left out, the model has no chat template." in outcome.err
    bench = json.loads(outcome.out)
    assert set(bench["left_out"]) == {"turn", "resume"}
    assert {"prefill", "decode", "memory"} <= {figure["name"] for figure in bench["figures"]}


def test_a_context_that_holds_no_round_is_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path
) -> None:
    outcome = cli("bench", "-m", tmp_path / "none.gguf", "--ctx", "256")
    assert outcome.code == 2
    assert "--ctx 512 or more" in outcome.err
    words = ("--ctx", "256", "--prefill", "256", "--decode", "254", "--rounds", "1")
    outcome = cli("bench", "-m", model, *words, "--json")
    assert outcome.code == 0, outcome.err
    assert "resume" in json.loads(outcome.out)["left_out"]


def test_a_peer_runs_on_the_same_model_and_settings_in_pairs_of_a_load(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, loads = tmp_path / "log", list[Any]()

    def counted(args: Any) -> Any:
        loads.append(args)
        return open_runtime(args)

    monkeypatch.setattr(cli_bench, "open_runtime", counted)
    peer = program(tmp_path / "llama-bench", PEER.format(log=log))
    outcome = cli("bench", "-m", model, *SMALL, "--threads", "1", "--against", peer, "--json")
    assert outcome.code == 0, outcome.err
    against = json.loads(outcome.out)["against"]
    assert against["build"] == "abc"
    assert against["prefill_ratio"] > 1 and against["decode_ratio"] > 1
    assert against["decode_tok_s"] == 0.25
    calls = log.read_text(encoding="utf-8").splitlines()
    settings = "-t 1 -ub 512 -ctk f16 -ctv f16 -r 1 -o json"
    # Each of two rounds has one of prefill; decodes are short, and more of them are measured.
    assert calls == [f"-m {model} -p 48 -n 0 {settings}"] * 2 + [f"-m {model} -p 0 -n 8 {settings}"] * 6
    # The first load says what the peer is told, the last measures the rest.
    assert len(loads) == 1 + 2 + 6 + 1
    assert "against llama-bench (abc)" in cli("bench", "-m", model, *SMALL, "--against", peer).out


def test_llama_bench_is_looked_for_where_make_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="make llama-bench"):
        find_peer("llama-bench")
    built = program(tmp_path / "home/cache/llama-bench/llama-bench", "")
    assert find_peer("llama-bench") == built
    on_path = program(tmp_path / "bin/llama-bench", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_peer("llama-bench") == on_path
    with pytest.raises(ConfigError, match="no program"):
        find_peer(str(tmp_path / "none"))


def test_a_model_that_is_loaded_in_another_way_meanwhile_is_not_compared(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = iter(["f16", "f16", "f32"])

    def other(args: Any) -> Any:
        args.kv_type = next(kinds)
        return open_runtime(args)

    monkeypatch.setattr(cli_bench, "open_runtime", other)
    peer = program(tmp_path / "llama-bench", PEER.format(log=tmp_path / "log"))
    outcome = cli("bench", "-m", model, *SMALL, "--threads", "1", "--against", peer)
    assert outcome.code != 0
    assert "'kv_type': 'f32'" in outcome.err and "--kv-type" in outcome.err


def test_a_peer_that_fails_is_told_with_its_last_word(model: Path, tmp_path: Path) -> None:
    peer = program(tmp_path / "bad", "#!/bin/sh\necho 'unknown model' >&2\nexit 1\n")
    outcome = cli("bench", "-m", model, *SMALL, "--against", peer)
    assert (outcome.code, outcome.out) == (1, "")
    assert "unknown model" in outcome.err
    for text in ("[]", "{}", "no JSON", '[{"avg_ts": 1}, {"avg_ts": 2}]'):
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_peer(text)


def test_a_file_that_is_no_earlier_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for text in ("[]", '{"figures": [1]}'):
        file = tmp_path / "x.json"
        file.write_text(text, encoding="utf-8")
        outcome = cli("bench", "-m", tmp_path / "none.gguf", "--compare", file)
        assert outcome.code == 1
        assert "is not what `edgellm bench --json` prints" in outcome.err


def test_joules_come_from_counters_that_may_go_round(tmp_path: Path) -> None:
    assert not EnergyMeter(tmp_path).is_there
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text("9000000\n", encoding="ascii")
    (zone / "max_energy_range_uj").write_text("10000000\n", encoding="ascii")
    meter = EnergyMeter(tmp_path)
    assert meter.is_there
    meter.start()
    (zone / "energy_uj").write_text("9500000\n", encoding="ascii")
    assert meter.stop() == pytest.approx(0.5)
    meter.start()
    (zone / "energy_uj").write_text("500000\n", encoding="ascii")
    assert meter.stop() == pytest.approx(1.0)


def test_joules_come_from_a_power_sensor(tmp_path: Path) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon1"
    sensor.mkdir(parents=True)
    (sensor / "power1_input").write_text("4000000\n", encoding="ascii")
    meter = EnergyMeter(tmp_path)
    meter.start()
    while meter._joules == 0.0:  # pyright: ignore[reportPrivateUsage]
        pass
    assert meter.stop() > 0


def test_a_peer_without_adapters_is_not_measured_against_a_model_with_them(model: Path) -> None:
    outcome = cli("bench", "-m", model, "--against", "llama-bench", "--lora", "mine.gguf")
    assert outcome.code == 2
    assert "has no adapters" in outcome.err
