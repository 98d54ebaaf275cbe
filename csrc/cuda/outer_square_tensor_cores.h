#pragma once

#include <type_traits>

#include "outer_square_pipeline.h"

// Sum over (v, n) of the squared product over s. A block owns a 128 x 128 tile of the result in registers. For each
// sample it contracts s into a second register tile with mma.sync, then adds the square: main += tmp * tmp. S = 1 is
// folded instead, (g a)^2 = g^2 a^2: what is multiplied are squares, and n is contracted like an s.
namespace curvext::cuda {
namespace {

// none: S > 1. one: squares of one vector, in the type of the input. several: sums of squares, formed in float32.
enum class Folding { none, one, several };

__device__ void write(const Fragments& sums, Entry (*place)(int, int, int), float* out, int64_t o, int64_t i, int64_t O,
                      int64_t I) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Entry at = place(r, j, e);
        if (o + at.row < O && i + at.column < I) out[(o + at.row) * I + i + at.column] = sums[r][j][e];
      }
}

__device__ void close(Fragments& main, Fragments& tmp) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        main[i][j][e] += tmp[i][j][e] * tmp[i][j][e];
        tmp[i][j][e] = 0;
      }
}

// How a kind of input is multiplied. Direct: the operand is what the copies bring. Otherwise each thread makes its
// lines into the operand of a stage, of which there are two by turns where the least processor has room for them.
template <class S, class Operand_, Folding folding_, bool Direct_>
struct Kind {
  using Input = S;
  using Operand = Operand_;
  static constexpr Folding folding = folding_;
  static constexpr bool kDirect = Direct_;
  static constexpr int kStages = kDirect ? 4 : 3;
  using Walk = std::conditional_t<folding == Folding::none, SampleWalk<S>, FoldedWalk<S>>;
  template <bool Aligned>
  using Pipe = Pipeline<S, Walk, Aligned, kStages>;

  static constexpr int kMostBytes = 99 << 10;  // of a block, on sm_86 and sm_89
  static constexpr int kOperands = kDirect ? 0 : Pipe<true>::kBytes + 2 * Operand::kBytes <= kMostBytes ? 2 : 1;

  struct Memory {
    alignas(16) char stages[Pipe<true>::kBytes];
    alignas(16) char operand[kDirect ? 16 : kOperands * Operand::kBytes];
  };
  static_assert(sizeof(Memory) <= kMostBytes);
};

template <class K, bool Aligned>
__global__ void __launch_bounds__(kThreads, 1) square_kernel(Problem<typename K::Input> p, float* parts) {
  using S = typename K::Input;
  using Pipe = typename K::template Pipe<Aligned>;
  using Operand = typename K::Operand;
  constexpr bool kFolded = K::folding != Folding::none;
  constexpr int kStage = kDepth<S>, kStages = K::kStages, kWide = kWidth<S>;
  auto& memory = given_shared<typename K::Memory>();
  const int64_t o = int64_t(blockIdx.y) * kTile, i = int64_t(blockIdx.x) * kTile;
  const int64_t begin = p.N * blockIdx.z / p.splits, count = p.N * (blockIdx.z + 1) / p.splits - begin;
  const int warp = threadIdx.x / 32, row = warp % 4 * 32, column = warp / 4 * 64;
  const Operand operand(row, column);
  const int own_row = threadIdx.x / Pipe::kLineColumns, own_column = threadIdx.x % Pipe::kLineColumns * kWide;
  Pipe pipe(memory.stages, typename K::Walk(p, begin, count, own_row, o + own_column, i + own_column),
            kFolded ? p.g_sample : p.g_position, kFolded ? p.a_sample : p.a_position, p.O - o, p.I - i);
#pragma unroll
  for (int stage = 0; stage < kStages - K::kDirect; ++stage) {
    if (pipe.walk.at_last()) pipe.walk.prepare();
    pipe.fetch();
  }

  // use() has the thread's lines of the next stage; then a later one is asked for in their place.
  const auto take = [&](auto use) {
    wait_copies<kStages - 1>();
    use();
    pipe.fetch();
    pipe.next();
  };
  char* made = memory.operand;
  const auto place = [&](int side, int half) {
    return Operand::at(made, side, own_row + half * Pipe::kHalf, own_column);
  };
  const auto turn = [&] {
    if constexpr (K::kOperands == 1) __syncthreads();  // it is no longer read
    else made = made == memory.operand ? memory.operand + Operand::kBytes : memory.operand;
  };
  const auto multiply = [&](Fragments& sums, const char* stage, int positions) {
#pragma unroll
    for (int k = 0; k < kStage; k += 16)
      if (k == 0 || k < positions) operand.multiply_step(sums, stage, k);
  };

  Fragments main = {};
  if constexpr (!kFolded) {
    Fragments tmp = {};
#pragma unroll 1
    for (int64_t pairs = count * p.V; pairs > 0; --pairs) {
      pipe.walk.prepare();  // of this many stages that are asked for one is the last of its pair
#pragma unroll 1
      for (int left = int(p.S); left > 0; left -= kStage) {
        if constexpr (K::kDirect) {
          wait_copies<kStages - 2>();
          __syncthreads();  // all copies of this stage are there, and the one before it is no longer read
          pipe.fetch();
          multiply(tmp, pipe.stage(), left);
          pipe.next();
        } else {
          take([&] {
#pragma unroll
            for (int x = 0; x < 4; ++x) {
              const Line<S> line = pipe.line(x % 2, x / 2);
              Values<S> values;
#pragma unroll
              for (int e = 0; e < kWide; ++e) values[e] = value(line, e);
              Operand::template put<S>(place(x % 2, x / 2), values);
            }
          });
          __syncthreads();  // the operand is whole, and that of the stage before is no longer read
          multiply(tmp, made, left);
          turn();
        }
      }
      close(main, tmp);
    }
  } else {
#pragma unroll 1
    for (int left = int(count); left > 0; left -= kStage) {
      if constexpr (K::folding == Folding::one) {
        take([&] {
#pragma unroll
          for (int x = 0; x < 4; ++x) Operand::put_squares(place(x % 2, x / 2), pipe.line(x % 2, x / 2));
        });
      } else {
        float sums[2][kWide] = {};
#pragma unroll 1
        for (int v = int(p.V); v > 0; --v)
          take([&] {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const Line<S> g = pipe.line(0, half), a = pipe.line(1, half);
#pragma unroll
              for (int e = 0; e < kWide; ++e) sums[half][e] += value(g, e) * value(g, e);
              if (v > 1) continue;
              Values<S> squares;
#pragma unroll
              for (int e = 0; e < kWide; ++e) squares[e] = value(a, e) * value(a, e);
              Operand::template put<S>(place(1, half), squares);
              Operand::template put<S>(place(0, half), sums[half]);
            }
          });
      }
      __syncthreads();
      multiply(main, made, left);
      turn();
    }
  }
  wait_copies<0>();  // of stages behind the last, which are zeros
  write(main, Operand::place, parts + int64_t(blockIdx.z) * p.O * p.I, o + row, i + column, p.O, p.I);
}

}  // namespace
}  // namespace curvext::cuda
