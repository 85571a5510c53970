"""llama.cpp's samplers over one numpy array of candidate rows, zero-copy.

All calls from here go through `ctypes.PyDLL`, which keeps the GIL: a sampler runs for microseconds, and
giving the GIL away beside one busy Python thread costs up to a switch interval (5 ms) each time.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import SamplerError
from edgellm.native.library import lib
from edgellm.native.scan import ROW, VocabularyScan, close_holes, cut, draw, highest, probs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_ROW_BYTES = ROW.itemsize
_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp would draw a seed of its own


class _RowArray(ctypes.Structure):
    # llama_token_data_array; `data` as an integer address, which is quick to read and to write.
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


class _Calls:
    """The hot sampler functions, called with the GIL held."""

    def __init__(self) -> None:
        module = lib()
        if ctypes.sizeof(_RowArray) != ctypes.sizeof(module.llama_token_data_array):
            raise SamplerError(
                "llama_token_data_array has another size in this llama-cpp-python.",
                hint="Install the series edgellm is tested with; `edgellm doctor` names it.",
            )
        shared = ctypes.PyDLL(module._lib._name, handle=module._lib._handle)
        self.apply = shared.llama_sampler_apply
        self.apply.argtypes, self.apply.restype = (ctypes.c_void_p, ctypes.c_void_p), None
        self.accept = shared.llama_sampler_accept
        self.accept.argtypes, self.accept.restype = (ctypes.c_void_p, ctypes.c_int32), None
        self.reset = shared.llama_sampler_reset
        self.reset.argtypes, self.reset.restype = (ctypes.c_void_p,), None
        self.clone = shared.llama_sampler_clone
        self.clone.argtypes, self.clone.restype = (ctypes.c_void_p,), ctypes.c_void_p
        self.free = shared.llama_sampler_free
        self.free.argtypes, self.free.restype = (ctypes.c_void_p,), None
        self.member = shared.llama_sampler_chain_get
        self.member.argtypes = (ctypes.c_void_p, ctypes.c_int32)
        self.member.restype = ctypes.c_void_p


@cache
def _hot() -> _Calls:
    return _Calls()


def apply_address() -> int:
    """The address of llama_sampler_apply."""
    return _address(_hot().apply)


class CandidateBuffer:
    """Reusable candidate rows for one sequence: `n` rows, from `offset` on, are alive.

    `ids`, `logits`: strided views of shape (n_vocab,), int32 and float32, on the memory that llama.cpp reads
    and writes. A sampler may sort the rows, shorten them (`n`), move their start (xtc does) and choose
    (`selected`, an index counted from `offset`, -1 if none).
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.rows: NDArray[np.void] = np.zeros(n_vocab, dtype=ROW)
        self.ids: NDArray[np.int32] = self.rows["id"]
        self.logits: NDArray[np.float32] = self.rows["logit"]
        self._all_ids = np.arange(n_vocab, dtype=np.int32)
        self.scan = VocabularyScan(n_vocab)
        self._base: int = self.rows.ctypes.data
        self._array = _RowArray(self._base, 0, -1, False)
        self.address = ctypes.addressof(self._array)

    def fill(self, logits: NDArray[np.float32]) -> None:
        """All of the vocabulary, in the order of ids. logits: (n_vocab,)."""
        np.copyto(self.logits, logits)
        np.copyto(self.ids, self._all_ids)
        self._begin(self.n_vocab, is_sorted=False)

    def fill_rows(self, ids: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """Only some tokens. ids, logits: (n,), 1 ≤ n ≤ n_vocab."""
        n = len(ids)
        self.logits[:n] = logits
        self.ids[:n] = ids
        self._begin(n, is_sorted=False)

    def fill_top(self, logits: NDArray[np.float32], k: int) -> float:
        """The `k` most probable tokens (and a few more may come along), in the order of ids; gives the largest logit.

        logits: (n_vocab,), contiguous. Where that is not finite, no row is alive.
        """
        count, maximum = self.scan.top(logits, k, self.rows)
        self._begin(count, is_sorted=False)
        return maximum

    def _begin(self, n: int, *, is_sorted: bool) -> None:
        array = self._array
        array.data = self._base
        array.size = n
        array.selected = -1
        array.sorted = is_sorted

    @property
    def n(self) -> int:
        """Rows that are alive."""
        return self._array.size

    @n.setter
    def n(self, value: int) -> None:
        self._array.size = value

    @property
    def offset(self) -> int:
        """Index of the first row that is alive."""
        return (self._array.data - self._base) // _ROW_BYTES

    @property
    def is_sorted(self) -> bool:
        """True where the rows are known to be in descending order of logit."""
        return self._array.sorted

    @is_sorted.setter
    def is_sorted(self, value: bool) -> None:
        self._array.sorted = value

    @property
    def selected(self) -> int:
        """Index of the chosen row, counted from `offset`; -1 if none is chosen."""
        return self._array.selected

    @selected.setter
    def selected(self, value: int) -> None:
        self._array.selected = value

    def live_ids(self) -> NDArray[np.int32]:
        """View of the ids that are alive, (n,)."""
        start = self.offset
        return self.ids[start : start + self._array.size]

    def live_logits(self) -> NDArray[np.float32]:
        """View of the logits that are alive, (n,)."""
        start = self.offset
        return self.logits[start : start + self._array.size]

    def copy(self) -> bytes:
        """The rows that are alive, as bytes of ROW: quicker than any array can be made."""
        array = self._array
        return ctypes.string_at(array.data, array.size * _ROW_BYTES)

    def close_holes(self) -> None:
        """Takes rows at -inf out. Where there were some, a choice is forgotten."""
        array = self._array
        left = close_holes(array.data, array.size)
        if left < array.size:
            array.size, array.selected = left, -1

    def highest(self) -> float:
        """The largest logit that is alive, NaN where one is NaN."""
        return highest(self._array.data, self._array.size)

    def probs(self) -> NDArray[np.float32]:
        """Softmax of the logits that are alive, (n,), a new array."""
        return probs(self._array.data, self._array.size)

    def cut(self, k: int) -> None:
        """Keeps the `k` most probable rows, in order, equal logits by ascending id. A choice is forgotten."""
        array = self._array
        array.size = cut(array.data, array.size, k)
        array.sorted, array.selected = True, -1

    def draw(self, u: float) -> int:
        """The token that `u` in [0, 1) draws from the rows, or -1: see scan.draw."""
        return draw(self._array.data, self._array.size, u)

    def keep(self, selection: NDArray[Any], *, is_sorted: bool) -> None:
        """Keep the rows that a mask or indices (counted from `offset`) pick, in that order. A choice is forgotten."""
        self.fill_rows(self.live_ids()[selection], self.live_logits()[selection])
        self.is_sorted = is_sorted


class Owned:
    """A llama_sampler that is freed with the last reference to this."""

    def __init__(self, pointer: int, free: Callable[[int], None]) -> None:
        self._pointer, self._free = pointer, free

    def __del__(self) -> None:
        self._free(self._pointer)


class NativeSampler:
    """Neighbouring llama.cpp samplers in one C chain, which owns them. `names` are their stage names."""

    def __init__(self, names: Sequence[str], pointers: Sequence[Any]) -> None:
        # Any: opaque llama_sampler pointers.
        module = lib()
        self._calls = _hot()
        params = module.llama_sampler_chain_default_params()
        params.no_perf = True
        pointer = module.llama_sampler_chain_init(params)
        for member in pointers:
            module.llama_sampler_chain_add(pointer, member)
        self._adopt(tuple(names), pointer)

    def _adopt(self, names: tuple[str, ...], pointer: Any) -> None:
        # Any: an opaque llama_sampler pointer.
        self.names = names
        self._pointer: int | None = _address(pointer)
        # Who draws with the members' addresses holds this: another thread may close the chain meanwhile.
        self.owned: Owned | None = Owned(self._pointer, self._calls.free)
        self._members = [_address(self._calls.member(self._pointer, i)) for i in range(len(names))]

    def _live(self) -> int:
        if self._pointer is None:
            raise SamplerError(f"sampler {' | '.join(self.names)} is used after close().")
        return self._pointer

    def member_addresses(self) -> list[int]:
        """The members' addresses; they live as long as this is open."""
        self._live()
        return list(self._members)

    def apply(self, buffer: CandidateBuffer) -> None:
        """Run all members over the rows."""
        self._calls.apply(self._live(), buffer.address)

    def apply_member(self, index: int, buffer: CandidateBuffer) -> None:
        """Run one member over the rows, so that the rows can be read between two of them."""
        self._live()
        self._calls.apply(self._members[index], buffer.address)

    def accept(self, token: int) -> None:
        """Tell all members of a token that is now on the tape."""
        self._calls.accept(self._live(), token)

    def reset(self) -> None:
        """Forget all tokens; random generators start again from their seeds."""
        self._calls.reset(self._live())

    def clone(self) -> NativeSampler:
        """A copy with its own state."""
        self._live()
        copy = NativeSampler.__new__(NativeSampler)
        copy._calls = self._calls
        copy._adopt(self.names, self._calls.clone(self._pointer))
        return copy

    def close(self) -> None:
        """Every use raises from here on; the native memory is freed once nobody draws with it. May be called twice."""
        self._pointer = self.owned = None
        self._members = []


def _address(pointer: Any) -> int:
    # Any: ctypes gives pointers as int, as c_void_p, or as a typed pointer.
    if isinstance(pointer, int):
        return pointer
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    if not address:
        raise SamplerError("llama.cpp could not make a sampler.", hint="It may be out of memory.")
    return address


def native_seed(seed: int) -> int:
    """A 32-bit seed for llama.cpp's own generators that is never its mark for "random"."""
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else 0


def make_native(
    name: str,
    args: Mapping[str, Any],
    *,
    n_vocab: int,
    seed: int,
    vocab_pointer: Any = None,
) -> Any:
    """A raw llama_sampler pointer for stage `name` with complete arguments; the caller owns it.

    `seed` serves stages whose own `seed` argument is None. dry (with breakers) and infill need the model's
    `vocab_pointer`. Raises SamplerError without it, and KeyError for a name that is not native.
    """
    # Any: argument values are ints, floats, lists and dicts; pointers are opaque.
    if vocab_pointer is None and (name == "infill" or (name == "dry" and args["breakers"])):
        raise SamplerError(
            f"stage '{name}' needs a model's vocabulary.",
            hint="Use it in a chain that belongs to a loaded model.",
        )
    return _MAKERS[name](args, n_vocab, native_seed(seed), vocab_pointer)


def _seed(args: Mapping[str, Any], seed: int) -> int:
    own = args.get("seed")
    return seed if own is None else native_seed(own)


def _make_logit_bias(args: Mapping[str, Any], n_vocab: int, _seed: int, _vocab: Any) -> Any:
    # Any: see make_native.
    module = lib()
    bias: Mapping[int, float] = args["bias"]
    for token in bias:
        if not 0 <= token < n_vocab:
            raise SamplerError(
                f"logit_bias: token id {token} is outside the vocabulary of {n_vocab}.",
                hint="`edgellm tokenize` shows the ids of a text.",
            )
    entries = (module.llama_logit_bias * len(bias))()
    for entry, (token, value) in zip(entries, bias.items(), strict=True):
        entry.token, entry.bias = token, value
    return module.llama_sampler_init_logit_bias(n_vocab, len(bias), entries)


def _make_dry(args: Mapping[str, Any], _n_vocab: int, _seed: int, vocab: Any) -> Any:
    # Any: see make_native.
    module = lib()
    breakers = [text.encode("utf-8") for text in args["breakers"]]
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return module.llama_sampler_init_dry(
        vocab, args["multiplier"], args["base"], args["allowed_length"], args["last_n"], array, len(breakers)
    )


_MAKERS: dict[str, Callable[[Mapping[str, Any], int, int, Any], Any]] = {
    "penalties": lambda a, n, s, v: lib().llama_sampler_init_penalties(
        n, a["last_n"], a["repeat"], a["frequency"], a["presence"]
    ),
    "dry": _make_dry,
    "logit_bias": _make_logit_bias,
    "top_k": lambda a, n, s, v: lib().llama_sampler_init_top_k(a["k"]),
    "top_p": lambda a, n, s, v: lib().llama_sampler_init_top_p(a["p"], a["min_keep"]),
    "min_p": lambda a, n, s, v: lib().llama_sampler_init_min_p(a["p"], a["min_keep"]),
    "typical": lambda a, n, s, v: lib().llama_sampler_init_typical(a["p"], a["min_keep"]),
    "top_n_sigma": lambda a, n, s, v: lib().llama_sampler_init_top_n_sigma(a["n"]),
    "xtc": lambda a, n, s, v: lib().llama_sampler_init_xtc(
        a["probability"], a["threshold"], a["min_keep"], _seed(a, s)
    ),
    "temperature": lambda a, n, s, v: lib().llama_sampler_init_temp(a["temperature"]),
    "dynamic_temperature": lambda a, n, s, v: lib().llama_sampler_init_temp_ext(
        a["temperature"], a["delta"], a["exponent"]
    ),
    "infill": lambda a, n, s, v: lib().llama_sampler_init_infill(v),
    "mirostat": lambda a, n, s, v: lib().llama_sampler_init_mirostat(
        n, _seed(a, s), a["tau"], a["eta"], a["m"]
    ),
    "mirostat_v2": lambda a, n, s, v: lib().llama_sampler_init_mirostat_v2(_seed(a, s), a["tau"], a["eta"]),
    "adaptive_p": lambda a, n, s, v: lib().llama_sampler_init_adaptive_p(
        a["target"], a["decay"], _seed(a, s)
    ),
    "greedy": lambda a, n, s, v: lib().llama_sampler_init_greedy(),
    "dist": lambda a, n, s, v: lib().llama_sampler_init_dist(_seed(a, s)),
}

NATIVE_NAMES = frozenset(_MAKERS)
"""Stage names that llama.cpp implements."""
