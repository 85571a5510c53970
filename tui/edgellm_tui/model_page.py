"""The page of models: what the catalogue offers and what is here; fetch, load, delete. A new user sees it first."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding
from textual.widgets import Input, OptionList

import edgellm
from edgellm_tui.chooser import Chooser
from edgellm_tui.fetching import Fetching
from edgellm_tui.model_fit import available_bytes, fits, megabytes, plan_of, plan_words
from edgellm_tui.pages import PageView
from edgellm_tui.plain import one_line
from edgellm_tui.status import Line
from edgellm_tui.worker import Called

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textual.app import ComposeResult

    from edgellm import Plan

# The cursor rests on a model for so long before its plan is made.
_REST_S = 0.3


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model that can be chosen. `load` is what the app loads: a name or a path; `path` where it lies, if here."""

    load: str
    size_bytes: int
    is_here: bool
    licence: str = ""
    licence_url: str = ""
    needs_acceptance: bool = False
    description: str = ""
    source: str = ""
    is_default: bool = False
    is_file: bool = False


def model_rows() -> list[ModelRow]:
    """Models on this machine, those of the catalogue, and .gguf files of the working folder. Raises EdgeError."""
    catalogue = edgellm.catalog()
    stored = {model.name: model for model in edgellm.stored_models()}
    rows: list[ModelRow] = []
    for name, entry in catalogue.entries.items():
        here = stored.pop(name, None)
        rows.append(
            ModelRow(
                name,
                here.size_bytes if here is not None else entry.expected_bytes,
                here is not None,
                entry.licence,
                entry.licence_url,
                entry.needs_acceptance,
                entry.description,
                ", ".join(str(source) for source in entry.sources),
                name == catalogue.default,
            )
        )
    for name, model in stored.items():
        rows.append(
            ModelRow(name, model.size_bytes, True, model.licence, description="no longer in the catalogue")
        )
    for path, size in _files_here():
        rows.append(ModelRow(str(path), size, True, description="a file of this folder", is_file=True))
    return sorted(rows, key=lambda row: (not row.is_here, not row.is_default))


def _files_here() -> Iterator[tuple[Path, int]]:
    """The .gguf files of the working folder with their sizes; links to nothing and folders are left out."""
    for path in sorted(Path.cwd().glob("*.gguf")):
        with suppress(OSError):
            if path.is_file():
                yield path, path.stat().st_size


class ModelPage(PageView):
    """Chooses, fetches and deletes models."""

    foot = (("enter", "fetch and load"), ("o", "open a file"), ("d", "delete"), ("esc", "stop, back"))
    DEFAULT_CSS = """
    ModelPage #first { height: auto; padding: 1 1 0 1; }
    ModelPage #told { height: 5; border-top: solid $panel; color: $text-muted; }
    ModelPage #saying { color: $warning; height: auto; }
    ModelPage Input, ModelPage Input:focus { height: 1; border: none; padding: 0 1; background: $panel; }
    ModelPage Input { display: none; }
    """
    BINDINGS: ClassVar = [
        Binding("d", "delete", show=False, id="models.delete"),
        Binding("o", "open", show=False, id="models.open"),
        Binding("a", "accept", show=False, id="models.accept"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.rows: list[ModelRow] = []
        self.fetching: Fetching | None = None
        self._doomed = ""
        self._asks_licence = ""
        # What is known of models that are here: None where nothing can be said.
        self._plans: dict[str, Plan | None] = {}

    def compose(self) -> ComposeResult:
        yield Line(id="first")
        yield Chooser(id="models")
        yield Input(placeholder="path of a .gguf file", id="path")
        yield Line(id="saying")
        yield Line(id="told")

    @property
    def _list(self) -> Chooser:
        return self.query_one(Chooser)

    def show(self) -> None:
        """Reads what there is."""
        self._doomed = self._asks_licence = ""
        # What is free may differ from what it was.
        self._plans.clear()
        self.query_one(Input).cursor_blink = False
        self.refill()
        self._list.focus()

    def on_resize(self) -> None:
        """Lays the lines out for the new width."""
        self.refill()

    def welcome(self, missing: Exception) -> None:
        """The wanted model is not here: says so, and offers to fetch it."""
        wanted = self.edge.choice.wanted
        row = next(
            (each for each in self.rows if each.load == wanted or (not wanted and each.is_default)), None
        )
        if row is None or row.is_here:
            self._say(str(missing))
            return
        self._list.highlighted = self.rows.index(row)
        size = f"{megabytes(row.size_bytes)}, " if row.size_bytes else ""
        text = f" {row.load} is not on this machine yet.\n Enter fetches it ({size}{row.licence}) and starts."
        self.query_one("#first", Line).set(text)

    def refill(self) -> None:
        """Lists what there is now."""
        if not self.is_attached:
            return
        kept = self.chosen
        try:
            self.rows = model_rows()
        except (edgellm.EdgeError, OSError) as error:
            self.rows = []
            self._say(str(error))
        available = available_bytes()
        at = next((i for i, row in enumerate(self.rows) if kept is not None and row.load == kept.load), 0)
        self._list.fill([self._line(row, available) for row in self.rows], at)
        self._describe()

    def _line(self, row: ModelRow, available: int) -> str:
        talk = self.edge.talk
        is_loaded = talk.runtime is not None and row.load == talk.model
        fetching = self.fetching
        if fetching is not None and fetching.name == row.load:
            state = fetching.words.partition("  ")[0]
        else:
            state = "loaded" if is_loaded else "here" if row.is_here else "-"
        size = megabytes(row.size_bytes)
        name = Path(row.load).name if row.is_file else row.load
        mark = "*" if is_loaded else " "
        plan = self._plans.get(row.load)
        fit = fits(row.size_bytes, available) if plan is None else "fits" if plan.fits else "too big"
        # It is in the memory already.
        fit = "fits" if is_loaded else fit
        head = f"{mark} {one_line(name, 24):<24} {size:>9}  {state:<7} {fit:<8}"
        return head + one_line(row.licence, max(8, self.size.width - len(head) - 4))

    @property
    def chosen(self) -> ModelRow | None:
        """The model under the cursor."""
        index = self._list.highlighted
        return self.rows[index] if index is not None and index < len(self.rows) else None

    def _describe(self) -> None:
        row, width = self.chosen, max(20, self.size.width - 3)
        if row is None:
            self.query_one("#told", Line).set("")
            return
        plan = self._plans.get(row.load)
        self._plan_when_resting(row)
        lines = [row.description, f"licence: {row.licence or '?'} {row.licence_url}".rstrip()]
        if row.source:
            lines.append(f"source: {row.source}")
        if plan is not None:
            lines.append(plan_words(plan))
        if not row.is_here:
            lines.append(
                "enter fetches it" + (", after you have accepted its licence" * row.needs_acceptance)
            )
        self.query_one("#told", Line).set("\n".join(" " + one_line(line, width) for line in lines))

    def _plan_when_resting(self, row: ModelRow) -> None:
        """Asks what `load` would make of a model that is here, unless it is loaded or an answer is being drawn."""
        talk = self.edge.talk
        if not row.is_here or row.load in self._plans or row.load == talk.model or talk.worker.is_busy:
            return
        self.run_worker(partial(self._plan, row), group="plan", exclusive=True)

    async def _plan(self, row: ModelRow) -> None:
        await asyncio.sleep(_REST_S)
        if not self._stands_on(row):
            return
        self._plans[row.load] = await asyncio.to_thread(plan_of, row.load)
        if self._stands_on(row):
            self._relabel(row.load)
            self._describe()

    def _stands_on(self, row: ModelRow) -> bool:
        """The page is in front, with the cursor on that model. False while the app is being closed."""
        return bool(self.query(Chooser)) and self.edge.page is self and self.chosen == row

    def _say(self, text: str) -> None:
        self.query_one("#saying", Line).set(f" {text}" if text else "")

    # -- choosing -----------------------------------------------------------------------------------------

    def on_option_list_option_highlighted(self, _event: OptionList.OptionHighlighted) -> None:
        """Describes the model under the cursor."""
        if self._doomed or self._asks_licence:
            row = self.chosen
            if row is None or row.load not in (self._doomed, self._asks_licence):
                self._doomed = self._asks_licence = ""
                self._say("")
        self._describe()

    def on_option_list_option_selected(self, _event: OptionList.OptionSelected) -> None:
        """Loads the chosen model; fetches it first where it is not here."""
        row = self.chosen
        if row is None:
            return
        if row.is_here:
            self._load(row.load)
        elif self.fetching is not None:
            self._say(f"{self.fetching.name} is being fetched; esc stops that")
        elif row.needs_acceptance:
            self._asks_licence = row.load
            self._say(
                f"{row.load} is under the {row.licence}: {row.licence_url or 'read it first'}. a accepts it."
            )
        else:
            self._fetch(row.load)

    def action_accept(self) -> None:
        """The user accepts the licence that was asked about."""
        name, self._asks_licence = self._asks_licence, ""
        if name and self.chosen is not None and self.chosen.load == name:
            self._fetch(name, accept_licence=True)

    def _load(self, model: str) -> None:
        app = self.edge
        self.query_one("#first", Line).set("")
        app.choice.choose(model)
        app.run_worker(app.action_page("chat"))

    # -- fetching -----------------------------------------------------------------------------------------

    def _fetch(self, name: str, *, accept_licence: bool = False) -> None:
        worker = self.edge.worker
        self.fetching = Fetching(
            name, lambda: worker.put(Called(self._fetch_changed)), accept_licence=accept_licence
        )
        self.fetching.start()
        self._fetch_changed()

    def _fetch_changed(self) -> None:
        fetching = self.fetching
        if fetching is None or not self.is_attached:
            return
        if not fetching.is_over:
            self._say(f"{fetching.name}  {fetching.words}   (esc stops)")
            self._relabel(fetching.name)
            return
        self.fetching = None
        self.refill()
        if fetching.error is None:
            self._say(f"{fetching.name} is here")
            self._load(fetching.name)
        elif isinstance(fetching.error, edgellm.EdgeError):
            self._say(str(fetching.error))
        else:
            self._say(f"{type(fetching.error).__name__}: {fetching.error}")

    def _relabel(self, name: str) -> None:
        index = next((i for i, row in enumerate(self.rows) if row.load == name), None)
        if index is not None:
            self._list.relabel(index, self._line(self.rows[index], available_bytes()))

    def pressed(self, key: str) -> None:
        """Another key than that of the deletion keeps the model."""
        if self._doomed and not self.is_key(key, "models.delete", "d"):
            self._doomed = ""
            self._say("")

    def leave(self) -> bool:
        """Esc: stops a download, or leaves the field. False: there was none."""
        field = self.query_one(Input)
        if field.display:
            field.display = False
            self._list.focus()
            return True
        if self.fetching is not None:
            self.fetching.cancel()
            return True
        return False

    # -- files --------------------------------------------------------------------------------------------

    def action_open(self) -> None:
        """Asks for the path of a model."""
        field = self.query_one(Input)
        field.display = True
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Loads the file that was named."""
        path = Path(event.value.strip()).expanduser()
        if not path.is_file():
            self._say(f"There is no file {path}.")
            return
        event.input.value = ""
        event.input.display = False
        self._load(str(path.absolute()))

    def action_delete(self) -> None:
        """Deletes the chosen model's files when it is asked for twice."""
        row = self.chosen
        if row is None or not row.is_here or not self._list.has_focus:
            return
        if row.is_file:
            self._say("A file of yours is not deleted from here.")
        elif row.load == self.edge.talk.model and self.edge.talk.runtime is not None:
            self._say("It is loaded: load another model first.")
        elif self._doomed != row.load:
            self._doomed = row.load
            self._say(f"d once more deletes {row.load} ({megabytes(row.size_bytes)}); any other key keeps it")
        else:
            self._doomed = ""
            self.edge.worker.submit(partial(edgellm.remove_model, row.load), self._removed, self.edge.report)

    def _removed(self, freed: Any) -> None:
        # Any: what the job gave, bytes.
        self._say(f"{megabytes(freed)} are free again")
        self.refill()
