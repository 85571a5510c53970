"""What the first line of the screen says just now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm_tui.pages import PAGES
from edgellm_tui.status import Status, state_words

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp


def status_of(app: EdgeApp) -> Status:
    """The model, what the current branch is doing, its context, and what is wrong."""
    talk, strand, page = app.talk, app.talk.current, app.page
    runtime = talk.runtime
    used = app.used_tokens
    state = state_words(strand, app.worker.clock() - strand.prefill_started)
    if talk.is_loading:
        state = f"LOADING {100 * talk.load_fraction:.0f} %"
    elif runtime is None:
        state = "NO MODEL"
    elif not talk.is_ready:
        state = "OPENING" if talk.is_opening else "NO CHAT"
    elif talk.worker.is_tidying:
        state = "SUMMING UP"
    app.accounts.look(used)
    return Status(
        runtime.name if runtime is not None else talk.model or app.choice.wanted,
        state,
        used,
        runtime.n_ctx if runtime else 0,
        strand.tok_s,
        PAGES[page.id].title.upper() if page is not None and page.id in PAGES else "",
        app.accounts.shares(used),
        [worry.word for worry in app.accounts.worries(used)],
    )
