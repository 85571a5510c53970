"""Which model is loaded, and with which chat it begins: a new one, or a kept one that was held with it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from edgellm import EdgeError
from edgellm_tui.model_page import ModelPage
from edgellm_tui.saved_chats import model_of
from edgellm_tui.settings import save_settings
from edgellm_tui.strand import told

if TYPE_CHECKING:
    import edgellm
    from edgellm_tui.app import EdgeApp


class ModelChoice:
    """`wanted` is the model that was last asked for; "" is the catalogue's default."""

    def __init__(self, app: EdgeApp, wanted: str) -> None:
        self._app = app
        self.wanted = wanted
        self._resumes: edgellm.IndexedChat | None = None

    def open(self, model: str) -> None:
        """Loads a model in the background and begins a chat on it."""
        self.wanted = model
        self._app.talk.open_model(model, self._ready, self._missing)

    def choose(self, model: str) -> None:
        """The same for the user's own choice: once it is loaded, the app begins with it the next time as well."""
        self.wanted = model
        self._app.talk.open_model(model, partial(self._chosen, model), self._missing)

    def _chosen(self, model: str) -> None:
        settings = self._app.settings
        settings.model = model
        try:
            save_settings(settings)
        except EdgeError as error:
            self._app.news.append(told(error))
        self._ready()

    def _ready(self) -> None:
        talk = self._app.talk
        self._app.news += talk.failures
        saved, self._resumes = self._resumes, None
        if saved is not None:
            talk.open_saved(saved, self._cannot_resume)
        else:
            talk.new_chat()

    def _cannot_resume(self, error: Exception) -> None:
        # The chat so far went with its model.
        self._app.news.append(told(error))
        self._app.talk.new_chat()

    def _missing(self, error: Exception) -> None:
        self._resumes = None
        self._app.run_worker(self._offer_models(error))

    async def _offer_models(self, error: Exception) -> None:
        await self._app.action_page("model")
        page = self._app.page
        if isinstance(page, ModelPage):
            page.welcome(error)

    def open_chat(self, saved: edgellm.IndexedChat) -> None:
        """Goes on with a kept chat; another model is loaded first where the chat was held with one."""
        talk = self._app.talk
        if saved.id == talk.kept.id:
            return
        model = model_of(saved, talk.runtime, talk.model)
        if model:
            self._resumes = saved
            self.open(model)
        else:
            talk.open_saved(saved)
