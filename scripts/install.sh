#!/bin/sh
# Installs edgellm and its development tools with $PIP, showing that the long compile is alive.
set -eu
PIP=${PIP:-python3 -m pip}
# Vision is not used: leaving it out saves a third of the compile. It changes no kernel, so sharing pip's
# wheel cache between builds with and without it is harmless.
export CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF}"
log=$(mktemp)
started=$(date +%s)
$PIP install --disable-pip-version-check --no-input -e ".[dev,hub]" >"$log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true; rm -f "$log"' INT TERM
while kill -0 $pid 2>/dev/null; do
    sleep 1
    elapsed=$(($(date +%s) - started))
    if [ $((elapsed % 30)) -eq 0 ] && [ $elapsed -gt 0 ]; then
        printf '  %3d s  %s\n' "$elapsed" "$(tail -n 1 "$log" | cut -c1-90)"
    fi
done
if ! wait $pid; then
    tail -n 25 "$log" >&2
    echo "install failed; the whole log is in $log" >&2
    exit 1
fi
rm -f "$log"
echo "  installed in $(($(date +%s) - started)) s"
