"""A llama.cpp context: KV memory, batches, logits, state; every call's failure has a name."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import ConfigError, DecodeError, SessionError
from edgellm.load_check import KV_TYPES, WIDE_KV_TYPES
from edgellm.machine import usable_cores
from edgellm.native.context_error import context_error
from edgellm.native.devices import devices
from edgellm.native.library import captured_log, lib
from edgellm.native.lone_step import LoneStep
from edgellm.native.overlay import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.native.model import Model
    from edgellm.native.native_draw import NativeDraw
    from edgellm.native.overlay import Overlay
    from edgellm.types import LoadOptions

DEFAULT_CTX_LIMIT = 8192
DEFAULT_BATCH = 512
DEFAULT_KV_TYPE = "f16"
_ROPE = {"model": -1, "none": 0, "linear": 1, "yarn": 2}
# LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY (llama.h): of windowed memory the window, of hybrid memory the recurrent state.
_PARTIAL_ONLY = 1
_STATE_HEAD = 4
_MAX_LOGIT_VIEWS = 1024
_FLASH = {"auto": -1, "off": 0, "on": 1}


State = bytes | memoryview
"""The memory of a sequence outside of the context: never changed, so it can be shared."""


class DecodeStatus(Enum):
    """What llama_decode said (llama.h)."""

    DONE = 0
    NO_ROOM = 1
    ABORTED = 2
    FAILED = -1


_STATUSES = {status.value: status for status in DecodeStatus}


def cache_type(name: str) -> int:
    """The ggml_type of a KV cache type name such as "q8_0". Raises ConfigError naming the choices."""
    llama = lib()
    if name not in KV_TYPES:
        raise ConfigError(f"KV cache type {name!r} is unknown.", hint=f"Choose one of {', '.join(KV_TYPES)}.")
    return int(getattr(llama, f"GGML_TYPE_{name.upper()}"))


def settled(options: LoadOptions) -> LoadOptions:
    """The options with the defaults in place of "auto" KV types and of batch sizes of 0."""
    return replace(
        options,
        n_batch=options.n_batch or DEFAULT_BATCH,
        n_ubatch=options.n_ubatch or DEFAULT_BATCH,
        kv_type_k=DEFAULT_KV_TYPE if options.kv_type_k == "auto" else options.kv_type_k,
        kv_type_v=DEFAULT_KV_TYPE if options.kv_type_v == "auto" else options.kv_type_v,
    )


class Context:
    """One llama_context. Owned by one thread; only `abort` may be called from another."""

    def __init__(
        self,
        model: Model,
        options: LoadOptions,
        *,
        embeddings: bool = False,
        eval_callback: Any = None,  # Any: a ctypes function object, called for each node of the graph
    ) -> None:
        llama = self._llama = lib()
        self.model = model
        options = settled(options)
        params = llama.llama_context_default_params()
        params.n_ctx = options.n_ctx or min(model.n_ctx_train or DEFAULT_CTX_LIMIT, DEFAULT_CTX_LIMIT)
        params.n_seq_max = 1 if embeddings else options.n_seq_max or default_sequences(model)
        # Context and batch have room for a token of each sequence: llama.cpp ends the process over less. It rounds
        # the context up to 256 anyway.
        params.n_ctx = max(params.n_ctx, params.n_seq_max)
        params.n_batch = max(min(options.n_batch, params.n_ctx), params.n_seq_max)
        params.n_ubatch = min(options.n_ubatch, params.n_batch)
        cores = usable_cores()
        params.n_threads = options.threads or cores
        params.n_threads_batch = options.threads_batch or options.threads or cores
        params.flash_attn_type = _FLASH[options.flash_attention]
        params.type_k = cache_type(options.kv_type_k)
        params.type_v = cache_type(options.kv_type_v)
        params.rope_scaling_type = _ROPE[options.rope_scaling]
        params.rope_freq_base = options.rope_freq_base
        params.rope_freq_scale = options.rope_freq_scale
        params.yarn_orig_ctx = options.yarn_orig_ctx
        params.swa_full = options.swa_full
        params.kv_unified = True
        params.no_perf = True
        params.embeddings = embeddings
        if embeddings and _pooling_of(model) in (None, "0"):
            params.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
        # ggml calls this after every graph node. A Python function would wait for the GIL each time, so a C
        # function stands in: strlen of a two-byte buffer is 0 until byte 0 is set.
        self._abort_flag = ctypes.create_string_buffer(2)
        self._abort_callback = _abort_function(llama)
        params.abort_callback = self._abort_callback
        params.abort_callback_data = ctypes.cast(self._abort_flag, ctypes.c_void_p)
        if eval_callback is not None:
            params.cb_eval = self._eval_callback = eval_callback
        with captured_log() as log:
            self.pointer = llama.llama_init_from_model(model.live_pointer(), params)
        if not self.pointer:
            raise context_error(log.reason, log.text, options)
        self._memory = llama.llama_get_memory(self.pointer)
        # llama.cpp shifts quantized keys through the rotation that it keeps them in, and ends the process where their
        # head size has none: it is made for multiples of 64.
        self._has_loose_keys = options.kv_type_k not in WIDE_KV_TYPES and "attn_rot_k = 0" in log.text
        self.n_ctx: int = llama.llama_n_ctx(self.pointer)
        self.n_batch: int = llama.llama_n_batch(self.pointer)
        self.n_seq_max: int = llama.llama_n_seq_max(self.pointer)
        self.n_threads: int = llama.llama_n_threads(self.pointer)
        self._n_vocab = model.vocabulary.size
        self._logit_views: dict[int, NDArray[np.float32]] = {}
        self._llama_decode = self._llama.llama_decode
        self._logits_address = _logits_function(llama)
        self._window: int = llama.llama_model_n_swa(model.live_pointer())
        # A sliding window counts too: what was parked or saved comes back without the cells that had left it.
        self.can_always_cut = not (self._window or model.is_recurrent or model.is_hybrid)
        self._batch = _Batch(llama, self.n_batch, self.n_seq_max)
        self._lone_step = LoneStep.of(llama, self.pointer, self._batch.value)
        self.can_draw = self._lone_step is not None
        # None while it is being changed: what the context has then is not known.
        self.overlay: Overlay | None = PLAIN

    def _live(self) -> Any:
        # Any: an opaque llama_context pointer. llama.cpp would crash the process over one that is gone.
        if not self.pointer:
            raise ConfigError("the context is closed.", hint="Load the model again.")
        return self.pointer

    def use(self, overlay: Overlay) -> None:
        """Lays these adapters over the weights from the next decode on. Not while one runs.

        What the memory holds stays as it was computed. The next decode plans its graph anew: nothing is done where
        they are in use already. Raises ConfigError.
        """
        if overlay is self.overlay:
            return
        before, self.overlay = self.overlay, None
        pointer = self._live()
        count = len(overlay.lora)
        pointers = (self._llama.llama_adapter_lora_p_ctypes * count)(*(one for one, _ in overlay.lora))
        scales = (ctypes.c_float * count)(*(scale for _, scale in overlay.lora))
        if self._llama.llama_set_adapters_lora(pointer, pointers, count, scales) != 0:
            raise ConfigError(
                "llama.cpp refused the LoRA adapters.", hint="Load them one by one to find which."
            )
        if before is None or overlay.directions is not before.directions:
            self._steer(overlay.directions)
        self.overlay = overlay

    def _steer(self, directions: NDArray[np.float32] | None) -> None:
        """Sets the control vector (n_layer, n_embd), whose first row is not used; None: there is none."""
        data, size, n_embd, last = None, 0, 0, 0
        if directions is not None:
            # llama.cpp has no place for layer 0.
            rows = np.ascontiguousarray(directions[1:], dtype=np.float32)
            data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            size, n_embd, last = rows.size, rows.shape[1], len(rows)
        with captured_log() as log:
            status: int = self._llama.llama_set_adapter_cvec(self._live(), data, size, n_embd, 1, last)
        if status != 0:
            raise ConfigError(
                f"llama.cpp refused the control vector: {log.reason or 'no reason given'}.",
                hint="Use one made for this model.",
                log=log.text,
            )

    def set_threads(self, count: int) -> None:
        """Decode and prefill with so many threads from the next decode on. Not while one runs."""
        self._llama.llama_set_n_threads(self._live(), count, count)
        self.n_threads = count

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> DecodeStatus:
        """Decodes rows of (token, position, sequence, wants_logits), at most n_batch of them.

        After NO_ROOM the memory is as before; after ABORTED or FAILED part of the rows may remain in it, and the
        caller must cut them.
        """
        pointer = self._live()
        self._batch.fill(rows)
        return _STATUSES.get(self._llama_decode(pointer, self._batch.value), DecodeStatus.FAILED)

    def decode_one(self, token: int, position: int, seq: int) -> bool:
        """`decode` for one row whose logits are wanted, as a lone decode loop does it for each token; false where it
        was not done."""
        pointer = self._live()
        batch = self._batch
        batch.one(token, position, seq)
        return self._llama_decode(pointer, batch.value) == 0

    def decode_and_draw(self, token: int, position: int, seq: int, draw: NativeDraw) -> int:
        """`decode_one` and the draw behind it in one call, as `LoneStep.call` gives it. Where `can_draw` is true."""
        step = self._lone_step
        assert step is not None
        if not self.pointer:
            self._live()
        return step.call(step.address, draw.address, token, position, seq)

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits (n_vocab,) of a row of the last batch, zero-copy: valid until the next decode."""
        address: int | None = self._logits_address(self._live(), row)
        if not address:
            raise DecodeError(
                f"llama.cpp holds no logits for batch row {row}.", hint="This is a bug: report it."
            )
        # llama.cpp writes to the same few places each time; making a view of one costs more than the draw does.
        view = self._logit_views.get(address)
        if view is None:
            if len(self._logit_views) >= _MAX_LOGIT_VIEWS:
                self._logit_views.clear()
            memory = (ctypes.c_float * self._n_vocab).from_address(address)
            view = self._logit_views[address] = np.ctypeslib.as_array(memory)
        return view

    def abort(self) -> None:
        """Makes a running decode stop within milliseconds. Safe from any thread."""
        self._abort_flag[0] = b"\x01"

    def clear_abort(self) -> None:
        """Lets decodes run again."""
        self._abort_flag[0] = b"\x00"

    def remove(self, seq: int, start: int, end: int = -1) -> bool:
        """Removes positions [start, end) of a sequence; false where the memory cannot be cut in part."""
        self._live()
        return bool(self._llama.llama_memory_seq_rm(self._memory, seq, start, end))

    @property
    def can_shift(self) -> bool:
        """Whether positions in the memory can be moved (llama_memory_can_shift, and it does not crash)."""
        self._live()
        return not self._has_loose_keys and bool(self._llama.llama_memory_can_shift(self._memory))

    def shift(self, seq: int, start: int, delta: int) -> None:
        """Moves the positions of sequence `seq` from `start` on by `delta` (llama_memory_seq_add)."""
        self._live()
        self._llama.llama_memory_seq_add(self._memory, seq, start, -1, delta)

    def copy(self, source: int, target: int) -> None:
        """Makes `target` share all positions of `source` (no computation)."""
        self._live()
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def position_range(self, seq: int) -> tuple[int, int]:
        """(smallest, largest) position of a sequence in the memory; (-1, -1) where it is empty."""
        self._live()
        return (
            self._llama.llama_memory_seq_pos_min(self._memory, seq),
            self._llama.llama_memory_seq_pos_max(self._memory, seq),
        )

    def has_window(self, seq: int, length: int) -> bool:
        """Does a sequence of `length` tokens still hold all that sliding-window layers need for the next one?

        llama.cpp reuses cells that have left the window, and leaves them out of a sequence's state: after a cut
        the window begins earlier, and some of it may be gone. True for models without a window.
        """
        if not self._window or not length:
            return True
        # A sequence's state begins with these words: magic, sequence, streams (1), cells, and for each cell its
        # position, 1 and the sequence. A buffer that ends there spares llama.cpp the copy of the tensors.
        words = (ctypes.c_uint32 * (_STATE_HEAD + 3 * self._window))()
        target = ctypes.cast(words, ctypes.POINTER(ctypes.c_uint8))
        with captured_log(is_kept=False):
            self._llama.llama_state_seq_get_data_ext(
                self._live(), target, ctypes.sizeof(words), seq, _PARTIAL_ONLY
            )
        found = set(words[_STATE_HEAD::3][: words[_STATE_HEAD - 1]])
        return words[_STATE_HEAD - 2] == 1 and found.issuperset(
            range(max(0, length - self._window + 1), length)
        )

    def state_size(self, seq: int, *, is_partial: bool = False) -> int:
        """How many bytes `state` gives."""
        flags = _PARTIAL_ONLY if is_partial else 0
        return int(self._llama.llama_state_seq_get_size_ext(self._live(), seq, flags))

    def state(self, seq: int, *, is_partial: bool = False) -> State:
        """The memory of a sequence as bytes (llama_state_seq_get_data_ext), the only copy that is made of it.

        `is_partial`: only what cannot be had back by cutting, the recurrent state or the sliding window.
        """
        flags = _PARTIAL_ONLY if is_partial else 0
        buffer = np.empty(self.state_size(seq, is_partial=is_partial), dtype=np.uint8)
        written: int = self._llama.llama_state_seq_get_data_ext(
            self.pointer, _address(buffer), buffer.size, seq, flags
        )
        return buffer.data[:written]

    def set_state(self, seq: int, data: State, *, is_partial: bool = False) -> None:
        """Puts saved memory into a sequence. Raises SessionError where llama.cpp refuses it."""
        buffer = np.frombuffer(data, dtype=np.uint8)
        flags = _PARTIAL_ONLY if is_partial else 0
        with captured_log() as log:
            read: int = self._llama.llama_state_seq_set_data_ext(
                self._live(), _address(buffer), buffer.size, seq, flags
            )
        if read == 0:
            raise SessionError(
                f"llama.cpp refuses the saved KV state: {log.reason or 'it does not fit this context'}.",
                hint="It is rebuilt from the tape.",
                log=log.text,
            )

    def embeddings(self, seq: int) -> NDArray[np.float32]:
        """The pooled embedding (n_embd,) of a sequence, or raises DecodeError where the model gives none."""
        pointer = self._llama.llama_get_embeddings_seq(self._live(), seq)
        if not pointer:
            raise DecodeError("llama.cpp gave no embedding.", hint="Does the model have an embedding output?")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_embd,)).copy()

    def close(self) -> None:
        """Frees the context. A second call does nothing."""
        if self.pointer:
            self._batch.free()
            self._llama.llama_free(self.pointer)
            self.pointer = None


def _address(buffer: NDArray[np.uint8]) -> Any:
    # Any: a ctypes pointer, which llama.cpp's signatures want; it keeps the buffer alive.
    return buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _Batch:
    """A llama_batch allocated once and filled by numpy views."""

    def __init__(self, llama: Any, capacity: int, n_seq_max: int) -> None:
        self._llama = llama
        self.capacity = capacity
        self.value = llama.llama_batch_init(capacity, 0, 1)
        view = np.ctypeslib.as_array
        self._token = view(self.value.token, shape=(capacity,))
        self._pos = view(self.value.pos, shape=(capacity,))
        self._logits = view(self.value.logits, shape=(capacity,))
        view(self.value.n_seq_id, shape=(capacity,))[:] = 1
        self._seq = [self.value.seq_id[i] for i in range(capacity)]
        # Writing through a pointer is quicker than through a numpy view.
        self._first_token, self._first_pos = self.value.token, self.value.pos
        self._first_logits = self.value.logits

    def fill(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        n = len(rows)
        if n > self.capacity:
            raise ValueError(f"batch of {n} rows is larger than n_batch {self.capacity}")
        self.value.n_tokens = n
        for i, (token, position, seq, wants_logits) in enumerate(rows):
            self._token[i] = token
            self._pos[i] = position
            self._seq[i][0] = seq
            self._logits[i] = wants_logits

    def one(self, token: int, position: int, seq: int) -> None:
        self.value.n_tokens = 1
        self._first_token[0] = token
        self._first_pos[0] = position
        self._seq[0][0] = seq
        self._first_logits[0] = 1

    def free(self) -> None:
        self._llama.llama_batch_free(self.value)


def default_sequences(model: Model) -> int:
    """How many chats and branches share a context where nobody says."""
    return 4 if model.is_recurrent or model.is_hybrid else 16


def _pooling_of(model: Model) -> str | None:
    architecture = model.metadata.get("general.architecture", "")
    return model.metadata.get(f"{architecture}.pooling_type")


def _logits_function(llama: Any) -> Any:
    """llama_get_logits_ith, giving an address. It waits for a GPU to finish, and there it lets others run; on the CPU
    there is nothing to wait for, and giving the GIL away beside a busy Python thread costs 5 ms."""
    has_gpu = any(device.kind in ("gpu", "igpu") for device in devices())
    library = llama._lib if has_gpu else ctypes.PyDLL(llama._lib._name, handle=llama._lib._handle)
    function = (
        ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        if has_gpu
        else ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
    )
    return function(("llama_get_logits_ith", library))


def _abort_function(llama: Any) -> Any:
    libc = ctypes.CDLL(None)
    return ctypes.cast(libc.strlen, llama.ggml_abort_callback)
