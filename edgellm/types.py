"""The vocabulary of values that all rooms speak: tokens, spans, messages, calls, load options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass


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

    def __str__(self) -> str:
        if self.verdict == "rebuilt":
            return (
                f"The saved memory of this chat is not used: {self.reason}. "
                f"{self.rebuilt_tokens} tokens are computed again."
            )
        if self.verdict == "exact":
            return "The saved memory of this chat is exact: the same logits, to the bit."
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"The saved memory of this chat is within tolerance: its logits differ by {self.difference:.2g}"
            f" at most{reason}."
        )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded. A default is written here and nowhere else.

    What is 0 or "auto" is chosen for this machine, so that it fits into its memory (`edgellm plan`); what is given
    holds. `fit` "off" loads without looking whether it fits.
    `n_ctx` 0 means the model's own length, at most 8192. `n_seq_max` is how many chats and
    branches share the context without being parked; 0 means 16, or 4 where each needs a state of its own
    (recurrent and hybrid models). `threads` 0 means picked for this machine, and followed by its load.
    `n_batch` and `n_ubatch` 0 mean 512; a batch is never smaller than `n_seq_max`. `n_gpu_layers` is a count, "all"
    or "auto". `kv_type_k`, `kv_type_v`: f16, q8_0, q4_0 ... (q-types for V need flash attention); "auto" is f16, or
    q8_0 where that makes it fit. `cpu_moe` is a count of layers whose experts stay on the CPU, or "all";
    `override_tensors` pins tensors by regular expression ("pattern=CPU"). Where `n_ctx` is more than the model was
    trained for, RoPE is scaled as its metadata says (else by YaRN), unless `rope_*` or `yarn_orig_ctx` say how;
    `Runtime.notes` tells of it.
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
