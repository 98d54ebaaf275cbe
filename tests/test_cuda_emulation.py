"""Tests of the kernels on the CUDA sources, emulated by tools/cuda_emulation.py; skipped where that cannot be."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "cuda_emulation.py"
specification = importlib.util.spec_from_file_location("cuda_emulation", SOURCE)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)

#: each path of every kernel: rows, columns, blocks, clusters; folded, split, tiled; every dtype. `make cuda-emulate`
#: runs all
SUBSET = (
    "cpu and (shuffled and (class_dimension or right_for_every_dtype or weight_zero or every_number_of_outputs)"
    " or 2048 or tf32 or index_outside or (test_every_axis and -17)"
    " or (any_length and 8195) or (whole_lines and shuffled and (17 or 31)) or (large_samples and shuffled))"
)


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        tool.compiler()
    except tool.Unavailable as why:
        pytest.skip(f"the CUDA sources are not emulated: {why}")


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, list[str]]:
    """What each planted fault shows, by the order of threads."""
    found: dict[str, list[str]] = {}
    for line in tool.faults(tmp_path_factory.mktemp("faults")).splitlines():
        name, _, words = line.split(" ", 2)
        found.setdefault(name, []).append(words)
    return found


def test_kernels_pass_their_tests_in_emulation():
    command = [sys.executable, str(SOURCE), "-q", "-p", "no:cacheprovider", "-k", SUBSET]
    done = subprocess.run(
        [*command, "tests/kernels"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100


def test_a_kernel_without_a_fault_gives_the_same_in_every_order(seen):
    assert seen["lacks_nothing"] == [" ".join(str(x) for x in range(63, -1, -1))] * 3


def test_unwritten_shared_memory_shows(seen):
    assert seen["reads_unwritten_memory"] == [" ".join(["-1"] * 64)] * 3


def test_a_missing_barrier_shows_as_results_that_depend_on_the_order(seen):
    assert len(set(seen["lacks_a_barrier"])) == 3


def test_copies_and_blocks_of_clusters_that_wait_for_each_other_give_the_same_in_every_order(seen):
    assert seen["copies_ahead"] == [" ".join(str(4 * x + 384) for x in range(63, -1, -1))] * 3
    others = [*range(32, 64), *range(32)]
    assert seen["blocks_exchange"] == [" ".join(map(str, others))] * 3


@pytest.mark.parametrize(
    "fault", ["copies_lack_a_wait", "copies_lack_a_barrier", "blocks_lack_a_barrier"]
)
def test_what_is_read_before_it_has_come_shows_as_results_that_depend_on_the_order(seen, fault):
    assert len(set(seen[fault])) > 1


@pytest.mark.parametrize(
    "fault, message",
    [
        ("half_comes_to_the_barrier", r"32 of 64 threads have returned, 32 wait in __syncthreads"),
        (
            "halves_come_to_two_barriers",
            r"__syncthreads at line \d+ while others wait in __syncthreads",
        ),
        ("one_lane_shuffles", r"1 wait in __shfl_xor_sync at line"),
    ],
)
def test_threads_that_do_not_meet_are_told(seen, fault, message):
    assert all(re.search(message, words) for words in seen[fault])


def test_copies_that_nobody_waits_for_are_told(seen):
    assert any(
        "returned with copies on their way" in words for words in seen["returns_with_copies"]
    )


@pytest.mark.parametrize("source", ["asm volatile(x);", "extern __shared__ int x[];", "f<<<1"])
def test_what_cannot_be_translated_is_refused(source):
    with pytest.raises(ValueError, match="cannot translate"):
        tool.plain(source)


def test_launches_and_shared_memory_become_plain():
    assert (
        tool.plain("k<A, 2><<<n, dim3(32, 4)>>>(p);")
        == "emulation::launch(k<A, 2>, n, dim3(32, 4), 0, nullptr, p);"
    )
    assert tool.plain("__shared__ T x[2][3], y[N];") == (
        "auto& x = emulation::shared<T[2][3], __COUNTER__>(); "
        "auto& y = emulation::shared<T[N], __COUNTER__>();"
    )
