"""What the loaded library can compute on: backends, devices and their memory (ggml-backend.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from edgellm.errors import ConfigError
from edgellm.native.library import lib

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}


@dataclass(frozen=True, slots=True)
class Device:
    """One compute device: `kind` is cpu, gpu, igpu or accel; memory in bytes as the backend reports it."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


@cache
def ggml() -> Any:
    """The ggml library with the backend-device functions declared. Any: a ctypes CDLL."""
    lib()
    import llama_cpp._ggml as bindings

    library = bindings.libggml
    pointer = ctypes.c_void_p
    for name, arguments, result in (
        ("ggml_backend_dev_count", [], ctypes.c_size_t),
        ("ggml_backend_dev_get", [ctypes.c_size_t], pointer),
        ("ggml_backend_dev_name", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_description", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_type", [pointer], ctypes.c_int),
        ("ggml_backend_dev_memory", [pointer, pointer, pointer], None),
        ("ggml_backend_dev_by_name", [ctypes.c_char_p], pointer),
        ("ggml_backend_dev_by_type", [ctypes.c_int], pointer),
        ("ggml_backend_dev_buffer_type", [pointer], pointer),
        ("ggml_backend_reg_count", [], ctypes.c_size_t),
        ("ggml_backend_reg_get", [ctypes.c_size_t], pointer),
        ("ggml_backend_reg_name", [pointer], ctypes.c_char_p),
    ):
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = result
    return library


def devices() -> list[Device]:
    """All devices of the loaded library, the CPU among them."""
    library = ggml()
    found: list[Device] = []
    for index in range(library.ggml_backend_dev_count()):
        handle = library.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        library.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                name=library.ggml_backend_dev_name(handle).decode(),
                description=library.ggml_backend_dev_description(handle).decode(),
                kind=_KINDS.get(library.ggml_backend_dev_type(handle), "other"),
                free_bytes=free.value,
                total_bytes=total.value,
            )
        )
    return found


def backends() -> list[str]:
    """Names of the backends compiled in, such as CPU, Vulkan, CUDA, RPC."""
    library = ggml()
    return [
        library.ggml_backend_reg_name(library.ggml_backend_reg_get(index)).decode()
        for index in range(library.ggml_backend_reg_count())
    ]


def device_handle(name: str) -> int:
    """The ggml_backend_dev_t of a device. Raises ConfigError with the names there are."""
    handle = ggml().ggml_backend_dev_by_name(name.encode())
    if not handle:
        known = ", ".join(device.name for device in devices())
        raise ConfigError(f"no device named {name!r}.", hint=f"This build of llama.cpp has: {known}.")
    return int(handle)


def buffer_type(device_name: str) -> int:
    """The default ggml_backend_buffer_type_t of a device."""
    return int(ggml().ggml_backend_dev_buffer_type(device_handle(device_name)))
