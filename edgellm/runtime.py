"""The front door: a model in memory, the chats on it, and what one can ask about models without loading them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgellm.discovery import discover_policies, discover_samplers
from edgellm.errors import ConfigError
from edgellm.machine import memory, resident_bytes
from edgellm.offline import catalog, inspect_draft, merged_options
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.chat_options import ChatOptions
    from edgellm.dialogue import Chat
    from edgellm.engine.draft_model import DraftModel
    from edgellm.engine.embedder import Embedder
    from edgellm.engine.governor import Meters
    from edgellm.engine.session import Session
    from edgellm.engine.speculation import SpeculateMode, Speculation
    from edgellm.engine_thread import EngineThread
    from edgellm.events import Event
    from edgellm.guided.strategy import Guided
    from edgellm.models.catalogue import ModelEntry
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.models.resolve import ResolvedModel
    from edgellm.native.model import Model
    from edgellm.native.overlay import Overlay
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.sampling.spec import ChainLike, ChainSpec
    from edgellm.types import AdapterSet
    from edgellm.waiting import Waiting

DEFAULT_MODEL = "smollm2-135m"

T = TypeVar("T")


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    options: LoadOptions | None = None,
    pull: bool = False,
    accept_licence: bool = False,
    progress: Callable[[float], bool | None] | None = None,
    **overrides: Any,
) -> Runtime:
    """A model in memory, from a catalogue name or a path to a .gguf.

    `pull` fetches it first where it is missing. `overrides` are fields of LoadOptions (n_ctx=4096 ...).
    What they leave open is chosen such that it fits into memory: `Runtime.options` has the choice, `Runtime.notes`
    what was given up for it; the first turn says so too. `progress` gets the loaded fraction in [0, 1] and may
    return False to stop (Cancelled). Ctrl-C stops it as well, and is raised once nothing is left of the load. Raises
    ModelNotFound, ModelCorrupt, ModelUnsupported, OutOfMemory, ConfigError.
    """
    from edgellm.models.gguf_info import inspect_gguf
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store
    from edgellm.native.held_interrupt import held_interrupt

    found = resolve(model, catalog(), Store(), pull=pull, accept=accept_licence)
    info = inspect_gguf(found.path)  # a broken file gets its clear error before llama.cpp sees it
    chosen = merged_options(options, found.entry, overrides)
    runtime: Runtime | None = None
    try:
        with held_interrupt() as is_interrupted:

            def on_progress(done: float) -> bool | None:
                if is_interrupted():
                    return False
                return progress(done) if progress is not None else None

            runtime = _load(found, info, chosen, on_progress)
    except BaseException:
        if runtime is not None:
            runtime.close()
        raise
    return runtime


def _load(
    found: ResolvedModel, info: GGUFInfo, chosen: LoadOptions, progress: Callable[[float], bool | None]
) -> Runtime:
    from edgellm.models.rope_scaling import stretched
    from edgellm.native.model import Model

    notes: tuple[str, ...] = ()
    if chosen.fit == "auto":
        from edgellm.planning.plan import fit_options

        fitted = fit_options(info, chosen, draft=inspect_draft(chosen))
        chosen, notes = fitted.options, fitted.notes
    elif chosen.n_gpu_layers != "auto":
        from edgellm.planning.demand import this_machine
        from edgellm.planning.placement import gpu_notes

        notes = gpu_notes(chosen, this_machine(chosen.devices))
    weights = Model.load(found.path, chosen, progress=progress)
    chosen, told = stretched(info, chosen, has_rope=weights.has_rope)
    return Runtime(weights, chosen, entry=found.entry, info=info, notes=(*notes, *told))


class Runtime:
    """A loaded model and one context on it. Close it, or use it in a `with` block."""

    def __init__(
        self,
        model: Model,
        options: LoadOptions,
        *,
        entry: ModelEntry | None = None,
        info: GGUFInfo | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        from edgellm.engine.engine import Engine
        from edgellm.ledger import Pace

        self.model = model
        self.options = options
        self.entry = entry
        self.info = info
        self.notes = notes
        self._unsaid = deque(notes)
        try:
            self.engine = Engine(model, options)
        except BaseException:
            model.close()
            raise
        self._draft = self._load_draft()
        # What prefill has cost so far: the prices of ledgers.
        self.pace = Pace()
        self._chats: list[Chat] = []
        # Guided strategies by template source: chats with one template share what is computed for it.
        self.guided_by_template: dict[str, Guided] = {}
        self._embedder: Embedder | None = None
        self._thread: EngineThread | None = None
        self._is_closed = False

    # -- chats ------------------------------------------------------------------------------------------

    def chat(self, **options: Any) -> Chat:
        """A new chat; options are the fields of ChatOptions (system=, tools=, sampler=, seed=, trace= ...).

        Raises ConfigError, SamplerError, ToolError, TemplateError.
        """
        from edgellm.chat_options import checked_options

        self._check_open()
        chosen = checked_options(options)
        overlay = self.overlay(chosen.adapters)
        return self._open(chosen, self.engine.session(self._chain_for(chosen), overlay))

    def open_chat(self, path: str | Path, **options: Any) -> Chat:
        """A saved chat, continued where it was; options as for `chat`. Its own system turn stays, and its sampler where
        none is given.

        What the model was told of tools stays as well, once there are messages: a Notice in the first turn says where
        the options offer others. `Chat.resumed` says what has become of its memory. Raises SessionError for a damaged
        file or another model, ConfigError for another system turn, ContextFull.
        """
        return self._open_saved(path, options, 1)[0]

    def open_chats(self, path: str | Path, **options: Any) -> tuple[Chat, ...]:
        """A saved chat and the branches that were saved with it; as `open_chat`."""
        return self._open_saved(path, options, None)

    def _open_saved(
        self, path: str | Path, options: Mapping[str, Any], count: int | None
    ) -> tuple[Chat, ...]:
        from edgellm.chat_options import checked_options
        from edgellm.engine.saving import restore_session
        from edgellm.engine.session_file import read_sessions

        self._check_open()
        saved = read_sessions(Path(path), count)
        chats: list[Chat] = []
        try:
            for branch in saved.branches:
                system = branch.record.extra.get("system", "")
                if branch.record.tokens and options.get("system", system) != system:
                    raise ConfigError(
                        "a saved chat keeps its system turn: another one cannot take its place.",
                        hint="Leave the system turn out, or begin a new chat with it.",
                    )
                own = {
                    "sampler": branch.record.sampler,
                    "seed": branch.record.seed,
                    "system": system,
                    **options,
                }
                chosen = checked_options(own)
                chain = self._chain_for(chosen)
                session, resumed = self.in_turn(
                    partial(
                        restore_session, self.engine, chain, saved.record, branch, adapters=chosen.adapters
                    )
                )
                chats.append(self._open(chosen, session))
                chats[-1].restore(branch.record.extra, resumed)
        except BaseException:
            for chat in chats:
                chat.close()
            raise
        return tuple(chats)

    def _open(self, options: ChatOptions, session: Session) -> Chat:
        from edgellm.chat_making import make_chat
        from edgellm.context_policy import POLICIES
        from edgellm.planning.plan import settings_warning

        POLICIES.finder = POLICIES.finder or _find_policies
        chat = make_chat(self, options, session)
        if warning := settings_warning(self.options, has_tools=bool(chat.tools)):
            self._unsaid.append(warning)
        self._chats.append(chat)
        return chat

    def speculation(
        self,
        mode: SpeculateMode | None = None,
        texts: Sequence[str] = (),
        *,
        known: Speculation | None = None,
    ) -> Speculation | None:
        """What guesses ahead in a chat (see ChatOptions); None for "off". It knows the texts that `known` does, too.

        Raises ConfigError for an unknown mode, and for texts that nothing would be guessed from.
        """
        from edgellm.engine.speculation import Speculation

        if mode not in (None, "off", "auto", "ngram", "draft"):
            raise ConfigError(f"speculate={mode!r} is unknown.", hint="Choose auto, ngram, draft or off.")
        if mode == "draft" and self._draft is None:
            raise ConfigError('speculate="draft" needs a draft model.', hint="Load with draft_model=NAME.")
        if mode == "off" and texts:
            raise ConfigError(
                'speculate_from has no effect with speculate="off".', hint="Leave one of them out."
            )
        chosen = mode or ("auto" if self._draft is not None or texts else "off")
        if chosen == "off":
            return None
        drafter = None if chosen == "ngram" else self._draft
        made = Speculation(chosen, drafter) if known is None else known.renewed(chosen, drafter)
        for text in texts:
            made.index.add_text(self.vocabulary.tokenize(text))
        return made

    def _load_draft(self) -> DraftModel | None:
        if not self.options.draft_model:
            return None
        from edgellm.engine.draft_model import DraftModel
        from edgellm.models.resolve import resolve
        from edgellm.models.store import Store

        try:
            path = resolve(self.options.draft_model, catalog(), Store()).path
            options = replace(self.engine.options, n_ctx=self.n_ctx)
            return DraftModel(path, options, self.vocabulary, model_bytes=self.model.size_bytes)
        except BaseException:
            self.engine.close()
            self.model.close()
            raise

    def take_notices(self) -> Iterator[str]:
        """What a reader should know of the runtime and has not been told: each once, to whoever asks first."""
        while self._unsaid:
            yield self._unsaid.popleft()
        yield from self.engine.governor.take_messages()

    def meters(self) -> Meters:
        """How it goes just now: threads, load, heat, memory, speed. Safe from any thread."""
        return replace(
            self.engine.governor.meters(), resident_bytes=resident_bytes(), room_bytes=memory().room_bytes
        )

    # -- completion, embedding, tokens --------------------------------------------------------------------

    def complete(
        self,
        text: str,
        *,
        max_tokens: int = 256,
        sampler: ChainLike | None = None,
        seed: int | None = None,
        trace: int = 0,
        schema: Mapping[str, Any] | None = None,
        adapters: AdapterSet | None = None,
    ) -> Iterator[Event]:
        """Continues a text as it stands: no template, no tools. Events as of `Chat.send`.

        Raises ContextFull, SamplerError, ConfigError for an empty text.
        """
        from edgellm.chat_options import check_budget, check_values
        from edgellm.completion import complete

        self._check_open()
        if not isinstance(text, str) or not text:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError("there is no text to continue.", hint="Give a str.")
        check_budget(max_tokens)
        check_values({"trace": trace, "adapters": adapters})
        overlay = self.overlay(adapters)
        chain = self.make_chain(sampler, seed)
        constraint = self.json_constraint(schema) if schema is not None else None
        tokens = self.vocabulary.tokenize(text, add_special=True)
        entries = [(token, SpanKind.PROMPT) for token in tokens]
        self.in_turn(self.engine.begin_turn)
        return complete(
            self.engine,
            chain,
            entries,
            overlay=overlay,
            max_tokens=max_tokens,
            trace=trace,
            constraint=constraint,
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (len(texts), n_embd), float32, L2-normalized; pooled as the GGUF says, else the mean."""
        from edgellm.engine.embedder import Embedder

        texts = texts if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in texts) or isinstance(texts, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError("embed takes a list of texts.", hint="Write embed([text]).")
        self._check_open()
        if self._embedder is None:
            self._embedder = Embedder(self.model, self.options, self.engine.adapters.default)
        return self._embedder.embed(texts)

    def tokenize(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Token ids. `parse_special`: spellings of control tokens become those; `add_special`: BOS/EOS as
        the model wants them. `runtime.vocabulary.piece(id)` gives a token's bytes."""
        return self.vocabulary.tokenize(text, parse_special=parse_special, add_special=add_special)

    @property
    def name(self) -> str:
        """The model's name in the catalogue, else its file's."""
        return self.entry.name if self.entry is not None else self.model.path.name

    @property
    def n_ctx(self) -> int:
        """How many tokens the context holds."""
        return self.engine.context.n_ctx

    @property
    def threads(self) -> int:
        """How many threads a token is computed with."""
        return self.engine.context.n_threads

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self.model.vocabulary

    # -- what chats need ------------------------------------------------------------------------------------

    def make_chain(self, sampler: ChainLike | None, seed: int | None = None) -> Chain:
        """A runnable chain: the user's, else the catalogue's, the model's own, the default. Raises SamplerError."""
        from edgellm.sampling.chain import Chain

        spec, _ = self.resolve_sampler(sampler)
        if seed is not None:
            spec = spec.with_seed(seed)
        return Chain(spec, n_vocab=self.vocabulary.size, vocabulary=self.vocabulary, seed=seed)

    def resolve_sampler(self, sampler: ChainLike | None) -> tuple[ChainSpec, str]:
        """The chain that applies, and who said so: "user", "catalogue", "model" or "default"."""
        from edgellm.sampling.registry import REGISTRY
        from edgellm.sampling.spec import resolve_chain

        # Plugins are imported only where a chain names a stage that llama.cpp does not have.
        REGISTRY.finder = REGISTRY.finder or _find_samplers
        return resolve_chain(
            user=sampler,
            catalogue=(self.entry.sampler or None) if self.entry is not None else None,
            metadata=self.model.metadata,
        )

    def overlay(self, adapters: AdapterSet | None) -> Overlay:
        """A set of adapters, ready to decode with; their files are read where that was not done yet. None: those that
        the model was loaded with. Raises ConfigError."""
        return self.in_turn(lambda: self.engine.adapters.overlay(adapters))

    def _chain_for(self, options: ChatOptions) -> Chain:
        return self.make_chain(options.sampler, options.seed)

    @cached_property
    def _grammar_tokenizer(self) -> Any:
        # Any: an llguidance LLTokenizer, a foreign class without types of its own here.
        from edgellm.native.grammar_vocab import grammar_tokenizer

        return grammar_tokenizer(self.vocabulary)

    def grammar_constraint(self, grammar: str) -> Constraint:
        """A constraint from an llguidance Lark grammar. Raises ConstraintError."""
        from edgellm.sampling.constraint import Constraint

        return Constraint.from_lark(self._grammar_tokenizer, grammar)

    def json_constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """A constraint from a JSON Schema. Raises ConstraintError."""
        from edgellm.sampling.constraint import Constraint

        return Constraint.from_json_schema(self._grammar_tokenizer, schema)

    @property
    def thread(self) -> EngineThread:
        """The thread that serves `asend`; started on first use."""
        from edgellm.engine_thread import EngineThread

        self._check_open()
        if self._thread is None:
            self._thread = EngineThread()
        return self._thread

    def in_turn(self, function: Callable[[], T]) -> T:
        """Runs what touches the engine's memory where no decode can run meanwhile: on the thread, if there is one."""
        if self._thread is None or self._thread.is_current:
            return function()
        return self._thread.call(function).result()

    def run_turn(self, turn: Generator[Waiting, None, T]) -> T:
        """Runs a turn that gives no events to its end: beside the other turns on the thread, if there is one."""
        if self._thread is not None and not self._thread.is_current:
            return self._thread.result_of(turn).result()
        while True:
            try:
                item = next(turn)
            except StopIteration as end:
                return cast("T", end.value)
            item.sit_out()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigError("the runtime is closed.", hint="Load the model again.")

    def adopt(self, chat: Chat) -> None:
        """Takes a chat made by a fork into the books."""
        self._chats.append(chat)

    def forget(self, chat: Chat) -> None:
        """A chat was closed."""
        if chat in self._chats:
            self._chats.remove(chat)

    def close(self) -> None:
        """Stops open turns and frees everything; what is left of it raises ConfigError. A second call does nothing."""
        for chat in self._chats:
            chat.cancel()
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        # First of all: it is refused while another thread does not leave the engine, and then nothing is freed.
        self.engine.close()
        self._is_closed = True
        self._chats.clear()
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None
        if self._draft is not None:
            self._draft.close()
            self._draft = None
        self.model.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _find_samplers() -> None:
    discover_samplers()


def _find_policies() -> None:
    discover_policies()
