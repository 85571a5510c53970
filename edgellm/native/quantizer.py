"""llama.cpp's quantizer: a GGUF in another quantization."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

from edgellm.errors import ConfigError, ModelCorrupt, ModelNotFound
from edgellm.native.context import usable_cores
from edgellm.native.library import captured_log, lib

KINDS = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S"),
)
"""Quantizations offered, finest first. Those that need an importance matrix are left out."""


def quantize_file(source: Path, target: Path, kind: str, *, threads: int = 0) -> Path:
    """Writes `source` in quantization `kind` to `target`, under another name until it is whole.

    Tensors that are quantized already are quantized again, which loses more than starting from F16. `threads` 0
    is all cores. Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    llama = lib()
    name = kind.upper()
    if name not in KINDS:
        raise ConfigError(f"quantization {kind!r} is unknown.", hint=f"Choose one of {', '.join(KINDS)}.")
    if not source.is_file():
        raise ModelNotFound(f"no model file at {source}.", hint="Check the path.")
    if target.exists():
        raise ConfigError(f"{target} exists already.", hint="Remove it, or choose another name.")
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = threads or usable_cores()
    params.allow_requantize = True
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {target.parent}: {error.strerror}.", hint="Choose a folder you can write to."
        ) from error
    os.close(handle)
    try:
        with captured_log() as log:
            status: int = llama.llama_model_quantize(
                str(source).encode(), temporary.encode(), ctypes.byref(params)
            )
        if status != 0:
            raise ModelCorrupt(
                f"llama.cpp cannot quantize {source.name}: {log.reason or 'no reason given'}.",
                hint=f"Check the file (edgellm inspect {source}) and the free disk space.",
                log=log.text,
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target
