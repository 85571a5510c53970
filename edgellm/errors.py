"""The one exception tree: every error says what happened, to what, and what to do next."""

from __future__ import annotations


class EdgeError(Exception):
    """Root of every error edgellm raises on purpose.

    `message` says what happened and to what; `hint` says what to do next; `log` holds what
    llama.cpp wrote while it happened (may be empty).
    """

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class ConfigError(EdgeError):
    """An option, a file or a call of the API is not valid."""


class ModelNotFound(EdgeError):
    """No model of that name or path."""


class ModelCorrupt(EdgeError):
    """The file is not a GGUF, is cut short, or its hash differs."""


class ModelUnsupported(EdgeError):
    """A sound GGUF that this build of llama.cpp, or this call, cannot use."""


class DownloadError(EdgeError):
    """A model could not be fetched: network, disk space, licence not accepted."""


class OutOfMemory(EdgeError):
    """Weights, KV cache or compute buffers do not fit."""


class ContextFull(EdgeError):
    """The tokens do not fit into the context window; the tape is as it was before."""


class DecodeError(EdgeError):
    """llama.cpp failed to decode a batch; the tape is as it was before."""


class Cancelled(EdgeError):
    """Prefill or decode was cancelled; the tape is as it was before that step."""


class TemplateError(EdgeError):
    """The chat template is missing, does not parse, or refuses the conversation."""


class FormatError(EdgeError):
    """A tool-call format is unknown or cannot express what is asked."""


class ConstraintError(EdgeError):
    """A grammar or JSON Schema cannot be enforced."""


class ToolError(EdgeError):
    """A tool is declared wrongly, or a tool reports a failure to the model."""


class SamplerError(EdgeError):
    """A sampler chain does not parse, or one of its stages misbehaved."""


class PluginError(EdgeError):
    """A plugin file or entry point cannot be loaded."""


class SessionError(EdgeError):
    """A saved session cannot be read, or does not fit this model."""
