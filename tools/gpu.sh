#!/usr/bin/env bash
# Builds, tests, sanitizes and times curvext on a machine with a GPU, with that machine's own python3.
#
#   [OUT=folder] [PYTHON=python3] tools/gpu.sh
#
# Needs torch with CUDA, nvcc, pytest and setuptools there; no network and no virtual environment. Every step is
# reported and the next one runs whatever came of it; the exit status is 1 if any failed. Logs and results go to
# OUT (default: benchmarks/results/<machine>). At most nine minutes.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# named after the hardware, as `python -m benchmarks` does
OUT=${OUT:-benchmarks/results/$("$PYTHON" -c 'from benchmarks.machine import machine; print(machine("cuda"))')} || exit 1
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
for home in "${CUDA_HOME:-}" /usr/local/cuda; do
    [ -x "$home/bin/nvcc" ] && export CUDA_HOME=$home PATH=$home/bin:$PATH && break
done

failed=()
summary=()

# step <name> <seconds> <command...>
step() {
    local name=$1 limit=$2 status begin=$SECONDS
    shift 2
    echo "=== $name (at most ${limit} s): $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    local words="ok"
    [ "$status" -eq 124 ] && words="FAILED: out of time after ${limit} s"
    [ "$status" -ne 0 ] && [ "$status" -ne 124 ] && words="FAILED: exit status $status"
    [ "$status" -ne 0 ] && failed+=("$name")
    summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - begin)) "$words")")
}

sanitize() {
    local tool=$1 limit=$2
    if ! command -v compute-sanitizer >/dev/null; then
        summary+=("$(printf '%-10s    – s  %s' "$tool" 'SKIPPED: compute-sanitizer is not installed')")
        return
    fi
    # torch's caching allocator hides overruns into its own blocks
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" "$limit" compute-sanitizer --tool "$tool" \
        --error-exitcode 99 --kernel-regex kns=curvext --target-processes all \
        "$PYTHON" -m pytest -q -x -k cuda tests/kernels
}

step build 150 "$PYTHON" setup.py build_ext --inplace
step info 30 "$PYTHON" -m curvext info
step tests 120 "$PYTHON" -m pytest -q tests
sanitize memcheck 75
sanitize racecheck 60
step bench 105 "$PYTHON" -m benchmarks kernels --device cuda --out "$OUT"

echo
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
