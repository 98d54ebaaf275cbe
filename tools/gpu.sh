#!/usr/bin/env bash
# Builds, tests, sanitizes and times curvext on a machine with a GPU, with that machine's own python3.
#
#   [OUT=folder] [PYTHON=python3] tools/gpu.sh [step ...]
#
# Steps: build info bench bench16 benchtf32 tests memcheck racecheck, by default, at most twelve minutes: what is scarce
# first, so that a run which is cut off has figures;
# and compiled (the tests of compile=True), resnet50, gpt2 (that network beside other libraries, compiled ones included,
# with what of them is installed), which take some minutes each. They want the build of before.
# Needs torch with CUDA, nvcc, pytest and setuptools there; no network and no virtual environment. Every step is
# reported and the next one runs whatever came of it; the exit status is 1 if any failed. In OUT (default:
# benchmarks/results/<machine>) lie log.txt, summary.txt and the JSON of the benchmarks; a second run adds to them.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# named after the hardware, as `python -m benchmarks` does
OUT=${OUT:-benchmarks/results/$("$PYTHON" -c 'from benchmarks.machine import machine; print(machine("cuda"))')} || exit 1
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for home in ${CUDA_HOME:+"$CUDA_HOME"} /usr/local/cuda /usr/local/cuda-[0-9]*; do
    [ -x "$home/bin/nvcc" ] && export CUDA_HOME=$home PATH=$home/bin:$PATH && break
done
# torch looks for ninja on PATH alone; without it one compiler runs at a time
PATH=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
# where .git did not travel, whoever runs this names the commit
commit=$(git rev-parse HEAD 2>/dev/null) && export CURVEXT_COMMIT=${CURVEXT_COMMIT:-$commit}
echo "nvcc: $(command -v nvcc || echo none), CUDA_HOME: ${CUDA_HOME:-none}, ninja: $(ninja --version 2>/dev/null || echo none)," \
    "commit: ${CURVEXT_COMMIT:-unknown}" | tee -a "$OUT/log.txt"

failed=()

report() {
    printf '%-10s %4s s  %s\n' "$@" | tee -a "$OUT/summary.txt"
}

# step <name> <seconds> <command...>
step() {
    local name=$1 limit=$2 status begin=$SECONDS
    shift 2
    echo "=== $name (at most ${limit} s): $*" | tee -a "$OUT/log.txt"
    bounded "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    local words="ok"
    [ "$status" -ne 0 ] && failed+=("$name") && words="FAILED: exit status $status"
    [ "$status" -eq 124 ] && words="FAILED: out of time after ${limit} s"
    report "$name" $((SECONDS - begin)) "$words"
}

# A command under a time limit; one of the functions here keeps the limit itself.
bounded() {
    # interrupted, so that it says what it had found until then
    if declare -F "$2" >/dev/null; then "$2" "$1"; else timeout --signal=INT --kill-after=10 "$@"; fi
}

#: files whose tests run in one process each, as most of their time is Python's
SHARDS=(
    "tests/kernels/test_outer_[cdg]*.py"
    "tests/kernels/test_outer_[ns]*.py"
    "tests/kernels/test_softmax_[hs]*.py"
    "tests/kernels/test_softmax_r*.py"
    "tests/kernels/test_mse_*.py tests/kernels/test_sigmoid_*.py"
    "tests/operators/test_empirical_fisher.py"
    "tests/operators/test_[fghjl]*.py tests/test_h[ao]*.py tests/kronecker"
    "tests/test_[fjl]*.py tests/evaluation tests/problem tests/losses tests/gradients tests/per_sample"
    "tests/test_[bcdoprstu]*.py tests/products tests/operations tests/algorithms --deselect tests/products/test_compiled.py"
)

# The tests of CUDA, shard beside shard. Warnings that only CUDA gives are counted, and no errors: each process's first
# backward pass may say that cuBLAS found no context. What needs no GPU has cuda in its file's name alone.
run_shards() {
    local shard=0 status=0 code processes=()
    for files in "${SHARDS[@]}"; do
        # shellcheck disable=SC2086  # patterns are to be expanded
        timeout --signal=INT --kill-after=10 "$1" "$PYTHON" -m pytest -q --tb=short --maxfail=40 -W default \
            -p no:cacheprovider -k "cuda and not emulation and not test_cuda_check" $files >"$scratch/$shard" 2>&1 &
        processes+=($!)
        shard=$((shard + 1))
    done
    for shard in "${!processes[@]}"; do
        wait "${processes[$shard]}"
        code=$?
        echo "--- ${SHARDS[$shard]}: exit status $code"
        tail -c 1000000 "$scratch/$shard"
        echo "warnings: $(grep -c 'Warning: ' "$scratch/$shard")"
        [ "$code" -eq 0 ] || status=$code
    done
    return "$status"
}

# Some thirty direct calls, without a test frame; the tests would take hours.
sanitize() {
    local tool=$1 limit=$2
    if ! command -v compute-sanitizer >/dev/null; then
        report "$tool" – 'SKIPPED: compute-sanitizer is not installed'
        return
    fi
    # torch's caching allocator hides overruns into its own blocks
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" "$limit" compute-sanitizer --tool "$tool" \
        --error-exitcode 99 --kernel-regex kns=curvext "$PYTHON" tools/direct_calls.py cuda
}

bench() {
    step "$1" "$2" "$PYTHON" -m benchmarks kernels --device cuda --eager --dtype "$3" --float32 "$4" --out "$5"
}

run() {
    case $1 in
        build) step build 150 env CURVEXT_CUDA=1 CURVEXT_REQUIRE_EXTENSION=1 "$PYTHON" setup.py build_ext --inplace ;;
        info) step info 30 "$PYTHON" -m curvext info ;;
        tests) step tests 240 run_shards ;;
        memcheck) sanitize memcheck 65 ;;
        racecheck) sanitize racecheck 45 ;;
        bench) bench bench 75 float32 highest "$OUT" ;;
        benchtf32) bench benchtf32 75 float32 high "$OUT/tf32" ;;
        compiled)
            step compiled 280 "$PYTHON" -m pytest -q --tb=short --maxfail=10 -p no:cacheprovider \
                -k cuda tests/products/test_compiled.py
            ;;
        resnet50 | gpt2) step "$1" 290 "$PYTHON" -m benchmarks models "$1" --device cuda --out "$OUT/$1" ;;
        bench16) bench bench16 50 bfloat16 highest "$OUT/bfloat16" ;;
        *) echo "gpu.sh: no step $1" && failed+=("$1") ;;
    esac
}

for name in "${@:-build info bench bench16 benchtf32 tests memcheck racecheck}"; do
    for one in $name; do run "$one"; done
done

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" | tee -a "$OUT/summary.txt"; exit 1; }
