"""Bad input of every kind: one line and a remedy on stderr, an exit code from 1 to 123, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_harness import MAIN, Outcome, cli, own_catalogue
from model_server import Served, serving

TOOLS = '''
import sys, time
import edgellm


@edgellm.tool(permission="auto")
def raises(x: int) -> str:
    """Raises."""
    raise RuntimeError("no\\nluck\\x1b[31m")


@edgellm.tool(permission="auto")
def refuses(x: int) -> str:
    """Refuses."""
    raise edgellm.ToolError("not today", hint="Try tomorrow.")


@edgellm.tool(permission="auto", timeout_s=0.2)
def hangs(x: int) -> str:
    """Hangs."""
    time.sleep(5)
    return "late"


@edgellm.tool(permission="auto")
def leaves(x: int) -> str:
    """Leaves."""
    sys.exit(3)


@edgellm.tool(permission="auto")
def floods(x: int) -> str:
    """Returns megabytes."""
    return "flood " * 1_000_000


@edgellm.tool(permission="auto")
def chatters(x: int) -> str:
    """Prints."""
    print("junk " * 1000)
    return "quiet"


@edgellm.tool
def asks(x: int) -> str:
    """Asks."""
    return "done"


@edgellm.tool(permission="deny")
def never(x: int) -> str:
    """Never runs."""
    return "done"
'''


class Place:
    """Files to go wrong with."""

    def __init__(self, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
        self.tmp = tmp_path
        self.tiny = tiny_model
        self.model = tiny_model("llama")
        self.config = tmp_path / "config"
        self.home = tmp_path / "home"
        self.tools = self.file("mine.py", TOOLS)

    def file(self, name: str, content: str | bytes) -> Path:
        """Writes a file."""
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def catalogue(self, **changes: Any) -> None:
        """A user's catalogue with the model `mine`, in which some keys are wrong."""
        data = self.model.read_bytes()
        entry = {
            "description": "x",
            "licence": "MIT",
            "file": "mine.gguf",
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "sources": f'[{{ kind = "path", path = "{self.model}" }}]',
            **changes,
        }
        lines = [
            f"{key} = {value if key in ('sources', 'size_bytes', 'needs_acceptance') else json.dumps(value)}"
            for key, value in entry.items()
        ]
        own_catalogue(self.config, "\n".join(["[models.mine]", *lines, ""]))

    def saved_chat(self, name: str = "a.chat") -> Path:
        """A saved chat."""
        path = self.tmp / name
        words = ("chat", "-m", self.model, "--no-tools", "--max-tokens", 2)
        assert cli(*words, stdin=f"Hello\n/save {path}\n").code == 0
        return path


@pytest.fixture
def place(tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("edgellm.chat.guard.CPU_LIMIT_S", 1)
    return Place(tmp_path, tiny_model)


@dataclass(frozen=True)
class Case:
    """A bad input: what is run, and a part of the remedy. `code` 0: any from 1 to 123."""

    name: str
    words: Callable[[Place], tuple[object, ...]]
    remedy: str
    stdin: bytes = b""
    code: int = 0


def fixed(*words: object) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: words


def on_model(*words: object) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: ("run", "--json", "-m", place.model, *words, "Hello")


def as_model(content: str | bytes) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: ("run", "--json", "-m", place.file("bad.gguf", content), "Hello")


def with_tools(content: str, *words: object) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: (
        "run",
        "--json",
        "-m",
        place.model,
        "--tools",
        place.file("bad.py", content),
        *words,
        "Hello",
    )


def with_schema(content: str) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: (
        "run",
        "--json",
        "-m",
        place.model,
        "--schema",
        place.file("s.json", content),
        "Hello",
    )


def with_template(content: str) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: (
        *("run", "--json", "-m", place.model, "--no-tools", "--max-tokens", 2),
        *("--template", place.file("t.jinja", content), "Hello"),
    )


def with_catalogue(content: str | bytes, *words: object) -> Callable[[Place], tuple[object, ...]]:
    def make(place: Place) -> tuple[object, ...]:
        place.file("config/models.toml", content)
        return words

    return make


def pulling(**changes: Any) -> Callable[[Place], tuple[object, ...]]:
    def make(place: Place) -> tuple[object, ...]:
        place.catalogue(**changes)
        return ("models", "pull", "mine")

    return make


def calling(name: str, arguments: str = '{"x": 1}') -> Callable[[Place], tuple[object, ...]]:
    return lambda place: ("tools", "call", name, arguments, "--tools", place.tools)


def loading(content: bytes) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: (
        "chat",
        "-m",
        place.model,
        "--load",
        place.file("bad.chat", content),
        "--prompt",
        "Hello",
    )


def damaged_chat(place: Place) -> tuple[object, ...]:
    path = place.saved_chat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return ("chat", "-m", place.model, "--load", path, "--prompt", "Hello")


def others_chat(place: Place) -> tuple[object, ...]:
    return ("chat", "-m", place.tiny("qwen3"), "--load", place.saved_chat(), "--prompt", "Hello")


def cut_model(share: float) -> Callable[[Place], tuple[object, ...]]:
    def make(place: Place) -> tuple[object, ...]:
        data = place.model.read_bytes()
        return ("run", "--json", "-m", place.file("cut.gguf", data[: int(len(data) * share)]), "Hello")

    return make


def lost_part(place: Place) -> tuple[object, ...]:
    first = place.tiny("llama", split_max_tensors=8)
    copy = place.tmp / first.name
    shutil.copy(first, copy)
    return ("run", "--json", "-m", copy, "Hello")


def strange_architecture(place: Place) -> tuple[object, ...]:
    data = place.model.read_bytes().replace(b"llama", b"lhama")
    return ("run", "--json", "-m", place.file("strange.gguf", data), "Hello")


def closed_port(place: Place) -> tuple[object, ...]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place.catalogue(sources=f'[{{ kind = "url", url = "http://127.0.0.1:{port}/mine.gguf" }}]')
    return ("models", "pull", "mine")


def store_in_a_file(place: Place) -> tuple[object, ...]:
    place.catalogue()
    place.file("home", "not a folder")
    return ("models", "pull", "mine")


def broken_trust(place: Place) -> tuple[object, ...]:
    place.file("config/trusted.json", "{")
    return ("trust", "--list")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
GREEDY_FIRST = "greedy | top_k(40)"

CASES = [
    # models
    Case("no such file", fixed("run", "-m", "./none.gguf", "Hello"), "Check the path"),
    Case("no such name", fixed("run", "-m", "smolm2-135m", "Hello"), "smollm2-135m"),
    Case("model not fetched", fixed("run", "Hello"), "edgellm models pull smollm2-135m"),
    Case("folder as model", lambda place: ("run", "-m", place.tmp, "Hello"), "no .gguf file"),
    Case("empty model", as_model(b""), "edgellm models"),
    Case("text as model", as_model("hello " * 1000), ""),
    Case("model cut in its header", cut_model(0.002), ""),
    Case("model cut in its tensors", cut_model(0.6), ""),
    Case("impossible GGUF version", as_model(b"GGUF" + (77).to_bytes(4, "little") + bytes(64)), ""),
    Case(
        "huge counts in a header",
        as_model(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + bytes(64)),
        "",
    ),
    Case("a part of the model is missing", lost_part, ""),
    Case("unknown architecture", strange_architecture, ""),
    Case("empty --model", fixed("run", "-m", "", "Hello"), "leave the option out", code=2),
    Case("inspect nothing", fixed("inspect", "./none.gguf"), "Check the path"),
    Case("inspect two models", fixed("inspect", "a", "-m", "b"), "Leave MODEL or --model out", code=2),
    Case("tokenize nothing", fixed("tokenize"), "pipe one into it", code=2),
    # catalogue and store
    Case("catalogue is no TOML", with_catalogue("[models\n", "models", "list"), "Correct that line"),
    Case("catalogue is no text", with_catalogue(b"\xff\xfe", "models", "list"), "Correct or remove the file"),
    Case("unknown key in the catalogue", pulling(quant="Q4"), "models.toml"),
    Case("broken catalogue stops a run, too", with_catalogue("x", "run", "Hello"), "Correct that line"),
    Case(
        "unknown default model", with_catalogue('default = "nowhere"\n', "run", "Hello"), "Correct `default`"
    ),
    Case("wrong hash", pulling(sha256="0" * 64), ""),
    Case("wrong size", pulling(size_bytes=7), ""),
    Case("licence not accepted", pulling(needs_acceptance="true"), "--accept-licence"),
    Case("source file is gone", pulling(sources='[{ kind = "path", path = "/nowhere.gguf" }]'), ""),
    Case("nobody listens at the source", closed_port, ""),
    Case("store cannot be a folder", store_in_a_file, "EDGELLM_HOME"),
    Case("pull an unknown model", fixed("models", "pull", "nowhere"), "edgellm models list"),
    Case("remove an unknown model", fixed("models", "remove", "nowhere"), "edgellm models list"),
    Case("remove a path", fixed("models", "remove", "../../etc"), "edgellm models list"),
    Case("verify an unknown model", fixed("models", "verify", "nowhere"), "edgellm models list"),
    Case("verify with an empty store", fixed("models", "verify"), "edgellm models pull"),
    Case("path of an unknown model", fixed("models", "path", "nowhere"), "edgellm models list"),
    # command line
    Case("unknown command", fixed("rnu", "Hello"), "Did you mean 'run'?", code=2),
    Case("unknown option", fixed("run", "--sede", "1", "Hello"), "edgellm run --help", code=2),
    Case("abbreviated option", fixed("run", "--max", "1", "Hello"), "edgellm run --help", code=2),
    Case("no subcommand", fixed("models"), "edgellm models --help", code=2),
    Case("unknown subcommand", fixed("models", "lits"), "list", code=2),
    Case("seed is no number", fixed("run", "--seed", "x", "Hello"), "whole number", code=2),
    Case("no tokens at all", fixed("run", "--max-tokens", "0", "Hello"), "1 or more", code=2),
    Case("negative context", fixed("run", "--ctx", "-5", "Hello"), "from 1 to 2147483647", code=2),
    Case("no threads", fixed("run", "--threads", "0", "Hello"), "from 1 to", code=2),
    Case(
        "gpu layers in words", fixed("run", "--gpu-layers", "many", "Hello"), "0 or more, all or auto", code=2
    ),
    Case("unknown KV type", on_model("--kv-type", "q9_9"), "q8_0"),
    Case("KV type that does not fit", on_model("--kv-type", "q8_0"), "Use --kv-type f16"),
    Case("a draft without a draft model", on_model("--speculate", "draft"), "with --draft-model NAME"),
    Case("a context of one token", on_model("--ctx", 1, "--no-tools", "Q" * 500), "larger --ctx"),
    # prompts
    Case("no prompt and empty stdin", fixed("run"), "pipe a text into it", code=2),
    Case("blank prompt", fixed("run", "  \n"), "pipe a text into it", code=2),
    Case("blank chat prompt", fixed("chat", "--prompt", " "), "leave it out", code=2),
    Case("stdin is no text", fixed("run", "Hello"), "iconv", stdin=b"\xff\xfe\x00"),
    Case("prompt is no text", fixed("run", "caf\udce9"), "iconv", code=2),
    Case("chat prompt is no text", fixed("chat", "--prompt", "caf\udce9"), "iconv", code=2),
    Case("system turn is no text", fixed("run", "--system", "caf\udce9", "Hello"), "iconv", code=2),
    Case("text of tokens is no text", fixed("tokenize", "caf\udce9"), "iconv", code=2),
    Case("prompt longer than the context", on_model("--ctx", 64, "--no-tools", "Q" * 500), "larger --ctx"),
    # sampler
    Case("empty sampler", on_model("--sampler", ""), "top_k(40)"),
    Case("unknown stage", on_model("--sampler", "top_q(3)"), "Did you mean"),
    Case("sampler syntax", on_model("--sampler", "top_k(40"), "column"),
    Case("sampler value out of range", on_model("--sampler", "top_p(7)"), ""),
    Case("chooser is not last", on_model("--sampler", GREEDY_FIRST), "Only the last stage"),
    Case("show an unknown stage", fixed("samplers", "show", "minp"), "Did you mean 'min_p'?"),
    # schema
    Case("schema is missing", on_model("--schema", "/nowhere.json"), "Check the path"),
    Case("schema is no JSON", with_schema("{"), "Correct that place"),
    Case("schema is a list", with_schema("[]"), '"type": "object"'),
    Case("schema of an unknown type", with_schema('{"type": "objekt"}'), "schema"),
    Case("schema beside tools", on_model("--schema", "s.json", "--tool", "clock"), "Leave --tool", code=2),
    # template and format
    Case("unknown template", on_model("--template", "nope"), "chatml"),
    Case("template does not parse", with_template("{% for %}"), "--template"),
    Case("template refuses", with_template("{{ raise_exception('never') }}"), "--template"),
    Case("template without Jinja", with_template("hello"), "Jinja"),
    Case("template never ends", with_template(LOOP), "--template"),
    Case(
        "model without a template",
        lambda place: ("run", "--json", "-m", place.tiny("llama", chat_template=None), "--no-tools", "Hello"),
        "--template chatml",
    ),
    Case("unknown format", on_model("--format", "nope"), "hermes"),
    # tools
    Case("unknown tool", on_model("--tool", "calcualtor"), "Did you mean 'calculator'?"),
    Case("tools path is missing", on_model("--tools", "/nowhere.py"), "Name a .py file"),
    Case("tools file does not parse", with_tools("def broken(:\n"), "Correct the file"),
    Case("tools file raises", with_tools("1 / 0\n"), "Correct the file"),
    Case("tools file wants a module", with_tools("import nowhere_to_be_found\n"), "Install what provides"),
    Case("tools file leaves", with_tools("import sys\nsys.exit(0)\n"), "must not exit"),
    Case("tools file without a tool", with_tools("x = 1\n"), "@edgellm.tool"),
    Case(
        "tool without type hints", with_tools("import edgellm\n@edgellm.tool\ndef f(x):\n    '''F.'''\n"), ""
    ),
    Case(
        "two tools of one name",
        with_tools("import edgellm\n@edgellm.tool\ndef clock(x: int) -> int:\n    '''C.'''\n    return x\n"),
        "another name",
    ),
    Case("--no-tools beside --tool", on_model("--no-tools", "--tool", "clock"), "Leave one of them out"),
    Case("unknown tool choice", on_model("--tool-choice", "clok"), "calculator, clock"),
    Case("a tool required of none", on_model("--no-tools", "--tool-choice", "required"), "--tool"),
    Case("allow what is not offered", on_model("--allow", "shell"), "calculator, clock"),
    Case("allow what always asks", on_model("--tool", "shell", "--allow", "shell"), "edgellm tools call"),
    Case("setting without a value", on_model("--set", "files.root"), "--set files.root=./notes"),
    Case("call an unknown tool", fixed("tools", "call", "calcualtor", "{}"), "Did you mean 'calculator'?"),
    Case(
        "argument misspelt",
        fixed("tools", "call", "clock", '{"timezon": "Europe/Oslo"}'),
        "did you mean 'timezone'? Correct the arguments",
    ),
    Case("arguments are no JSON", calling("raises", "{x}"), "Write, for example"),
    Case("arguments are a list", calling("raises", "[1]"), "Write, for example"),
    Case("arguments do not fit", calling("raises", '{"y": 1}'), "'x'"),
    Case("tool raises", calling("raises"), "edgellm tools show raises"),
    Case("tool refuses", calling("refuses"), "Try tomorrow"),
    Case("tool hangs", calling("hangs"), "timed out"),
    Case("tool leaves", calling("leaves"), "edgellm tools show leaves"),
    Case("tool asks and nobody is there", calling("asks"), "--allow asks"),
    Case("tool is denied", calling("never"), "Change that in"),
    # saved chats
    Case("no such chat", fixed("chat", "--load", "/nowhere.chat", "--prompt", "Hello"), "Check the path"),
    Case("not a chat", loading(b"hello"), "written by save"),
    Case("damaged chat", damaged_chat, "another copy"),
    Case("another model's chat", others_chat, ""),
    # parse, quantize, trust
    Case("parse without a format", fixed("parse"), "--format NAME", code=2),
    Case("parse in an unknown format", fixed("parse", "--format", "nope"), "hermes"),
    Case(
        "parse with tools that are none",
        lambda place: ("parse", "--format", "hermes", "--tools", place.file("t.json", '[{"nope": 1}]')),
        "name",
    ),
    Case(
        "parse in chunks of nothing",
        fixed("parse", "--format", "hermes", "--chunk", "0"),
        "1 or more",
        code=2,
    ),
    Case(
        "quantize to an unknown type",
        lambda place: ("quantize", place.model, place.tmp / "o.gguf", "Q9"),
        "Q4_K_M",
    ),
    Case(
        "quantize nothing",
        lambda place: ("quantize", "./none.gguf", place.tmp / "o.gguf", "Q8_0"),
        "Check the path",
    ),
    Case(
        "quantize over a file", lambda place: ("quantize", place.model, place.tools, "Q8_0"), "another name"
    ),
    Case("trust nothing", fixed("trust"), "edgellm trust DIR", code=2),
    Case("trust a folder without .edgellm", lambda place: ("trust", place.tmp), "Make it"),
    Case("forget what was never trusted", lambda place: ("trust", "--forget", place.tmp), "--list"),
    Case("broken list of trusted folders", broken_trust, "delete it"),
]


def assert_told(outcome: Outcome, remedy: str) -> None:
    lines = outcome.err.splitlines()
    assert 1 <= outcome.code <= 123, outcome
    assert 1 <= len(lines) <= 8, outcome.err
    assert lines[0].startswith("edgellm: "), outcome.err
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err
    assert "\x1b" not in outcome.err
    assert remedy in outcome.err, outcome.err
    # A remedy is a sentence of its own behind what happened.
    assert len(outcome.err.split(". ")) > 1 or "?" in outcome.err or "\n" in outcome.err.strip(), outcome.err


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case: Case, place: Place) -> None:
    words = case.words(place)
    before = {path: path.read_bytes() for path in place.tmp.rglob("*") if path.is_file()}
    outcome = cli(*words, stdin=case.stdin)
    assert_told(outcome, case.remedy)
    if case.code:
        assert outcome.code == case.code
    assert outcome.out == ""
    for path, content in before.items():
        assert path.read_bytes() == content, f"{path} was changed"
    models = place.home / "models"
    assert not (models.is_dir() and list(models.iterdir())), "something half done lies in the store"


def test_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


# -- what needs more than a command line ---------------------------------------------------------------------


@pytest.fixture
def served_model(place: Place) -> Iterator[None]:
    """The model `mine` comes from a server."""
    with serving(Served(files={"mine.gguf": place.model.read_bytes()})) as served:
        place.catalogue(sources=f'[{{ kind = "url", url = "{served.url("mine.gguf")}" }}]')
        yield


@pytest.mark.usefixtures("served_model")
def test_a_disk_that_is_too_small_is_said_before_the_download(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(_folder: object) -> SimpleNamespace:
        return SimpleNamespace(total=10**9, used=10**9, free=10**6)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", nearly_full)
        assert_told(cli("models", "pull", "mine"), "EDGELLM_HOME")
    assert not (place.home / "models").exists()
    assert cli("models", "pull", "mine").code == 0


@pytest.mark.usefixtures("served_model")
def test_a_disk_that_fills_up_while_a_model_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edgellm.models.files.write_block", full)
        assert_told(cli("models", "pull", "mine"), "Free some space")
    assert not (place.home / "models").exists()
    assert cli("models", "pull", "mine").code == 0


def test_a_disk_that_fills_up_while_a_chat_is_saved_keeps_the_old_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.saved_chat()
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    outcome = cli(
        "chat", "-m", place.model, "--no-tools", "--max-tokens", 2, stdin=f"Hello\n/save {path}\n/stats\n"
    )
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "2 messages" in outcome.out
    assert path.read_bytes() == before
    assert not list(path.parent.glob(f".{path.name}*"))


def test_a_grant_that_cannot_be_kept_counts_for_this_chat(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgellm.cli.approval import Grants

    place.file("config", "a file where the folder should be")
    Grants().add("tool", "/some/file.py")
    assert "is allowed for this chat only" in capsys.readouterr().err
    assert not Grants().holds("tool", "/some/file.py")


def test_a_call_with_megabytes_is_cut_and_says_so(place: Place) -> None:
    outcome = cli("tools", "call", "floods", '{"x": 1}', "--tools", place.tools, "--json")
    assert outcome.code == 0
    record = json.loads(outcome.out)
    assert record["is_truncated"] is True
    assert len(record["result"]) < 100_000


def test_what_a_tool_prints_stays_off_stdout(place: Place) -> None:
    outcome = cli("tools", "call", "chatters", '{"x": 1}', "--tools", place.tools)
    assert (outcome.code, outcome.out) == (0, "quiet\n")


@pytest.mark.parametrize("name", ["raises", "hangs", "leaves", "floods", "chatters"])
def test_a_turn_outlives_its_tools(place: Place, name: str) -> None:
    outcome = cli(
        *(
            "run",
            "--json",
            "-m",
            place.tiny("llama", n_ctx=8192),
            "--ctx",
            8192,
            "--seed",
            1,
            "--max-tokens",
            200,
        ),
        *("--tools", place.tools, "--tool", name, "--tool-choice", "required", "Hello"),
    )
    assert outcome.code == 0, outcome.err
    kinds = [event["type"] for event in outcome.events]
    assert kinds[-1] == "turn_finished"
    if "tool_finished" in kinds:
        assert outcome.of("tool_finished")[0]["ok"] is (name in ("floods", "chatters"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_context_that_does_not_fit_into_memory(place: Place) -> None:
    import resource

    done = subprocess.run(
        [*MAIN, "run", "-m", str(place.model), "--ctx", "100000000", "--no-tools", "Hello"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
    )
    assert_told(Outcome(done.returncode, done.stdout, done.stderr), "Ask for a smaller --ctx, close")
    assert done.stdout == ""


def test_a_working_folder_that_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = place.tmp / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert_told(cli("models", "list"), "Change to another one")


def test_a_log_that_cannot_be_written_does_not_hide_the_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edgellm.offline.catalog", broken)
    place.file("home", "not a folder")
    outcome = cli("models", "list")
    assert outcome.code == 70
    assert "no log could be written" in outcome.err
