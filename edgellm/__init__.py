"""edgellm: quantized language models on small machines, with a decode loop one can see into and steer.

The front door. Names are imported on first use (PEP 562), so that `import edgellm` costs nothing.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "edgellm.chat_index": ("ChatIndex", "IndexedChat"),
    "edgellm.dialogue": ("Chat",),
    "edgellm.chat_options": ("ChatOptions",),
    "edgellm.offline": (
        "catalog",
        "doctor",
        "inspect",
        "plan",
        "pull",
        "read_merges",
        "read_vocabulary",
        "native_log",
        "remove_model",
        "stored_models",
    ),
    "edgellm.raw_output": (
        "Parsed",
        "parse",
        "stream_parser",
    ),
    "edgellm.discovery": (
        "call_tool",
        "discover_policies",
        "discover_samplers",
        "find_tools",
        "sampler_stages",
    ),
    "edgellm.requantizing": (
        "calibrate",
        "compare",
        "keep_copy",
        "optimize",
        "plan_every_quantize",
        "plan_quantize",
        "quantize",
    ),
    "edgellm.native.importance": ("ImportanceMatrix",),
    "edgellm.native.quantizer": ("QuantizePlan",),
    "edgellm.weights.compare": ("Comparison", "Measured"),
    "edgellm.weights.optimize": ("Optimization",),
    "edgellm.atomic": ("replacing",),
    "edgellm.folders": ("private_dir", "state_dir"),
    "edgellm.grants": ("Grants", "grant_origin"),
    "edgellm.trust": ("config_dir",),
    "edgellm.typed": ("typed_file", "typed_place", "typed_words"),
    "edgellm.runtime": ("Runtime", "load"),
    "edgellm.agent": ("AgentLimits", "ToolChoice"),
    "edgellm.toolbox.tool": ("Tool", "ToolContext", "tool"),
    "edgellm.toolbox.toolset": ("Toolset",),
    "edgellm.toolbox.permission": ("Approval",),
    "edgellm.engine.governor": ("Meters",),
    "edgellm.planning.plan": ("Plan",),
    "edgellm.sampling.stage": ("Rewind", "StageVocabulary", "sampler"),
    "edgellm.sampling.candidates": ("Candidates",),
    "edgellm.context_policy": (
        "CONTEXT_POLICIES",
        "ContextPolicy",
        "ContextTurn",
        "Crowding",
        "Drop",
        "Shorten",
        "Summarize",
        "context_policies",
        "policy",
    ),
    "edgellm.ledger": ("Ledger", "LedgerEntry"),
    "edgellm.outlook": ("ContextOutlook",),
    "edgellm.sampling.spec": ("ChainSpec", "StageSpec"),
    "edgellm.sampling.registry": ("StageInfo", "Param"),
    "edgellm.models.adapter_set": ("adapter_set",),
    "edgellm.models.merges": ("Merges", "MergeStep"),
    "edgellm.distribution": (
        "Distribution",
        "Rows",
        "Step",
    ),
    "edgellm.types": (
        "LoadOptions",
        "AdapterSet",
        "ControlVector",
        "LoraAdapter",
        "Message",
        "Resumed",
        "Segment",
        "Span",
        "SpanKind",
        "ToolCall",
        "ToolExample",
        "ToolResult",
        "ToolSpec",
    ),
    "edgellm.usage": (
        "Leg",
        "Usage",
    ),
    "edgellm.events": (
        "ApprovalRequested",
        "Event",
        "Notice",
        "PrefillProgress",
        "ReasoningDelta",
        "TextDelta",
        "TokenDrawn",
        "ToolApproved",
        "ToolCallBroken",
        "CallRepaired",
        "ContextEvicted",
        "ExactnessChecked",
        "HistoryRewritten",
        "ToolCallDelta",
        "ToolCallName",
        "ToolCallReady",
        "ToolCallStarted",
        "ToolChoiceScored",
        "ToolDenied",
        "ToolFinished",
        "ToolRunning",
        "TurnFinished",
    ),
    "edgellm.errors": (
        "Cancelled",
        "ConfigError",
        "ConstraintError",
        "ContextFull",
        "DecodeError",
        "DownloadError",
        "EdgeError",
        "FormatError",
        "ModelCorrupt",
        "ModelNotFound",
        "ModelUnsupported",
        "OutOfMemory",
        "PluginError",
        "SamplerError",
        "SessionError",
        "TemplateError",
        "ToolError",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME_OF.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Any: the table holds classes and functions of many types; type checkers read the block below.
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from edgellm.agent import AgentLimits, ToolChoice
    from edgellm.atomic import replacing
    from edgellm.chat_index import ChatIndex, IndexedChat
    from edgellm.chat_options import ChatOptions
    from edgellm.context_policy import (
        CONTEXT_POLICIES,
        ContextPolicy,
        ContextTurn,
        Crowding,
        Drop,
        Shorten,
        Summarize,
        context_policies,
        policy,
    )
    from edgellm.dialogue import Chat
    from edgellm.discovery import (
        call_tool,
        discover_policies,
        discover_samplers,
        find_tools,
        sampler_stages,
    )
    from edgellm.distribution import Distribution, Rows, Step
    from edgellm.engine.governor import Meters
    from edgellm.errors import (
        Cancelled,
        ConfigError,
        ConstraintError,
        ContextFull,
        DecodeError,
        DownloadError,
        EdgeError,
        FormatError,
        ModelCorrupt,
        ModelNotFound,
        ModelUnsupported,
        OutOfMemory,
        PluginError,
        SamplerError,
        SessionError,
        TemplateError,
        ToolError,
    )
    from edgellm.events import (
        ApprovalRequested,
        CallRepaired,
        ContextEvicted,
        Event,
        ExactnessChecked,
        HistoryRewritten,
        Notice,
        PrefillProgress,
        ReasoningDelta,
        TextDelta,
        TokenDrawn,
        ToolApproved,
        ToolCallBroken,
        ToolCallDelta,
        ToolCallName,
        ToolCallReady,
        ToolCallStarted,
        ToolChoiceScored,
        ToolDenied,
        ToolFinished,
        ToolRunning,
        TurnFinished,
    )
    from edgellm.folders import private_dir, state_dir
    from edgellm.grants import Grants, grant_origin
    from edgellm.ledger import Ledger, LedgerEntry
    from edgellm.models.adapter_set import adapter_set
    from edgellm.models.merges import Merges, MergeStep
    from edgellm.native.importance import ImportanceMatrix
    from edgellm.native.quantizer import QuantizePlan
    from edgellm.offline import (
        catalog,
        doctor,
        inspect,
        native_log,
        plan,
        pull,
        read_merges,
        read_vocabulary,
        remove_model,
        stored_models,
    )
    from edgellm.outlook import ContextOutlook
    from edgellm.planning.plan import Plan
    from edgellm.raw_output import (
        Parsed,
        parse,
        stream_parser,
    )
    from edgellm.requantizing import (
        calibrate,
        compare,
        keep_copy,
        optimize,
        plan_every_quantize,
        plan_quantize,
        quantize,
    )
    from edgellm.runtime import Runtime, load
    from edgellm.sampling.candidates import Candidates
    from edgellm.sampling.registry import Param, StageInfo
    from edgellm.sampling.spec import ChainSpec, StageSpec
    from edgellm.sampling.stage import Rewind, StageVocabulary, sampler
    from edgellm.toolbox.permission import Approval
    from edgellm.toolbox.tool import Tool, ToolContext, tool
    from edgellm.toolbox.toolset import Toolset
    from edgellm.trust import config_dir
    from edgellm.typed import typed_file, typed_place, typed_words
    from edgellm.types import (
        AdapterSet,
        ControlVector,
        LoadOptions,
        LoraAdapter,
        Message,
        Resumed,
        Segment,
        Span,
        SpanKind,
        ToolCall,
        ToolExample,
        ToolResult,
        ToolSpec,
    )
    from edgellm.usage import Leg, Usage
    from edgellm.weights.compare import Comparison, Measured
    from edgellm.weights.optimize import Optimization
