"""What tools/cuda_check.py reads from the compiler's reports, and how work is cut for a GPU; needs no GPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "cuda_check.py"
specification = importlib.util.spec_from_file_location("cuda_check", SOURCE)
tool = importlib.util.module_from_spec(specification)
sys.modules["cuda_check"] = tool  # where dataclasses look for annotations
specification.loader.exec_module(tool)

CODE = """
        /*0010*/   MOV R1, c[0x0][0x28] ;    /* 0x00000a0000017a02 */
        /*0020*/   IADD3 R2, R2, 0x1, RZ ;
        /*0030*/   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/   @!P0 BRA 0x20 ;
        /*0060*/   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/   @P1 BRA 0x10 ;
        /*0080*/   FADD R1, R1, R2 ;
        /*0090*/   BRA 0x80 ;
"""
REPORT = """
ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'
ptxas info    : Function properties for _Z1fv
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 244 registers, used 1 barriers, 34816 bytes smem
ptxas info    : Compiling entry function '_Z1gv' for 'sm_90'
ptxas info    : Function properties for _Z1gv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers
"""


def test_the_main_loop_is_the_one_with_most_matrix_instructions():
    assert len(tool.main_loop(CODE)) == 7 and tool.products(tool.main_loop(CODE)) == 3
    assert len(tool.main_loop(CODE.replace("@P1 BRA 0x10", "NOP"))) == 4
    assert tool.main_loop(CODE.replace("HMMA", "FFMA")) == []


def test_registers_and_spills_of_each_kernel_are_read():
    assert tool.kernels(REPORT) == [
        tool.Kernel("_Z1fv", 244, 12, 16),
        tool.Kernel("_Z1gv", 30, 0, 0),
    ]


@pytest.mark.parametrize(
    "bound, faults",
    [
        ({"registers": 244, "instructions_per_mma": {"90": 2.34}}, 0),
        ({"registers": 243, "instructions_per_mma": {"90": 2.34}}, 1),
        ({"registers": 243, "instructions_per_mma": {"90": 2.33}}, 2),
        ({"registers": 255}, 0),
        ({"registers": 255, "instructions_per_mma": {"80": 1, "90": 2.34}}, 0),
        ({"registers": 255, "instructions_per_mma": {"80": 9, "90": 2.33}}, 1),
        ({"registers": 255, "instructions_per_mma": {"80": 9}}, 1),
    ],
)
def test_a_kernel_beyond_a_bound_is_told(bound, faults):
    kernel = tool.Kernel("f", 244, 0, 0)
    assert len(tool.beyond(kernel, CODE, bound, "90a")) == faults


def test_a_bounded_kernel_without_a_main_loop_is_told():
    bound = {"registers": 255, "instructions_per_mma": {"80": 1e9}}
    assert tool.beyond(tool.Kernel("f", 1, 0, 0), "", bound, "80")


LOADS = """
        /*0010*/              @P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.64 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   FADD R1, R7, R7 ;
        /*0040*/                   LDG.E.U16 R12, desc[UR4][R2.64] ;
        /*0050*/                   LDG.E R13, desc[UR4][R2.64] ;
        /*0060*/                   FADD R1, R13, R1 ;
        /*0070*/                   LDG.E.128 R16, desc[UR4][R2.64] ;
"""


def test_loads_are_on_their_way_until_their_registers_are_named():
    assert tool.bytes_in_flight(LOADS) == 16 + 8
    # where the second load is used the first has arrived, too
    assert tool.bytes_in_flight(LOADS.replace("R7, R7", "R9, R9")) == 16 + 8
    assert tool.bytes_in_flight(LOADS.replace("R7, R7", "R1, R1")) == 16 + 8 + 2 + 4
    assert tool.bytes_in_flight(LOADS.replace("R1, R7, R7", "R5, R1, R1")) == 16 + 8
    assert tool.bytes_in_flight("") == 0


def test_too_few_loads_at_once_are_told():
    kernel = tool.Kernel("f", 40, 0, 0)
    assert not tool.beyond(kernel, LOADS, {"registers": 40, "bytes_in_flight": 24}, "80")
    assert tool.beyond(kernel, LOADS, {"registers": 40, "bytes_in_flight": 25}, "80")


@pytest.mark.parametrize(
    "name, plain",
    [
        ("f<(Kind)0, A<1, true> >(B<float>, int*)", "f<(Kind)0, A<1, true> >"),
        ("f(A<int>)", "f"),
        ("f", "f"),
    ],
)
def test_arguments_of_a_function_are_left_out_of_its_name(name, plain):
    assert tool.without_arguments(name) == plain


CHOICES = """
#include <cstdio>
#include "waves.h"
using namespace curvext::cuda;
int main() {
  for (int processors : {6, 132})
    for (int tiles : {1, 2, 5, 36, 64, 132, 144, 1000})
      for (int pieces : {1, 7, 8, 256})
        for (int most : {1, 3, 65535}) {
          const Work work{tiles, pieces, 8};
          const long best = best_splits(work, most, processors);
          std::printf("%d %d %d %d %ld", processors, tiles, pieces, most, best);
          for (int splits = 1; splits <= pieces && splits <= most; ++splits)
            std::printf(" %ld", long(stages_until_done(work, splits, processors)));
          std::puts("");
        }
}
"""


def test_runs_are_cut_so_that_the_last_block_ends_first(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "choices.cpp").write_text(CHOICES)
    program = str(tmp_path / "choices")
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc/cuda'}", "-o", program]
    subprocess.run([*command, str(tmp_path / "choices.cpp")], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    chosen = {}
    for line in lines.splitlines():
        processors, tiles, pieces, most, best, *times = map(int, line.split())
        assert 1 <= best <= min(pieces, most)
        assert times[best - 1] == min(times)  # no number of runs is done sooner
        # by counting: blocks are dealt out one after the other to whichever processor is free
        block = -(-pieces // best) * 8 + 8
        free = [0] * processors
        for _ in range(tiles * best):
            free[free.index(min(free))] += block
        assert max(free) == times[best - 1]
        chosen[processors, tiles, pieces, most] = best
    assert chosen[132, 64, 256, 65535] == 2  # 128 blocks on 132 processors, not 320
    assert chosen[132, 132, 256, 65535] == 1
    assert chosen[132, 144, 8, 65535] == 2  # three waves of a half, not two of a whole
    assert chosen[132, 144, 8, 1] == 1
