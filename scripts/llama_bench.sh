#!/bin/sh
# Builds llama-bench from the llama.cpp that llama-cpp-python ships in its source archive, so that both are the same code
# compiled with the same flags. The binary goes to the user's cache folder, outside the repository.
set -eu
PYTHON=${PYTHON:-python3}
PLACE=${PLACE:-$($PYTHON -c 'from edgellm.folders import cache_dir; print(cache_dir())')/llama-bench}
JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}
version=$($PYTHON -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
echo "llama-cpp-python $version: fetching its source archive ..."
$PYTHON -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest "$work" "llama-cpp-python==$version"
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)
echo "building llama-bench with $JOBS jobs: some minutes ..."
# -fPIC as the wheel has it: position-independent code is part of what is compared.
cmake -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TOOLS=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
    >"$work/log" 2>&1 || { tail -n 25 "$work/log" >&2; exit 1; }
cmake --build "$work/build" --target llama-bench --parallel "$JOBS" >"$work/log" 2>&1 ||
    { tail -n 25 "$work/log" >&2; exit 1; }
mkdir -p "$PLACE"
cp -P "$work"/build/bin/lib*.so* "$work"/build/bin/lib*.dylib "$work/build/bin/llama-bench" "$PLACE" 2>/dev/null || true
test -x "$PLACE/llama-bench"
echo "$PLACE/llama-bench"
