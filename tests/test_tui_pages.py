"""Help, tokenizer, log, tools, settings and meters pages, and the line of keys."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.footer import all_keys, fitted, key_word, keys_words
from edgellm_tui.log_page import LogPage
from edgellm_tui.machine import Machine, read_machine
from edgellm_tui.meters import Share, context_bar, outlook_lines, shares_text, warnings_of
from edgellm_tui.meters_page import MetersPage
from edgellm_tui.pages import PAGES
from edgellm_tui.rows import Rows
from edgellm_tui.settings import Settings, load_settings, save_settings, settings_path, usable_settings
from edgellm_tui.settings_page import SettingsPage, key_problem, parsed
from edgellm_tui.status import Status, status_line
from edgellm_tui.tokenizer_page import TokenizerPage, merge_text, piece_text
from edgellm_tui.tools_page import ToolsPage, example_arguments
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input, TextArea
from tui_harness import LARGE, STILL, run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Gate, words

import edgellm


async def fill(pilot: Pilot[int], text: str) -> None:
    """Writes a text into the open field and sends it."""
    entry = pilot.app.focused
    assert isinstance(entry, Input)
    entry.value = text
    await pilot.press("enter")
    await pilot.pause()


@pytest.mark.parametrize("name", ["help", "tokenizer", "sampler", "tools", "settings", "meters", "log"])
def test_every_page_opens_by_its_key_and_esc_goes_back(name: str) -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press(PAGES[name].key)
        await wait_until(pilot, lambda: app.page is not None and app.page.id == name)
        await pilot.pause()
        assert PAGES[name].title.upper() in screen_text(app).split("\n")[0]
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.page is None)
        assert app.focused is app.prompt

    run(play)


@pytest.mark.parametrize("where", ["show", "frame"])
def test_a_page_that_fails_is_a_message_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(_page: object) -> None:
        raise RuntimeError("no figures today")

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        monkeypatch.setattr(MetersPage, where, fail)
        await pilot.press("f10")
        await shown(pilot, "no figures today")
        assert app.page is None and app.focused is app.prompt
        await said(pilot, "Go on.")
        assert "It does." in screen_text(app)

    run(play, [words("It does.")])


# -- the line of keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_line_of_keys_fits_and_ends_with_help_and_quit(width: int) -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        line = screen_text(app).rstrip("\n").split("\n")[-1]
        assert len(line) <= width
        assert line.endswith("F1 help  ^q quit")

    run(play, size=(width, 24))


def test_of_keys_that_do_not_fit_the_first_stay() -> None:
    keys = [("a", "one"), ("b", "two"), ("c", "three")]
    assert fitted(keys, [("q", "quit")], 40) == " a one  b two  c three  q quit"
    assert fitted(keys, [("q", "quit")], 22) == " a one  b two  q quit"
    assert fitted(keys, [("q", "quit")], 10) == " q quit"


def test_keys_are_written_as_people_write_them() -> None:
    assert key_word("ctrl+q", is_short=True) == "^q"
    assert key_word("f10") == "F10"
    assert keys_words("left_square_bracket,alt+up") == "[ or alt+up"


def test_every_binding_can_be_changed_and_ids_are_unique() -> None:
    everything = [info for part in all_keys(EdgeApp).values() for info in part]
    ids = [info.id for info in everything if info.id]
    assert len(ids) == len(set(ids))
    assert not [info for info in everything if not info.id]


def test_no_key_is_one_that_terminals_take_for_another() -> None:
    for info in (info for part in all_keys(EdgeApp).values() for info in part):
        keys = {key.strip() for key in info.keys.split(",")}
        assert not keys & {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+left_square_bracket"}, info


def test_bindings_of_pages_are_known_to_help() -> None:
    listed = {info.id for part in all_keys(EdgeApp).values() for info in part}
    for page in (TokenizerPage, ToolsPage, SettingsPage, LogPage, Rows):
        assert {binding.id for binding in page.BINDINGS if isinstance(binding, Binding)} <= listed


# -- help ---------------------------------------------------------------------------------------------------------


def test_help_begins_with_the_part_that_had_the_focus() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f1")
        await shown(pilot, "where you were")
        assert "enter               send  [prompt.send]" in screen_text(app)

    run(play)


def test_help_shows_keys_as_they_were_changed() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f1")
        await shown(pilot, "ctrl+k")
        assert "(changed)" in screen_text(app)

    run(play, settings=Settings(keys={"app.copy": "ctrl+k"}), size=LARGE)


# -- tokenizer ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_takes_a_token_apart(tiny_model: Any) -> None:
    class Loading:
        def load(self, _model: str) -> Any:
            return edgellm.load(tiny_model("llama"))

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f4")
        await wait_until(pilot, lambda: isinstance(app.page, TokenizerPage))
        page = app.query_one(TokenizerPage)
        page.query_one(TextArea).text = "<|im_end|> the"
        await pilot.press("ctrl+t", "tab", "down")
        await shown(pilot, "how token")
        assert [row.kind for row in page.found] == ["control", "normal"]
        assert "merge" in screen_text(app)
        await pilot.press("up")
        await shown(pilot, "A control token")
        await pilot.press("c")

    run(play, runtime=Loading())


def test_pieces_are_shown_with_their_spaces_and_bytes() -> None:
    assert piece_text(b" the") == "·the"
    assert piece_text(b"\n") == "\\n"
    assert piece_text(b"\xe6\x9d") == "\\e6\\9d"
    assert piece_text(b"\x1b[31m") == "<1b>[31m"


def test_merges_are_told_step_by_step() -> None:
    text = merge_text(edgellm.Merges({(b"t", b"h"): 3, (b"th", b"e"): 9}), b"the")
    assert text.split("\n")[1].split() == ["1.", "merge", "3", "t", "+", "h", "th", "e"]
    assert "as a whole" in merge_text(edgellm.Merges({}), b"xy")


# -- log ----------------------------------------------------------------------------------------------------------


def test_the_log_has_what_the_app_logged_with_control_characters_named() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        logging.getLogger("edgellm_tui").error("a \x1b[31m failure")
        logging.getLogger("edgellm").info("a fact")
        await pilot.press("ctrl+l")
        await shown(pilot, "ERROR a <1b>[31m failure")
        assert "a fact" in screen_text(app)
        await pilot.press("v")
        await shown(pilot, "warnings and errors")
        assert "a fact" not in screen_text(app)
        await pilot.press("v", "r", "c")
        await shown(pilot, "copied")

    run(play)


# -- tools --------------------------------------------------------------------------------------------------------


def test_a_tool_is_called_by_hand_and_what_is_wrong_is_said() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f8")
        await shown(pilot, "calculator")
        page = app.query_one(ToolsPage)
        await pilot.press("enter")
        await fill(pilot, "{no json")
        await shown(pilot, "That is no JSON")
        await fill(pilot, '{"wrong": 1}')
        await wait_until(pilot, lambda: page.field.is_open)
        await fill(pilot, '{"expression": "23 * 17 + 4"}')
        await shown(pilot, "395")
        assert "calculator: OK" in screen_text(app)

    run(play)


def test_lines_of_a_list_that_do_not_fit_end_in_dots() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f8")
        await shown(pilot, "] calculator")
        (line,) = [line for line in screen_text(app).splitlines() if "] calculator" in line]
        assert line.endswith("..") and len(line) <= 50

    run(play, size=(50, 24))


def test_a_tool_is_offered_in_new_chats_or_not() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f8")
        await shown(pilot, "[x] calculator")
        await pilot.press("space")
        await shown(pilot, "[ ] calculator")
        assert load_settings().tools == ["clock"]
        await pilot.press("space", "r")
        await shown(pilot, "tools, 0 left out.")
        assert sorted(load_settings().tools) == sorted(Settings().tools)

    run(play)


def test_tools_that_were_left_out_say_why() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        app.talk.failures = ("broken.py: no module named nowhere",)
        await pilot.press("f8")
        await shown(pilot, "1 left out")
        await pilot.press("end")
        await shown(pilot, "why it was left out")

    run(play)


def test_arguments_to_begin_with_are_the_required_ones() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {}},
        "required": ["b", "a"],
    }
    assert example_arguments(schema) == '{"b": "", "a": 0}'


# -- settings -----------------------------------------------------------------------------------------------------


def test_a_theme_is_shown_at_once_and_kept() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f9")
        await shown(pilot, "settings, kept in")
        before = app.theme
        await pilot.press("right")
        await wait_until(pilot, lambda: app.theme != before)
        assert load_settings().theme == app.theme
        await pilot.press("d")
        await wait_until(pilot, lambda: load_settings().theme == "")

    run(play)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("trace_rows", "ten", "whole number"),
        ("trace_rows", "-1", "below 0"),
        ("redraw_share", "7", "no share"),
        ("sampler", "top_k(", ""),
        ("theme", "pink", "no theme"),
        ("glyphs", "emoji", "no glyphs"),
        ("context_policy", "forget", "no policy"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_place(name: str, text: str, problem: str) -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f9")
        await shown(pilot, "settings, kept in")
        page = app.query_one(SettingsPage)
        page.rows.choose([entry.name for entry in page._entries].index(name))
        before = getattr(app.settings, name)
        await pilot.press("enter")
        await fill(pilot, text)
        await shown(pilot, "Again:")
        assert problem in screen_text(app)
        assert getattr(app.settings, name) == before
        await pilot.press("escape")
        assert isinstance(app.page, SettingsPage) and not page.field.is_open

    run(play, size=(200, 24))


def test_a_key_is_changed_and_works_at_once() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f9")
        await shown(pilot, "settings, kept in")
        page = app.query_one(SettingsPage)
        page.rows.choose([entry.name for entry in page._entries].index("app.log"))
        await pilot.press("enter")
        await fill(pilot, "f2")
        await shown(pilot, "taken by app.chat")
        await fill(pilot, "f12")
        await shown(pilot, "F12")
        assert load_settings().keys == {"app.log": "f12"}
        await pilot.press("f12")
        await wait_until(pilot, lambda: isinstance(app.page, LogPage))

    run(play)


def test_yes_and_no_change_places_and_a_text_is_kept() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f9")
        await shown(pilot, "settings, kept in")
        page = app.query_one(SettingsPage)
        page.rows.choose([entry.name for entry in page._entries].index("show_distribution"))
        await pilot.press("enter")
        await wait_until(pilot, lambda: load_settings().show_distribution is False)
        page.rows.choose([entry.name for entry in page._entries].index("system"))
        await pilot.press("enter")
        await fill(pilot, "Be brief.")
        assert load_settings().system == "Be brief."

    run(play)


def test_values_are_read_as_their_type() -> None:
    assert parsed("tools", "clock, shell ,") == ["clock", "shell"]
    assert parsed("redraw_share", "0.2") == 0.2
    assert parsed("trace_rows", " 5 ") == 5
    with pytest.raises(ValueError, match="whole number"):
        parsed("trace_rows", "1.5")


def test_quitting_keeps_a_key() -> None:
    assert key_problem("app.quit", "", [], Settings()) == "Quitting needs a key."


# -- meters -------------------------------------------------------------------------------------------------------


def test_the_bar_has_a_letter_for_everyone_and_never_runs_over() -> None:
    shares = [Share("S", "system", 1), Share("U", "user", 50), Share("A", "answers", 49)]
    assert context_bar(shares, 200, 20) == "SUUUUUAAAAA........."
    assert context_bar(shares, 100, 10) == "SUUUUUAAAA"
    assert shares_text(shares, 200) == "S system 1  U user 50  A answers 49  . free 100"


def turn(first: int, tokens: int) -> edgellm.ContextTurn:
    return edgellm.ContextTurn(first, (), tokens)


def test_what_gives_way_next_is_said_with_its_cost() -> None:
    turns = (turn(0, 40), turn(2, 60), turn(4, 100))
    told = edgellm.ContextOutlook("stop", 4096, turns)
    edit = "an edit of the oldest turn computes the 160 tokens behind it again: 3.2 s"
    assert outlook_lines(told, 50.0) == [
        "nothing gives way: at 4096 tokens the answer ends (context_policy, F9)",
        edit,
    ]
    told = edgellm.ContextOutlook("evict", 3584, turns, (0, 1), (), False, 100, 100, True, 0.0)
    assert outlook_lines(told, 50.0)[:2] == [
        "next to go, at 3584 tokens (evict): the oldest 2 turns, 100 tokens",
        "the memory behind them is moved up: nothing is computed again",
    ]
    told = edgellm.ContextOutlook("drop-results", 3584, turns, (0,), (4,), False, 90, 160, False, 3.2)
    assert outlook_lines(told, None)[:2] == [
        "next to go, at 3584 tokens (drop-results): 1 old result and the oldest turn, 90 tokens",
        "the 160 tokens behind that are computed again: not measured yet",
    ]
    told = edgellm.ContextOutlook("summarize", 3584, turns, (0,), (), True, 40, 160, False, 3.2)
    assert outlook_lines(told, 50.0)[0].endswith("the oldest turn, 40 tokens, summed up first")
    assert len(outlook_lines(edgellm.ContextOutlook("evict", 3584, turns[:1]), 50.0)) == 1


@pytest.mark.parametrize("policy", ["stop", "evict", "summarize", "drop-results"])
def test_chats_get_the_context_policy_of_the_settings(policy: str) -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        assert app.talk.current.chat.options["context_policy"] == policy
        await said(pilot, "one")
        await said(pilot, "two")
        await pilot.press("f10")
        what = "nothing gives way" if policy == "stop" else f"tokens ({policy}): the oldest turn"
        await shown(pilot, what)

    run(play, [words("I"), words("II")], settings=Settings(glyphs="box", context_policy=policy))


def test_the_status_line_has_a_bar_where_there_is_room_and_says_what_is_wrong() -> None:
    shares = [Share("S", "system", 20), Share("U", "user", 40)]
    status = Status("little", "READY", 60, 100, 0.0, "", shares, ["throttled", "full"])
    assert status_line(status, 80).endswith(" READY  ctx 60/100 60%  ! throttled +1 ")
    quick = replace(status, tok_s=41.5, worries=())
    assert [status_line(quick, width).split()[-1] for width in (80, 30)] == ["tok/s", "60%"]
    assert status_line(status, 50).split() == ["edgellm", "little", "READY", "ctx", "60/100", "60%", "!"]
    assert status_line(status, 36).split() == ["little", "READY", "ctx", "60/100", "60%", "!"]
    wide = status_line(status, 110)
    assert wide.endswith(" READY  [SSSSUUUUUUUUU.........]  ctx 60/100 60%  ! throttled +1 ")
    assert (len(status_line(status, 80)), len(wide)) == (80, 110)


def test_the_bar_grows_with_the_turn_and_is_exact_behind_it() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await said(pilot, "one")
        await say(pilot, "two")
        await wait_until(pilot, gate.reached.is_set)
        await shown(pilot, "[UA-+")
        gate.open()
        await settled(pilot)
        assert "+" not in screen_text(app).split("\n")[0]
        await pilot.press("ctrl+n")
        await wait_until(pilot, lambda: not app.talk.current.blocks)
        assert "[" not in screen_text(app).split("\n")[0]

    run(play, [words("I"), [*words("so far"), gate]], size=LARGE)


def test_a_machine_that_is_held_back_says_so_in_every_page() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        assert "! throttled" in screen_text(app).split("\n")[0]
        await pilot.press("f10")
        await shown(pilot, "! the board holds back: under-voltage")

    run(play, machine=Machine(cores=4, throttled=("under-voltage",)))


def test_warnings_say_what_may_go_wrong() -> None:
    def told(machine: Machine = STILL, **changes: Any) -> str:
        options = {"kv_types": ("f16", "f16"), "tools": ("clock",), "threads": 2, "used": 10, "n_ctx": 100}
        return " | ".join(each.text for each in warnings_of(machine, **{**options, **changes}))

    assert told() == ""
    assert "KV cache is q4_0" in told(kv_types=("q4_0", "q4_0"))
    assert told(kv_types=("q4_0", "q4_0"), tools=()) == ""
    assert "under-voltage" in told(Machine(cores=4, throttled=("under-voltage",)))
    assert "clock is at 25 %" in told(Machine(cores=4, clock_hz=6 * 10**8, clock_most_hz=24 * 10**8))
    assert "contention" in told(Machine(cores=2, load=3.0))
    assert "threads" in told(Machine(cores=1))
    assert "95 % full" in told(used=95)


def test_the_machine_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    files = {
        "proc/self/status": "Name:\tpython\nVmRSS:\t  2048 kB\n",
        "proc/meminfo": "MemAvailable: 1024 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/temp": "71400\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = read_machine(tmp_path, cores=4, load=0.5)
    assert found == Machine(
        2048 * 1024,
        1024 * 1024,
        40 * 1024,
        4,
        0.5,
        600_000_000,
        1_500_000_000,
        71.4,
        ("under-voltage", "throttled"),
    )


def test_a_system_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    assert read_machine(tmp_path, cores=1, load=0.0) == Machine(cores=1, load=0.0)


def test_settings_behind_a_link_are_written_where_they_lie(tmp_path: Path) -> None:
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "mine.toml")
    save_settings(Settings(theme="nord"))
    assert path.is_symlink()
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == 'theme = "nord"\n'


def test_a_chat_begins_without_the_setting_that_cannot_be_used_and_says_which() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await shown(pilot, "The setting sampler cannot be used")
        await shown(pilot, "column 8")
        await said(pilot, "hello")
        assert "  hi there" in screen_text(app)

    settings = Settings(glyphs="box", sampler="mine", presets={"mine": "top_k(("})
    run(play, [words("hi there")], settings=settings)


def test_a_wrong_setting_leaves_the_others_as_they_are() -> None:
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('theme = "nord"\ntrace_rows = "many"\nfoo = 1\n[keys]\n"app.log" = "f12"\n')
    settings, wrong = usable_settings()
    assert settings.theme == "nord" and settings.keys == {"app.log": "f12"} and settings.trace_rows == 20
    assert ["trace_rows" in str(error) or "'foo'" in str(error) for error in wrong] == [True, True]
    settings.model = "little"
    save_settings(settings)
    text = path.read_text()
    assert 'theme = "nord"' in text and '"app.log" = "f12"' in text and "foo = 1" in text
    path.write_text("theme = ")
    settings, (error,) = usable_settings()
    assert settings == Settings() and "cannot be read" in str(error)
