"""The process in which llama.cpp quantizes: a job as one JSON line on stdin, llama.cpp's log on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from edgellm.native.importance import ImportanceMatrix
from edgellm.native.library import lib
from edgellm.native.quantizer import DONE_MARK

_DEBUG = 1  # ggml_log_level


def main() -> int:
    """Runs the job; 0 where it went well."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())  # Any: JSON
    threading.Thread(
        target=_leave_with_parent, args=(Path(job["target"]), job["is_dry"]), daemon=True
    ).start()
    llama = lib()
    callback = llama.llama_log_callback(_print)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    params = llama.llama_model_quantize_default_params()
    options = job["options"]
    params.nthread = options["threads"]
    params.allow_requantize = True
    params.dry_run = job["is_dry"]
    params.pure = options["pure"]
    # What the parameters point to must live until the end.
    overrides = _overrides(llama, options["tensors"])
    matrix = _importance(llama, options["importance"])
    if overrides is not None:
        params.tt_overrides = overrides
    if matrix is not None:
        params.imatrix = matrix[0]
    for kind in job["kinds"]:
        params.only_copy = kind == "COPY"
        if kind != "COPY":
            name = "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
            params.ftype = getattr(llama, name)
        files = job["source"].encode(), job["target"].encode()
        if llama.llama_model_quantize(*files, ctypes.byref(params)) != 0:
            return 1
        os.write(1, f"{DONE_MARK} {kind}\n".encode())
    return 0


def _overrides(llama: Any, tensors: dict[str, str]) -> Any:
    # Any: an array of llama_model_tensor_override, ended by one without a pattern.
    if not tensors:
        return None
    rows = [
        llama.llama_model_tensor_override(pattern.encode(), getattr(llama, f"GGML_TYPE_{kind.upper()}"))
        for pattern, kind in tensors.items()
    ]
    return (llama.llama_model_tensor_override * (len(rows) + 1))(*rows)


def _importance(llama: Any, file: str) -> tuple[Any, list[Any]] | None:
    # Any: an array of llama_model_imatrix_data, ended by one without a name, and the numbers it points to.
    if not file:
        return None
    values = ImportanceMatrix.read(Path(file)).values()
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [
        llama.llama_model_imatrix_data(name.encode(), numbers.ctypes.data_as(pointer), numbers.size)
        for name, numbers in values.items()
    ]
    return (llama.llama_model_imatrix_data * (len(rows) + 1))(*rows), list(values.values())


def _leave_with_parent(target: Path, is_dry: bool) -> None:
    """Waits for the end of stdin: whoever asked is gone, and nothing half may stay."""
    sys.stdin.read()
    try:
        if not is_dry:
            target.unlink(missing_ok=True)
    finally:  # Windows removes nothing that is open
        os._exit(1)


def _print(level: int, text: bytes, _user_data: object) -> None:
    if level != _DEBUG:
        os.write(1, text)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Without waiting for the thread that reads stdin.
    os._exit(code)
