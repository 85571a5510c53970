#!/bin/sh
# A virtual environment of its own in which llama.cpp has the Vulkan backend, for `make test-vulkan`.
set -eu
VENV=${VENV:-.venv-vulkan}
PYTHON=${PYTHON:-python3}
command -v glslc >/dev/null && test -d /usr/share/vulkan/icd.d || {
    echo "Vulkan is not here: apt-get install glslc libvulkan-dev spirv-headers mesa-vulkan-drivers" >&2
    exit 1
}
headers=$(cd "$(dirname "$0")" && pwd)/vulkan_old_headers.h
test -x "$VENV/bin/python" || $PYTHON -m venv "$VENV"
if ! "$VENV/bin/python" -c 'import ctypes, llama_cpp; from llama_cpp import _ggml; n = _ggml.libggml.ggml_backend_reg_count; n.restype = ctypes.c_size_t; raise SystemExit(n() < 2)' 2>/dev/null; then
    echo "Building llama.cpp with Vulkan: half an hour on two cores, once."
    # pip's wheel cache does not look at CMAKE_ARGS: it would give the build without Vulkan.
    CMAKE_ARGS="-DGGML_VULKAN=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include $headers'" "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-cache-dir --force-reinstall --no-binary llama-cpp-python "llama-cpp-python>=0.3.36,<0.3.37"
fi
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[dev]"
