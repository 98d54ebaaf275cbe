#pragma once

#include "outer_square_problem.h"

// outer_square in float64, on the FP64 units by plain FMA.
namespace curvext::cuda {
namespace {

constexpr int kDoubleTile = 64, kDoubleDepth = 16, kDoubleThreads = 256;  // 4 x 4 results for each thread

// The values of each stage that one thread loads, from stage to stage: every fourth row. The stages of a run of samples
// are its (n, v, piece of s) in order, or pieces of n when folded.
template <bool Folded>
struct DoubleLoader {
  static constexpr int kStep = kDoubleThreads / kDoubleTile, kRows = kDoubleDepth / kStep;

  const Problem<double>& p;
  const int row = threadIdx.x / kDoubleTile, column = threadIdx.x % kDoubleTile;
  const int64_t o, i;
  int64_t n, last;             // the sample, and the end of the run
  int64_t v = 0, s = 0;        // the vector, and the first position of the stage
  const double *left, *right;  // the thread's first value of the stage in g and a

  __device__ DoubleLoader(const Problem<double>& problem, int64_t split, int64_t o_tile, int64_t i_tile)
      : p(problem), o(o_tile + column), i(i_tile + column) {
    n = p.N * split / p.splits;
    last = p.N * (split + 1) / p.splits;
    seek();
  }

  __device__ bool open() const { return n < last; }
  __device__ bool closes_sample() const { return !Folded && s + kDoubleDepth >= p.S; }

  __device__ void advance() {
    if constexpr (Folded) {
      n += kDoubleDepth;
    } else {
      s += kDoubleDepth;
      if (s < p.S) {
        left += kDoubleDepth * p.g_position;
        right += kDoubleDepth * p.a_position;
        return;
      }
      s = 0;
      if (++v == p.V) {
        v = 0;
        ++n;
      }
    }
    seek();
  }

  // Values of a stage: squares of a[n,i] and of g[v,n,o] summed over v when folded, a[n,s,i] and g[v,n,s,o] otherwise;
  // zero outside.
  __device__ void fetch(double (&g_values)[kRows], double (&a_values)[kRows]) const {
    const int64_t rest = (Folded ? last - n : p.S - s) - row;
    const int rows = rest < kDoubleDepth ? int(rest) : kDoubleDepth;
    read(right, rows, Folded ? p.a_sample : p.a_position, i < p.I, a_values);
    read(left, rows, Folded ? p.g_sample : p.g_position, o < p.O, g_values);
    if constexpr (Folded) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        a_values[r] *= a_values[r];
        g_values[r] *= g_values[r];
      }
      const double* from = left;
#pragma unroll 1
      for (int64_t vector = 1; vector < p.V; ++vector) {
        double more[kRows];
        read(from += p.g_vector, rows, p.g_sample, o < p.O, more);
#pragma unroll
        for (int r = 0; r < kRows; ++r) g_values[r] += more[r] * more[r];
      }
    }
  }

 private:
  __device__ void seek() {
    left = p.g + v * p.g_vector + n * p.g_sample + s * p.g_position + row * (Folded ? p.g_sample : p.g_position) + o;
    right = p.a + n * p.a_sample + s * p.a_position + row * (Folded ? p.a_sample : p.a_position) + i;
  }

  __device__ static void read(const double* from, int rows, int64_t step, bool inside, double (&to)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) to[r] = inside && r * kStep < rows ? from[r * kStep * step] : 0;
  }
};

template <bool Folded>
__global__ void __launch_bounds__(kDoubleThreads, 1) square_double_kernel(Problem<double> p, double* parts) {
  __shared__ double left[kDoubleDepth][kDoubleTile], right[kDoubleDepth][kDoubleTile];
  const int64_t o = int64_t(blockIdx.y) * kDoubleTile, i = int64_t(blockIdx.x) * kDoubleTile;
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16;
  DoubleLoader<Folded> loader(p, blockIdx.z, o, i);
  double main[4][4] = {}, tmp[4][4] = {};
  for (; loader.open(); loader.advance()) {
    double g[loader.kRows], a[loader.kRows];
    loader.fetch(g, a);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < loader.kRows; ++r) {
      left[loader.row + r * loader.kStep][loader.column] = g[r];
      right[loader.row + r * loader.kStep][loader.column] = a[r];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDoubleDepth; ++k)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) tmp[r][c] += left[k][row + r] * right[k][column + c * 16];
    if (Folded || loader.closes_sample())
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          main[r][c] += Folded ? tmp[r][c] : tmp[r][c] * tmp[r][c];
          tmp[r][c] = 0;
        }
  }
  double* out = parts + int64_t(blockIdx.z) * p.O * p.I;
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c) {
      const int64_t y = o + row + r, x = i + column + c * 16;
      if (y < p.O && x < p.I) out[y * p.I + x] = main[r][c];
    }
}

}  // namespace
}  // namespace curvext::cuda
