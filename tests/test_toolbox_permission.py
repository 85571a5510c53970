"""Permissions: declaration, settings that only tighten, the user's answers."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest

from edgellm.errors import ConfigError
from edgellm.toolbox.permission import Approval, Permissions
from edgellm.toolbox.tool import Tool, tool
from edgellm.types import Permission, ToolCall, ToolSpec

LEVELS = get_args(Permission)


def made(permission: Permission = "ask", **options: Any) -> Tool[..., Any]:
    @tool(permission=permission, **options)
    def blink(times: int = 1) -> None:
        """Blinks."""

    return blink


def call(**arguments: Any) -> ToolCall:
    return ToolCall("7", "blink", arguments, "raw")


class Asker:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Approval) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[ToolCall, str]] = []

    def __call__(self, call: ToolCall, spec: ToolSpec, reason: str) -> Approval:
        self.asked.append((call, reason))
        return self.answers.pop(0)


@pytest.mark.parametrize(("declared", "star", "own"), list(itertools.product(LEVELS, LEVELS, LEVELS)))
def test_settings_only_tighten(declared: Permission, star: Permission, own: Permission) -> None:
    required = Permissions({"*": star, "blink": own}).required(made(declared).spec)
    assert LEVELS.index(required) == max(map(LEVELS.index, (declared, star, own)))


def test_nobody_to_ask_is_deny_at_once_with_words() -> None:
    permissions = Permissions()
    decision = permissions.decide(made(), call())
    assert not permissions.must_ask(made().spec)
    assert decision.refusal is not None
    assert not decision.refusal.is_ok
    assert (decision.by, decision.refusal.text) == (
        "nobody",
        "Not run: blink needs the user's permission, and nobody is there to ask. "
        "Do not call it again; answer without it.",
    )


def test_auto_is_never_asked() -> None:
    asker = Asker()
    assert Permissions(approve=asker).decide(made("auto"), call()).by == "auto"
    assert asker.asked == []


def test_deny_is_never_asked() -> None:
    asker = Asker()
    decision = Permissions({"blink": "deny"}, approve=asker).decide(made("auto"), call())
    assert (decision.is_allowed, decision.by) == (False, "settings")


@pytest.mark.parametrize(
    ("answer", "is_allowed", "asked"),
    [("once", True, 2), ("session", True, 1), ("always", True, 1), ("deny", False, 2)],
)
def test_how_long_an_answer_lasts(answer: Any, is_allowed: bool, asked: int) -> None:
    asker = Asker(Approval(answer), Approval(answer))
    remembered: list[str] = []
    permissions = Permissions(approve=asker, remember=lambda spec: remembered.append(spec.name))
    decisions = [permissions.decide(made(), call()) for _ in range(2)]
    assert [decision.is_allowed for decision in decisions] == [is_allowed] * 2
    assert len(asker.asked) == asked
    assert remembered == (["blink"] if answer == "always" else [])


def test_grants_can_be_given_and_taken_back() -> None:
    permissions = Permissions(granted=["blink"])
    assert permissions.decide(made(), call()).by == "grant"
    permissions.forget("blink")
    assert permissions.decide(made(), call()).by == "nobody"


def test_grant_does_not_lift_a_deny() -> None:
    assert not Permissions({"blink": "deny"}, granted=["blink"]).decide(made(), call()).is_allowed


def test_tool_that_is_not_grantable_is_asked_every_time() -> None:
    asker = Asker(Approval("always"), Approval("session"), Approval("once"))
    permissions = Permissions(approve=asker, granted=["blink"])
    for _ in range(3):
        assert permissions.decide(made(is_grantable=False), call()).is_allowed
    assert len(asker.asked) == 3


def test_edited_arguments_are_used_and_nothing_else_of_the_edit() -> None:
    edit = ToolCall("0", "shell", {"times": 2})
    decision = Permissions(approve=Asker(Approval("once", edit))).decide(made(), call(times=9))
    assert decision.call == ToolCall("7", "blink", {"times": 2}, "raw")


def test_edited_arguments_are_checked_and_asked_for_again() -> None:
    asker = Asker(Approval("once", call(times="many")), Approval("session", call(times=3)))
    decision = Permissions(approve=asker).decide(made(), call(times=1))
    assert decision.call.arguments == {"times": 3}
    assert "edited arguments do not fit" in asker.asked[1][1]


def test_endless_wrong_edits_are_a_no() -> None:
    asker = Asker(*[Approval("always", call(times=f"x{i}")) for i in range(9)])
    permissions = Permissions(approve=asker)
    assert not permissions.decide(made(), call()).is_allowed
    assert permissions.must_ask(made().spec)


def test_reason_of_a_no_reaches_the_model() -> None:
    decision = Permissions(approve=Asker(Approval("deny", reason="too bright"))).decide(made(), call())
    assert decision.refusal is not None
    assert "They said: too bright" in decision.refusal.text


def test_reason_tells_who_wants_to_ask() -> None:
    permissions = Permissions({"*": "ask"})
    assert permissions.reason(made("ask").spec) == "blink asks before it runs."
    assert permissions.reason(made("auto").spec) == "Your settings ask before blink runs."


def test_unknown_permission_is_told() -> None:
    bad: Callable[[], Any] = lambda: Permissions({"blink": "maybe"})  # noqa: E731  # pyright: ignore
    with pytest.raises(ConfigError, match="'maybe'"):
        bad()


def test_a_word_alone_is_an_answer() -> None:
    assert Permissions(approve=lambda *_: "once").decide(made(), call()).is_allowed
    assert not Permissions(approve=lambda *_: "deny").decide(made(), call()).is_allowed


@pytest.mark.parametrize(
    "answer", [True, None, "no", "yes", "", Approval("no"), Approval("once", call={"times": 2})]
)
def test_what_is_no_answer_runs_nothing(answer: Any) -> None:
    permissions = Permissions(approve=lambda *_: answer)
    with pytest.raises(ConfigError, match="approve answered"):
        permissions.decide(made(), call())
