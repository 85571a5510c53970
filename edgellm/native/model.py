"""A model's weights in memory."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import Cancelled, ConfigError, ModelCorrupt, ModelNotFound, ModelUnsupported, OutOfMemory
from edgellm.native.devices import buffer_type, device_handle, devices
from edgellm.native.held_interrupt import held_interrupt
from edgellm.native.library import captured_log, lib
from edgellm.native.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm.types import LoadOptions

_META_BUFFER = 1 << 12
_NO_ROPE = -1
_MOE_TENSORS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class _BufferOverride(ctypes.Structure):
    """llama_model_tensor_buft_override (llama.h)."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


class Model:
    """Weights loaded into memory, with metadata and vocabulary. Close it when no context uses it any more."""

    def __init__(self, pointer: Any, path: Path, keep_alive: tuple[Any, ...]) -> None:
        # Any: opaque llama_model pointer and the ctypes objects it refers to.
        self._llama = lib()
        self.pointer = pointer
        self.path = path
        self._keep_alive = keep_alive
        self.vocabulary = Vocabulary(self._llama.llama_model_get_vocab(pointer))
        self.metadata = self._read_metadata()
        self.n_ctx_train: int = self._llama.llama_model_n_ctx_train(pointer)
        self.n_embd: int = self._llama.llama_model_n_embd(pointer)
        self.n_layer: int = self._llama.llama_model_n_layer(pointer)
        self.n_params: int = self._llama.llama_model_n_params(pointer)
        self.size_bytes: int = self._llama.llama_model_size(pointer)
        self.is_recurrent: bool = bool(self._llama.llama_model_is_recurrent(pointer))
        self.is_hybrid: bool = bool(self._llama.llama_model_is_hybrid(pointer))
        # LLAMA_ROPE_TYPE_NONE: positions are learned, or there are none.
        self.has_rope: bool = self._llama.llama_model_rope_type(pointer) != _NO_ROPE
        self.has_encoder: bool = bool(self._llama.llama_model_has_encoder(pointer))
        self.has_decoder: bool = bool(self._llama.llama_model_has_decoder(pointer))

    @classmethod
    def load(
        cls,
        path: Path,
        options: LoadOptions,
        *,
        progress: Callable[[float], bool | None] | None = None,
        vocabulary_only: bool = False,
        is_rehearsal: bool = False,
    ) -> Model:
        """Loads a GGUF file; `vocabulary_only` leaves the weights out: no context can be made of it.

        `is_rehearsal` allocates no weights: contexts on it tell their size, and cannot decode.

        `progress` gets a fraction in [0, 1] and may return False to stop (raises Cancelled); what it raises ends the
        load, too. So does Ctrl-C.
        Raises ModelNotFound, ModelCorrupt, ModelUnsupported, OutOfMemory, ConfigError; the error carries
        llama.cpp's log.
        """
        llama = lib()
        if not path.is_file():
            raise ModelNotFound(
                f"no model file at {path}.", hint="Check the path, or see: edgellm models list."
            )
        was_stopped = False
        failure: BaseException | None = None

        def on_progress(fraction: float, _user: object) -> bool:
            nonlocal was_stopped, failure
            try:
                was_stopped = is_interrupted() or (progress is not None and progress(fraction) is False)
            except BaseException as error:  # raised in here it would be printed and lost
                failure, was_stopped = error, True
            return not was_stopped

        params = llama.llama_model_default_params()
        keep_alive = _fill_params(params, options)
        callback = llama.llama_progress_callback(on_progress)
        params.progress_callback = callback
        params.vocab_only = vocabulary_only
        if is_rehearsal:
            # Mapping the file would put its weights into the buffers after all.
            params.no_alloc, params.load_mode = True, llama.LLAMA_LOAD_MODE_NONE
        pointer: Any = None
        try:
            with held_interrupt() as is_interrupted, captured_log() as log:
                pointer = llama.llama_model_load_from_file(str(path).encode(), params)
            if failure is not None:
                raise failure
            if not pointer:
                if was_stopped:
                    raise Cancelled(f"loading {path.name} was cancelled.")
                raise _load_error(path, log.reason, log.text)
            return cls(pointer, path, (*keep_alive, callback))
        except BaseException:
            if pointer:
                llama.llama_model_free(pointer)
            raise

    def _read_metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for index in range(self._llama.llama_model_meta_count(self.pointer)):
            key = self._read_string(self._llama.llama_model_meta_key_by_index, index)
            found[key] = self._read_string(self._llama.llama_model_meta_val_str_by_index, index)
        return found

    def _read_string(self, function: Callable[..., int], index: int) -> str:
        size = _META_BUFFER
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = function(self.pointer, index, buffer, size)
            if n < size:
                return buffer.raw[: max(n, 0)].decode("utf-8", "replace")
            size = n + 1

    def live_pointer(self) -> Any:
        """The llama_model pointer. Raises ConfigError once the model is closed: llama.cpp would crash over it."""
        if not self.pointer:
            raise ConfigError("the model is closed.", hint="Load it again.")
        return self.pointer

    def chat_template(self, name: str | None = None) -> str | None:
        """A chat template of the GGUF: the default one, or one of the named ones such as "tool_use"."""
        raw = self._llama.llama_model_chat_template(self.live_pointer(), name.encode() if name else None)
        return raw.decode("utf-8", "replace") if raw else None

    @property
    def description(self) -> str:
        """Architecture, size and quantization in a few words (llama_model_desc)."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self.live_pointer(), buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    def close(self) -> None:
        """Frees the weights. A second call does nothing."""
        if self.pointer:
            self.vocabulary.close()
            self._llama.llama_model_free(self.pointer)
            self.pointer = None


def _fill_params(params: Any, options: LoadOptions) -> tuple[Any, ...]:
    """Writes the options into llama_model_params; returns what must stay alive while the model does."""
    llama = lib()
    keep: list[Any] = []
    has_gpu = any(device.kind in ("gpu", "igpu") for device in devices())
    if options.n_gpu_layers in ("all", "auto"):
        params.n_gpu_layers = -1 if has_gpu else 0
    else:
        params.n_gpu_layers = int(options.n_gpu_layers)
    params.main_gpu = options.main_gpu
    modes = {
        (True, False): llama.LLAMA_LOAD_MODE_MMAP,
        (True, True): llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (False, True): llama.LLAMA_LOAD_MODE_MLOCK,
        (False, False): llama.LLAMA_LOAD_MODE_NONE,
    }
    params.load_mode = modes[options.use_mmap, options.use_mlock]
    params.check_tensors = options.check_tensors
    if options.tensor_split:
        limit: int = llama.llama_max_devices()
        if len(options.tensor_split) > limit:
            raise ConfigError(
                f"tensor_split names {len(options.tensor_split)} devices, llama.cpp takes {limit} at most.",
                hint="Give one share for each GPU.",
            )
        shares = (ctypes.c_float * limit)(*options.tensor_split)
        params.tensor_split = shares
        keep.append(shares)
    if options.devices:
        handles = (ctypes.c_void_p * (len(options.devices) + 1))(*map(device_handle, options.devices), None)
        params.devices = ctypes.cast(handles, ctypes.c_void_p)
        keep.append(handles)
    overrides = _overrides(options)
    if overrides:
        table = (_BufferOverride * (len(overrides) + 1))()
        for row, (pattern, device) in zip(table, overrides, strict=False):
            row.pattern, row.buffer_type = pattern.encode(), buffer_type(device)
        params.tensor_buft_overrides = ctypes.cast(table, ctypes.c_void_p)
        keep.append(table)
    return tuple(keep)


def _overrides(options: LoadOptions) -> list[tuple[str, str]]:
    """(regular expression over tensor names, device name) pairs, as llama.cpp's --override-tensor and --n-cpu-moe."""
    pairs: list[tuple[str, str]] = []
    for text in options.override_tensors:
        pattern, equals, device = text.rpartition("=")
        if not equals or not pattern:
            raise ConfigError(
                f"override_tensors entry {text!r} is not PATTERN=DEVICE.",
                hint=r"For example: 'blk\.(1[0-9])\.ffn_.*_exps=CPU'.",
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"override_tensors pattern {pattern!r} is not a regular expression: {error}.",
                hint="Escape dots as '\\.'.",
            ) from error
        pairs.append((pattern, device))
    if options.cpu_moe == "all":
        pairs.append((_MOE_TENSORS, "CPU"))
    elif options.cpu_moe != "auto":
        pairs += [(rf"blk\.{layer}{_MOE_TENSORS}", "CPU") for layer in range(options.cpu_moe)]
    return pairs


def _load_error(path: Path, reason: str, log: str) -> Exception:
    lowered = reason.lower()
    if "unknown model architecture" in lowered:
        return ModelUnsupported(
            f"{path.name}: {reason}.",
            hint="This build of llama.cpp does not know it: a newer llama-cpp-python may.",
            log=log,
        )
    if "alloc" in lowered or "out of memory" in lowered:
        return OutOfMemory(
            f"{path.name} does not fit into memory: {reason}.",
            hint="Use a smaller quantization, fewer GPU layers, or leave mmap on.",
            log=log,
        )
    return ModelCorrupt(
        f"llama.cpp cannot load {path.name}: {reason or 'no reason given'}.",
        hint=f"Check the file: edgellm inspect {path}; fetch it again if it is damaged.",
        log=log,
    )
