#pragma once

#include <type_traits>

#include "lines.h"
#include "softmax.h"

// The sweep over rows of contiguous classes. A row is read once and stays in registers: a warp holds it, a block, or a
// cluster of blocks. Three steps without rescaling: the largest logit, the sums, the result. A row longer than that is
// read twice, in pieces that fill the same registers.
namespace curvext::cuda {
namespace {

// What each warp of the block brings: lane i of every warp receives that of warp i, `none` beyond. Two buffers by
// turns, as a fast warp may bring the next one while a slow one reads.
template <int Warps, class X>
__device__ X from_warps(const X& mine, const X& none, int turn) {
  __shared__ X all[2][Warps];
  const int lane = threadIdx.x % 32;
  if (lane == 0) all[turn % 2][threadIdx.x / 32] = mine;
  __syncthreads();
  return lane < Warps ? all[turn % 2][lane] : none;
}

// The place of this block in a cluster of so many, a power of 2.
__device__ inline unsigned rank_in(unsigned blocks) { return blockIdx.x & (blocks - 1); }

// What the blocks of a cluster bring in the same way, where every thread of a block brings the same.
template <class X>
__device__ X from_blocks(const X& mine, const X& none, int turn, unsigned blocks) {
  __shared__ X all[2][kMostBlocks];
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x < blocks) put_in_block(&all[turn % 2][rank_in(blocks)], threadIdx.x, mine);
  cluster_barrier();
  return lane < blocks ? all[turn % 2][lane] : none;
}

// Combines what the threads of a row bring; total(x) is that of a warp.
template <int Threads, bool Clusters, class X, class Total>
__device__ X row_total(X mine, const X& none, int turn, unsigned blocks, Total total) {
  mine = total(mine);
  if constexpr (Threads > 32) mine = total(from_warps<Threads / 32>(mine, none, turn));
  if constexpr (Clusters)
    if (blocks > 1) mine = total(from_blocks(mine, none, turn, blocks));
  return mine;
}

// How a row is held: by how many threads of a block, with how many lines each; Whole: all of it, by the blocks of a
// cluster where there is one. Otherwise one block goes over it twice.
template <int Threads_, int Lines_, bool Whole_, int BlocksOfProcessor>
struct Holding {
  static constexpr int Threads = Threads_, Lines = Lines_, Block = Threads == 32 ? 128 : Threads;
  static constexpr bool Whole = Whole_, Clusters = Whole && Threads >= 192;
  static constexpr int blocks(int bytes) { return bytes == 8 ? (BlocksOfProcessor + 1) / 2 : BlocksOfProcessor; }
  static constexpr int kLines = Threads * Lines;
};

using ShortRows = Holding<32, 2, true, 7>;
using WarpRows = Holding<32, 8, true, 3>;
using SmallBlockRows = Holding<128, 4, true, 6>;
// these need a few more registers of a thread than 512 or 256 threads leave for two blocks on a processor
template <Softmax kind>
constexpr bool kNeedsRegisters = kind == Softmax::root || kind == Softmax::root_t || kind == Softmax::residual;
template <Softmax kind>
using BlockRows = std::conditional_t<kNeedsRegisters<kind>, Holding<192, 8, true, 2>, Holding<512, 4, true, 2>>;
// float16 takes most registers: 256 threads may have 255 of them, 384 only 168
template <class S>
using LargeBlockRows = Holding<sizeof(S) == 4              ? 512
                               : std::is_same_v<S, __half> ? 256
                                                           : 384,
                               8, true, 1>;
using LongRows = Holding<512, 4, false, 2>;

// Runs the race over the lines of a tile, which pass through shared memory, as registers have no index.
template <class H, class S, class T, class Run>
__device__ void race_on(const Line<S> (&z)[H::Lines], const Cut<S>& cut, int begin, Run run) {
  __shared__ uint4 kept[H::Lines][H::Block];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int j = 0; j < H::Lines; ++j) z[j].store(reinterpret_cast<S*>(&kept[j][thread]));
#pragma unroll 1
  for (int x = 0; x < H::Lines * kWidth<S>; ++x) {
    const int j = x / kWidth<S>, e = x % kWidth<S>;
    run(cut.has(begin + j), cut.first(begin + j) + e, T(widened(reinterpret_cast<const S*>(&kept[j][thread])[e])));
  }
}

// The words of lines after a step: `zero` is one that the compiler cannot know, and another after each step. It would
// keep the 16-bit values that it took out of their words for the next step, in twice the registers.
template <class S, int Lines>
__device__ void forget_values(Line<S> (&lines)[Lines], unsigned zero) {
  if constexpr (sizeof(S) == 2)
#pragma unroll
    for (int j = 0; j < Lines; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) lines[j].word[i] ^= zero;
}

template <Softmax kind, class S, class T, class H>
__global__ void __launch_bounds__(H::Block, H::blocks(sizeof(T)))
    rows_kernel(const __grid_constant__ SoftmaxArgs<S, T> p, unsigned cluster) {
  constexpr int kLines = H::Lines, kValues = kLines * kWidth<S>;
  using M = Moments<kind, T>;
  const unsigned blocks = H::Clusters ? cluster : 1;  // a power of 2
  const int64_t m = H::Threads == 32 ? int64_t(blockIdx.x) * blockDim.y + threadIdx.y : int64_t(blockIdx.x / blocks);
  if (m >= p.outer) return;
  const S* row = p.z + m * p.z_outer;
  const Cut<S> cut(row, int(p.classes), int(rank_in(blocks)) * H::Threads + int(threadIdx.x), int(blocks) * H::Threads);
  const int edge = cut.edge();  // a class outside the lines; it goes with the first tile
  const int tiles = H::Whole ? 1 : (cut.lines + H::kLines - 1) / H::kLines + (cut.lines == 0);
  const unsigned zero = unsigned(p.vectors >> 60), other_zero = unsigned(p.outer >> 60);
  S masked;
  narrow(T(-INFINITY), &masked);

  Line<S> z[kLines], u[kLines];
  T z_edge = -INFINITY, u_edge = 0;
  const auto z_at = [&](int i) -> T { return i < kValues ? value(z[i / kWidth<S>], i % kWidth<S>) : z_edge; };
  const auto u_at = [&](int i) -> T {
    if constexpr (kReads<kind>) return i < kValues ? value(u[i / kWidth<S>], i % kWidth<S>) : u_edge;
    else return 0;
  };
  const auto forget = [&](unsigned zero) {
    forget_values(z, zero);
    if constexpr (kReads<kind>) forget_values(u, zero);
  };

  for (int64_t k = 0; k < p.vectors; ++k) {
    const Position<kind, S, T> at{p,
                                  row,
                                  kReads<kind> ? p.u + k * p.u_vector + m * p.u_outer : nullptr,
                                  p.out + k * p.out_vector + m * p.out_outer,
                                  m,
                                  1,
                                  1,
                                  1};
    const auto read = [&](int tile, bool fresh) {
      if (fresh) cut.read(z, at.z, tile * kLines, masked);
      if constexpr (kReads<kind>) cut.read(u, at.u, tile * kLines, S(0.0f));
      z_edge = edge >= 0 && tile == 0 ? at.logit(edge) : T(-INFINITY);
      u_edge = kReads<kind> && edge >= 0 && tile == 0 ? at.beside(edge) : T(0);
    };
    M part = M::none();
    for (int tile = 0; tile < tiles; ++tile) {
      read(tile, !H::Whole || k == 0);
      if (blocks > 1 && k == 0) cluster_begin();
      M some = M::template of<kValues + 1>(z_at, u_at, [&] { forget(zero); });
      forget(other_zero);
      if (some.best == kValues) some.best = edge;
      else if (some.best >= 0) some.best = cut.first(tile * kLines + some.best / kWidth<S>) + some.best % kWidth<S>;
      if constexpr (H::Whole) part = some;
      else part.add(some);
    }
    const T w = p.w[m];
    if (w == 0) {  // of the whole row, whatever stands there
      for (int j = 0; j < tiles * kLines; ++j) cut.write(Line<S>::filled(S(0.0f)), at.out, j);
      if (edge >= 0) narrow(T(0), at.out + edge);
      continue;
    }
    const M total =
        row_total<H::Threads, H::Clusters>(part, M::none(), int(k), blocks, [](const M& x) { return warp_total(x); });
    Finished<kind, T> f(total, w);
    if (at.wrong_label()) f.scale = NAN;
    Race race;
    for (int tile = tiles; tile-- > 0;) {  // first what was read last, which is nearest
      if (!H::Whole && tile < tiles - 1) read(tile, true);
#pragma unroll
      for (int j = 0; j < kLines; ++j) {
        const T* spread = nullptr;
        if constexpr (kind == Softmax::residual)
          if (p.spread && cut.has(tile * kLines + j)) spread = p.spread + cut.first(tile * kLines + j);
        const auto result = [&](int e) {
          const T beside = kind == Softmax::residual ? (spread ? spread[e] : T(0)) : u_at(j * kWidth<S> + e);
          return f.at(exponential(z_at(j * kWidth<S> + e) - f.top), beside);
        };
        cut.write(rounded<S>(result), at.out, tile * kLines + j);
      }
      if (edge >= 0 && tile == 0)
        narrow(f.at(exponential(z_edge - f.top), kind == Softmax::residual ? at.beside(edge) : u_edge), at.out + edge);
      if constexpr (kind == Softmax::sample) {
        const uint64_t state = p.draw.state(m);
        // every lane stays until the last class, so that a warp shares the bar
        const auto run = [&](bool inside, int c, T logit) {
          const uint64_t bits = mixed(state ^ uint64_t(c) * kGolden);
          const bool close = inside && Race::close(float(exponential(logit - f.top)), bits, race.bar);
          if (__any_sync(~0u, close)) {
            if (close) race.run(double(logit) - double(f.top), bits, c);
            race.bar =
                __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(race.bar)));  // not negative: ordered as bits
          }
        };
        if (tile == 0) run(edge >= 0, edge, z_edge);
        race_on<H, S, T>(z, cut, tile * kLines, run);
      }
    }
    if constexpr (kind == Softmax::sample)
      race = row_total<H::Threads, H::Clusters>(race, Race{}, 0, blocks, [](const Race& x) { return warp_winner(x); });
    const int64_t label = at.fixed_class(f, race.label);
    if (label >= 0 && cut.owns(int(label))) at.fix(f, label);
  }
}

template <class H, Softmax kind, class S, class T>
cudaError_t launch_rows(const SoftmaxArgs<S, T>& p, cudaStream_t stream) {
  if constexpr (H::Threads == 32)
    rows_kernel<kind, S, T, H><<<unsigned((p.outer + 3) / 4), dim3(32, 4), 0, stream>>>(p, 1);
  else rows_kernel<kind, S, T, H><<<unsigned(p.outer), H::Threads, 0, stream>>>(p, 1);
  return cudaGetLastError();
}

// With as few blocks of a cluster as hold a row.
template <class H, Softmax kind, class S, class T>
cudaError_t launch_clustered_rows(const SoftmaxArgs<S, T>& p, int64_t lines, cudaStream_t stream) {
  unsigned blocks = 2;
  while (int64_t(blocks) * H::kLines < lines) blocks *= 2;
  return launch_clusters(rows_kernel<kind, S, T, H>, dim3(unsigned(p.outer) * blocks), dim3(H::Threads), blocks, stream,
                         p, blocks);
}

template <Softmax kind, class S, class T>
cudaError_t run_rows(const SoftmaxArgs<S, T>& p, cudaStream_t stream) {
  const int64_t lines = p.classes / kWidth<S>;  // at most: a head may take some
  if (lines <= ShortRows::kLines) return launch_rows<ShortRows, kind>(p, stream);
  if (lines <= WarpRows::kLines) return launch_rows<WarpRows, kind>(p, stream);
  if (lines <= SmallBlockRows::kLines) return launch_rows<SmallBlockRows, kind>(p, stream);
  if (lines <= BlockRows<kind>::kLines) return launch_rows<BlockRows<kind>, kind>(p, stream);
  const bool clusters = has_clusters(rows_kernel<kind, S, T, BlockRows<kind>>) && p.outer <= INT32_MAX / kMostBlocks;
  if (clusters && lines <= kMostBlocks * BlockRows<kind>::kLines)
    return launch_clustered_rows<BlockRows<kind>, kind>(p, lines, stream);
  if constexpr (kind != Softmax::sample) {  // whose lines pass through shared memory, which holds half of them
    if (lines <= LargeBlockRows<S>::kLines) return launch_rows<LargeBlockRows<S>, kind>(p, stream);
    if (clusters && lines <= kMostBlocks * LargeBlockRows<S>::kLines)
      return launch_clustered_rows<LargeBlockRows<S>, kind>(p, lines, stream);
  }
  return launch_rows<LongRows, kind>(p, stream);
}

}  // namespace
}  // namespace curvext::cuda
