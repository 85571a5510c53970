"""The vocabulary of values that all rooms speak: tokens, spans, messages, calls, distributions, usage."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray


FinishReason = Literal[
    "eog", "length", "cancelled", "stop", "tool_call", "max_steps", "budget", "context_full"
]
Permission = Literal["auto", "ask", "deny"]
ConstraintMode = Literal["off", "check", "force"]
ReasoningPolicy = Literal["keep", "excise", "render"]
Role = Literal["system", "user", "assistant", "tool"]


class SpanKind(StrEnum):
    """Who a stretch of the tape belongs to."""

    SYSTEM = "system"
    USER = "user"
    TEXT = "text"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    GLUE = "glue"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered prompt text and its origin.

    `is_template` is true for the template's own text: only there may a special token's
    spelling become the control token. Everything else is content and stays text.
    """

    text: str
    kind: SpanKind
    is_template: bool


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter file and its scale."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ControlVector:
    """A control vector file and its scale. It is added behind layers `first_layer` to `last_layer`, counted from 0 (the
    first layer has none); `last_layer` 0 is the model's last."""

    path: str
    scale: float = 1.0
    first_layer: int = 1
    last_layer: int = 0


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """What is laid over a model's weights for a chat: any number of LoRA adapters and control vectors, added up."""

    lora: tuple[LoraAdapter, ...] = ()
    control: tuple[ControlVector, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `[start, end)` of the tape that belong to one owner, and came while `adapters` were in use."""

    kind: SpanKind
    start: int
    end: int
    adapters: AdapterSet = AdapterSet()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call. `arguments` is the parsed JSON object; `raw` the text the model wrote for it."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back. Failure is data: `is_ok` false and `text` is what the model reads.

    `text` is exactly what is appended to the tape; `is_truncated` says that it was capped;
    `duration_s` is wall time; `data` the value before it became text (not saved).
    """

    text: str
    is_ok: bool = True
    is_truncated: bool = False
    duration_s: float = 0.0
    data: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, a view of the tape."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ToolExample:
    """A worked example shown to small models: a request and the arguments that answer it."""

    request: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What the model and the runtime need to know of a tool: no code.

    `parameters` is a JSON Schema (Draft 2020-12) of type object. `max_result_tokens` caps what
    is appended to the tape. `timeout_s` is wall time. `is_grantable` false: every call is asked for anew.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    permission: Permission = "ask"
    timeout_s: float = 30.0
    max_result_tokens: int = 1024
    examples: tuple[ToolExample, ...] = ()
    is_grantable: bool = True

    def to_openai(self) -> dict[str, Any]:
        """The object chat templates expect: {"type": "function", "function": {...}}."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The top rows of a distribution at one point of the sampler chain, most probable first.

    ids: int32 (n,); logits: float32 (n,); probs: float32 (n,), softmax over all rows that are left
    at this point, so they sum to at most 1. `n_left` counts the rows left. `entropy_bits` is over
    all rows left.
    """

    stage: str
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    probs: NDArray[np.float32]
    n_left: int
    entropy_bits: float


class RowsPoint(Protocol):
    """Rows that were copied at one point of the chain; `entropy_bits` is known at once at the raw one only."""

    @property
    def entropy_bits(self) -> float:
        """Entropy over all rows that were left there."""
        ...

    def rows(self, n: int) -> Rows:
        """The `n` most probable, in order."""
        ...

    def cut(self, n: int) -> RowsPoint:
        """The same with no more rows than `n`, or few."""
        ...


class Distribution:
    """What the sampler saw for one token: `raw` rows, rows after each stage, and the draw.

    `u` is the uniform number in [0, 1) used by the inverse CDF (nan where the draw was greedy or made
    inside llama.cpp). The rows were copied when the token was drawn; they are put into order when somebody looks:
    `n` rows of each of the `points`, the first of which is the raw one. `is_thin`: the stages between were dropped,
    and the last rows' stage is called "final", since which stage did what is not known any more.
    """

    __slots__ = ("_n", "_points", "_rows", "is_thin", "u")

    def __init__(self, points: Sequence[RowsPoint], n: int, u: float, *, is_thin: bool = False) -> None:
        self._points = points
        self._n = n
        self._rows: list[Rows | None] = [None] * len(points)
        self.u = u
        self.is_thin = is_thin

    def thin(self) -> Distribution:
        """The same with raw and final rows alone: to keep for long."""
        ends = (self._points[0].cut(self._n), self._points[-1].cut(self._n))
        return Distribution(ends, self._n, self.u, is_thin=True)

    def _at(self, index: int) -> Rows:
        rows = self._rows[index]
        if rows is None:
            rows = self._points[index].rows(self._n)
            if self.is_thin and index:
                rows = replace(rows, stage="final")
            self._rows[index] = rows
        return rows

    @property
    def entropy_bits(self) -> float:
        """Entropy over the whole vocabulary, before any stage."""
        return self._points[0].entropy_bits

    @property
    def raw(self) -> Rows:
        """Rows before any stage."""
        return self._at(0)

    @property
    def stages(self) -> tuple[Rows, ...]:
        """Rows after each stage, in order."""
        return tuple(map(self._at, range(1, len(self._rows))))

    @property
    def final(self) -> Rows:
        """Rows the token was drawn from."""
        return self._at(len(self._rows) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One token on its way out of the engine.

    `piece` are the token's own bytes (special tokens included). `logprob` is the natural log of the raw
    model probability, None where no tap was on or the token was forced. `position` is its index on the tape.
    `is_forced`: nothing was drawn; `is_guided`: the `guided` tool strategy wrote it, or drew it greedily.
    """

    token: int
    piece: bytes
    position: int
    is_eog: bool = False
    is_control: bool = False
    is_forced: bool = False
    is_constrained: bool = False
    is_guided: bool = False
    logprob: float | None = None
    distribution: Distribution | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """One uninterrupted decode: from a prefill to the token that ended it.

    `reused_tokens` were in the KV cache already, or taken from disk; `rebuilt_tokens` had to be prefilled again
    because the memory could not be cut; `forced_tokens` are decode_tokens that nobody drew: the grammar left no
    choice, or a repair wrote them. `repaired_calls` were broken and written again; `removed_tokens` of earlier
    turns were taken off the tape. `free_tokens` are decode_tokens that had been guessed and computed along with
    another one. `ahead_tokens` of the prompt had been computed before it was there: while the user typed, or a tool
    ran; they are in none of the other numbers.
    """

    prefill_tokens: int
    reused_tokens: int
    decode_tokens: int
    forced_tokens: int = 0
    rebuilt_tokens: int = 0
    guided_tokens: int = 0
    repaired_calls: int = 0
    removed_tokens: int = 0
    free_tokens: int = 0
    ahead_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What has become of a saved chat's memory, by one token that was decoded again and compared.

    "exact": the same logits to the bit. "within tolerance": they differ by `difference` at most, as on another build
    or with other threads. "rebuilt": the memory is not used, `reason` says why, and `rebuilt_tokens` are computed
    again from the tape by the next turn.
    """

    verdict: Literal["exact", "within tolerance", "rebuilt"]
    reason: str = ""
    difference: float = 0.0
    rebuilt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over the legs of a turn (or of a chat).

    A chat lists its first leg and its newest ones; `earlier` is the sum of the `earlier_legs` between them.
    """

    legs: tuple[Leg, ...] = ()
    earlier: Leg | None = None
    earlier_legs: int = 0

    @property
    def prefill_tokens(self) -> int:
        """Tokens computed in prefill."""
        return sum(leg.prefill_tokens for leg in self._all)

    @property
    def reused_tokens(self) -> int:
        """Tokens of the first leg that were in the KV cache already, or taken from disk."""
        return self.legs[0].reused_tokens if self.legs else 0

    @property
    def decode_tokens(self) -> int:
        """Tokens drawn or forced."""
        return sum(leg.decode_tokens for leg in self._all)

    @property
    def rebuilt_tokens(self) -> int:
        """Tokens prefilled again because the memory could not be cut."""
        return sum(leg.rebuilt_tokens for leg in self._all)

    @property
    def forced_tokens(self) -> int:
        """Decoded tokens that were not drawn."""
        return sum(leg.forced_tokens for leg in self._all)

    @property
    def free_tokens(self) -> int:
        """Decoded tokens that needed no decode of their own: they had been guessed."""
        return sum(leg.free_tokens for leg in self._all)

    @property
    def ahead_tokens(self) -> int:
        """Tokens of prompts that had been computed before the prompts were there."""
        return sum(leg.ahead_tokens for leg in self._all)

    @property
    def repaired_calls(self) -> int:
        """Calls that were broken and written again."""
        return sum(leg.repaired_calls for leg in self._all)

    @property
    def prefill_s(self) -> float:
        """Seconds spent in prefill."""
        return sum(leg.prefill_s for leg in self._all)

    @property
    def decode_s(self) -> float:
        """Seconds spent decoding and sampling."""
        return sum(leg.decode_s for leg in self._all)

    @property
    def decode_tok_s(self) -> float:
        """Tokens decoded per second; 0 where nothing was decoded."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def leg_count(self) -> int:
        """How many legs there were, those that are not listed included."""
        return len(self.legs) + self.earlier_legs

    @property
    def all_reused_tokens(self) -> int:
        """Tokens that were in the KV cache already, or taken from disk, summed over all legs."""
        return sum(leg.reused_tokens for leg in self._all)

    @property
    def _all(self) -> tuple[Leg, ...]:
        return self.legs if self.earlier is None else (*self.legs, self.earlier)

    def __add__(self, other: Usage) -> Usage:
        folded = [usage.earlier for usage in (self, other) if usage.earlier is not None]
        earlier = _summed(folded) if folded else None
        return Usage(self.legs + other.legs, earlier, self.earlier_legs + other.earlier_legs)

    def bounded(self, count: int) -> Usage:
        """The same sums with at most `count` legs listed (2 or more): the first one, and the newest."""
        if len(self.legs) <= count:
            return self
        first, middle, newest = self.legs[:1], self.legs[1 : 1 - count], self.legs[1 - count :]
        folded = middle if self.earlier is None else (self.earlier, *middle)
        return Usage((*first, *newest), _summed(folded), self.earlier_legs + len(middle))


def _summed(legs: Iterable[Leg]) -> Leg:
    """One leg with the sums of all numbers."""
    legs = list(legs)
    names = [item.name for item in fields(Leg) if item.name != "finish_reason"]
    # Any: some are counts, some seconds.
    sums: dict[str, Any] = {name: sum(getattr(leg, name) for leg in legs) for name in names}
    return Leg(**sums)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded. A default is written here and nowhere else.

    What is 0 or "auto" is chosen for this machine, so that it fits into its memory (`edgellm plan`); what is given
    holds. `fit` "off" loads without looking whether it fits.
    `n_ctx` 0 means the model's own length, at most 8192. `n_seq_max` is how many chats and
    branches share the context without being parked; 0 means 16, or 4 where each needs a state of its own
    (recurrent and hybrid models). `threads` 0 means picked for this machine, and followed by its load.
    `n_batch` and `n_ubatch` 0 mean 512. `n_gpu_layers` is a count, "all" or "auto". `kv_type_k`, `kv_type_v`: f16,
    q8_0, q4_0 ... (q-types for V need flash attention); "auto" is f16, or q8_0 where that makes it fit. `cpu_moe` is
    a count of layers whose experts stay on the CPU, or "all"; `override_tensors` pins tensors by regular expression
    ("pattern=CPU"). Where `n_ctx` is more than the model was trained for, RoPE is scaled as its metadata says (else by
    YaRN), unless `rope_*` or `yarn_orig_ctx` say how; `Runtime.notes` tells of it.
    `swa_full` False keeps of sliding-window layers the window alone: less memory, and a rewind goes back to a
    checkpoint. `checkpoints` is how many of these a chat keeps where memory cannot be cut (sliding windows,
    recurrent and hybrid models), `checkpoint_mb` how many megabytes they take for all chats together.
    `prefix_cache_mb`: how many megabytes of computed system prompts and tools are kept on disk; 0 keeps
    none, and EDGELLM_PREFIX_CACHE=off neither.
    `draft_model` is a small model of the same vocabulary (a catalogue name or a file) that guesses what comes next.
    `lora` and `control_vectors` are the adapters of chats that name none of their own (ChatOptions.adapters).
    """

    n_ctx: int = 0
    n_seq_max: int = 0
    n_batch: int = 0
    n_ubatch: int = 0
    threads: int = 0
    threads_batch: int = 0
    n_gpu_layers: int | Literal["all", "auto"] = "auto"
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    cpu_moe: int | Literal["all", "auto"] = "auto"
    override_tensors: tuple[str, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_type_k: str = "auto"
    kv_type_v: str = "auto"
    rope_scaling: Literal["model", "none", "linear", "yarn"] = "model"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_orig_ctx: int = 0
    swa_full: bool = True
    checkpoints: int = 8
    checkpoint_mb: int = 256
    prefix_cache_mb: int = 512
    draft_model: str = ""
    lora: tuple[LoraAdapter, ...] = field(default_factory=tuple)
    control_vectors: tuple[ControlVector, ...] = field(default_factory=tuple)
    check_tensors: bool = False
    fit: Literal["auto", "off"] = "auto"

    def for_draft(self) -> LoadOptions:
        """The options that the draft model is loaded with: it reads one tape, and is left as it is."""
        return replace(
            self, n_seq_max=1, lora=(), control_vectors=(), override_tensors=(), cpu_moe=0, draft_model=""
        )
