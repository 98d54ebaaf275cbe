#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "instructions.h"
#include "launch.h"

// Sum over (v, n) of the squared product over s. A block owns a 128 x 128 tile of the result in registers. For each
// sample it contracts s into a second register tile with mma.sync, then adds the square: main += tmp * tmp. S = 1 is
// folded instead, (g a)^2 = g^2 a^2: the loads square, and n is contracted like an s.
namespace curvext::cuda {
namespace {

constexpr int kTile = 128;     // of the result, both ways
constexpr int kDepth = 16;     // contracted positions per stage
constexpr int kThreads = 256;  // 8 warps, 4 along o by 2 along i, each 32 x 64
constexpr int kPitch = kTile + 8;

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widen(__half x) { return __half2float(x); }
__device__ double widen(double x) { return x; }

template <class S>
struct Problem {
  const S* a;
  const S* g;
  int64_t V, N, S_, I, O;
  int64_t a_sample, a_position, g_vector, g_sample, g_position;
  int64_t splits;
};

// The stages of one run of samples, in order: (v, n, piece of s), or pieces of n when folded.
template <class S, bool Folded>
struct Walk {
  const Problem<S>& p;
  int64_t first, last;  // samples of this split
  int64_t pieces;       // stages per sample

  __device__ Walk(const Problem<S>& problem, int64_t split) : p(problem) {
    first = p.N * split / p.splits;
    last = p.N * (split + 1) / p.splits;
    pieces = Folded ? 1 : (p.S_ + kDepth - 1) / kDepth;
  }
  __device__ int64_t stages() const {
    return Folded ? (last - first + kDepth - 1) / kDepth : (last - first) * p.V * pieces;
  }
  __device__ bool closes_sample(int64_t stage) const { return !Folded && (stage + 1) % pieces == 0; }
};

// Values of row k of a stage, as float: a[n,s,column] and g[v,n,s,column], zero outside.
template <class S, bool Folded, class T>
struct Loader {
  Walk<S, Folded> walk;

  __device__ T left(int64_t stage, int k, int64_t column) const {
    const Problem<S>& p = walk.p;
    if (column >= p.O) return 0;
    if constexpr (Folded) {
      const int64_t n = walk.first + stage * kDepth + k;
      if (n >= walk.last) return 0;
      T sum = 0;
      for (int64_t v = 0; v < p.V; ++v) {
        const T x = widen(p.g[v * p.g_vector + n * p.g_sample + column]);
        sum += x * x;
      }
      return sum;
    } else {
      const int64_t s = stage % walk.pieces * kDepth + k, vn = stage / walk.pieces;
      if (s >= p.S_) return 0;
      const int64_t v = vn % p.V, n = walk.first + vn / p.V;
      return widen(p.g[v * p.g_vector + n * p.g_sample + s * p.g_position + column]);
    }
  }

  __device__ T right(int64_t stage, int k, int64_t column) const {
    const Problem<S>& p = walk.p;
    if (column >= p.I) return 0;
    if constexpr (Folded) {
      const int64_t n = walk.first + stage * kDepth + k;
      if (n >= walk.last) return 0;
      const T x = widen(p.a[n * p.a_sample + column]);
      return x * x;
    } else {
      const int64_t s = stage % walk.pieces * kDepth + k;
      if (s >= p.S_) return 0;
      const int64_t n = walk.first + stage / walk.pieces / p.V;
      return widen(p.a[n * p.a_sample + s * p.a_position + column]);
    }
  }
};

using Fragments = float[2][8][4];  // a warp's 32 x 64: 2 tiles of 16 along o, 8 of 8 along i

// Shared memory of one stage in 16-bit words: Parts = 1 holds the values, Parts = 2 their high and low bfloat16 halves,
// whose three leading products give float32 quality.
template <class H, int Parts>
struct HalfStage {
  alignas(16) H left[Parts][kDepth][kPitch];  // ldmatrix reads rows of 16 bytes
  alignas(16) H right[Parts][kDepth][kPitch];

  __device__ static void put(H (&panel)[Parts][kDepth][kPitch], int k, int column, float x) {
    const H high = narrow(x);
    panel[0][k][column] = high;
    if constexpr (Parts == 2) panel[1][k][column] = narrow(x - widen(high));
  }
  __device__ static H narrow(float x) {
    if constexpr (std::is_same_v<H, __half>) return __float2half_rn(x);
    else return __float2bfloat16_rn(x);
  }

  __device__ void product(Fragments& tmp, int row, int column) const {
    const int lane = threadIdx.x % 32;
    // Lanes 0..7 address tile 0, 8..15 tile 1, and so on: (o, k), (o + 8, k), (o, k + 8), (o + 8, k + 8).
    const int ak = lane % 8 + lane / 16 * 8, ac = lane / 8 % 2 * 8;
    // For b: (k, i), (k + 8, i), (k, i + 8), (k + 8, i + 8).
    const int bk = lane % 8 + lane / 8 % 2 * 8, bc = lane / 16 * 8;
#pragma unroll
    for (int pair = 0; pair < (Parts == 2 ? 3 : 1); ++pair) {
      const int lp = pair == 2 ? 1 : 0, rp = pair == 1 ? 1 : 0;  // hi hi, hi lo, lo hi
      unsigned a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_transposed(a[i], &left[lp][ak][row + i * 16 + ac]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        unsigned b[4];
        load_transposed(b, &right[rp][bk][column + j * 16 + bc]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply<H>(tmp[i][2 * j], a[i], b[0], b[1]);
          multiply<H>(tmp[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
};

// TF32: rounded, as truncation would bias every square by 1.4e-3.
struct TF32Stage {
  unsigned left[1][kDepth][kPitch];
  unsigned right[1][kDepth][kPitch];

  __device__ static void put(unsigned (&panel)[1][kDepth][kPitch], int k, int column, float x) {
    panel[0][k][column] = rounded_to_tf32(x);
  }

  __device__ void product(Fragments& tmp, int row, int column) const {
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      unsigned a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) a[i][e] = left[0][k + member + e / 2 * 4][row + i * 16 + group + e % 2 * 8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const unsigned b0 = right[0][k + member][column + j * 8 + group];
        const unsigned b1 = right[0][k + member + 4][column + j * 8 + group];
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_tf32(tmp[i][j], a[i], b0, b1);
      }
    }
  }
};

// One stage held in registers between its load and its store, so that loads overlap with the products before them.
struct Staged {
  static constexpr int kValues = kDepth * kTile / kThreads;
  float left[kValues], right[kValues];

  template <class L>
  __device__ void fetch(const L& loader, int64_t stage, int64_t o, int64_t i) {
#pragma unroll
    for (int x = 0; x < kValues; ++x) {
      const int k = (threadIdx.x + x * kThreads) / kTile, column = threadIdx.x % kTile;
      left[x] = loader.left(stage, k, o + column);
      right[x] = loader.right(stage, k, i + column);
    }
  }

  template <class Stage>
  __device__ void store(Stage& shared) const {
#pragma unroll
    for (int x = 0; x < kValues; ++x) {
      const int k = (threadIdx.x + x * kThreads) / kTile, column = threadIdx.x % kTile;
      Stage::put(shared.left, k, column, left[x]);
      Stage::put(shared.right, k, column, right[x]);
    }
  }
};

template <bool Square>
__device__ void close(Fragments& main, Fragments& tmp) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        main[i][j][e] += Square ? tmp[i][j][e] * tmp[i][j][e] : tmp[i][j][e];
        tmp[i][j][e] = 0;
      }
}

__device__ void write(const Fragments& main, float* out, int64_t o, int64_t i, int64_t O, int64_t I) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = o + r * 16 + lane / 4 + e / 2 * 8, column = i + j * 8 + lane % 4 * 2 + e % 2;
        if (row < O && column < I) out[row * I + column] = main[r][j][e];
      }
}

template <class S, class Stage, bool Folded>
__global__ void __launch_bounds__(kThreads, 1) square_kernel(Problem<S> p, float* parts) {
  __shared__ Stage shared[2];
  const int64_t o = int64_t(blockIdx.y) * kTile, i = int64_t(blockIdx.x) * kTile;
  const int warp = threadIdx.x / 32, row = warp % 4 * 32, column = warp / 4 * 64;
  const Loader<S, Folded, float> loader{Walk<S, Folded>(p, blockIdx.z)};
  const int64_t stages = loader.walk.stages();
  Fragments main = {}, tmp = {};
  Staged next;
  if (stages > 0) next.fetch(loader, 0, o, i);
  for (int64_t stage = 0; stage < stages; ++stage) {
    Stage& now = shared[stage % 2];
    next.store(now);
    __syncthreads();
    if (stage + 1 < stages) next.fetch(loader, stage + 1, o, i);
    now.product(tmp, row, column);
    if (loader.walk.closes_sample(stage)) close<true>(main, tmp);
  }
  if (Folded) close<false>(main, tmp);
  write(main, parts + int64_t(blockIdx.z) * p.O * p.I, o + row, i + column, p.O, p.I);
}

// float64 on the FP64 units by plain FMA: 64 x 64 tiles, 4 x 4 per thread.
constexpr int kDoubleTile = 64, kDoubleDepth = kDepth;

template <bool Folded>
__global__ void __launch_bounds__(kThreads, 1) square_double_kernel(Problem<double> p, double* parts) {
  __shared__ double left[kDoubleDepth][kDoubleTile], right[kDoubleDepth][kDoubleTile];
  const int64_t o = int64_t(blockIdx.y) * kDoubleTile, i = int64_t(blockIdx.x) * kDoubleTile;
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16;
  const Loader<double, Folded, double> loader{Walk<double, Folded>(p, blockIdx.z)};
  const int64_t stages = loader.walk.stages();
  double main[4][4] = {}, tmp[4][4] = {};
  for (int64_t stage = 0; stage < stages; ++stage) {
    __syncthreads();
    for (int x = threadIdx.x; x < kDoubleDepth * kDoubleTile; x += kThreads) {
      left[x / kDoubleTile][x % kDoubleTile] = loader.left(stage, x / kDoubleTile, o + x % kDoubleTile);
      right[x / kDoubleTile][x % kDoubleTile] = loader.right(stage, x / kDoubleTile, i + x % kDoubleTile);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDoubleDepth; ++k)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) tmp[r][c] += left[k][row + r] * right[k][column + c * 16];
    if (Folded || loader.walk.closes_sample(stage))
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

// Adds the parts in the order of the samples.
template <class T>
__global__ void add_parts_kernel(const T* parts, int64_t splits, int64_t count, T* result) {
  const int64_t x = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (x >= count) return;
  T sum = parts[x];
  for (int64_t s = 1; s < splits; ++s) sum += parts[s * count + x];
  result[x] = sum;
}

template <class T>
cudaError_t add_parts(const OuterSquareLaunch& l, cudaStream_t stream) {
  if (l.splits > 1) {
    const int64_t count = l.O * l.I;
    add_parts_kernel<T><<<unsigned((count + 255) / 256), 256, 0, stream>>>(static_cast<const T*>(l.parts), l.splits,
                                                                           count, static_cast<T*>(l.result));
  }
  return cudaGetLastError();
}

template <class S>
Problem<S> problem(const OuterSquareLaunch& l) {
  return {static_cast<const S*>(l.a),
          static_cast<const S*>(l.g),
          l.V,
          l.N,
          l.S,
          l.I,
          l.O,
          l.a_sample,
          l.a_position,
          l.g_vector,
          l.g_sample,
          l.g_position,
          l.splits};
}

dim3 grid(const OuterSquareLaunch& l, int tile) {
  return dim3(unsigned((l.I + tile - 1) / tile), unsigned((l.O + tile - 1) / tile), unsigned(l.splits));
}

// Squares of 16-bit inputs need more than 16 bits, so a folded sum always runs on two bfloat16 parts.
template <class S, class Stage>
cudaError_t run(const OuterSquareLaunch& l, cudaStream_t stream) {
  float* out = static_cast<float*>(l.splits > 1 ? l.parts : l.result);
  if (l.S == 1)
    square_kernel<S, HalfStage<__nv_bfloat16, 2>, true><<<grid(l, kTile), kThreads, 0, stream>>>(problem<S>(l), out);
  else square_kernel<S, Stage, false><<<grid(l, kTile), kThreads, 0, stream>>>(problem<S>(l), out);
  return add_parts<float>(l, stream);
}

cudaError_t run_double(const OuterSquareLaunch& l, cudaStream_t stream) {
  double* out = static_cast<double*>(l.splits > 1 ? l.parts : l.result);
  if (l.S == 1) square_double_kernel<true><<<grid(l, kDoubleTile), kThreads, 0, stream>>>(problem<double>(l), out);
  else square_double_kernel<false><<<grid(l, kDoubleTile), kThreads, 0, stream>>>(problem<double>(l), out);
  return add_parts<double>(l, stream);
}

}  // namespace

int64_t outer_square_splits(int64_t V, int64_t N, int64_t S, int64_t I, int64_t O, int64_t element_size,
                            int processors) {
  constexpr int64_t kWorkspace = int64_t(64) << 20;
  const int64_t tile = element_size == 8 ? kDoubleTile : kTile;
  const int64_t tiles = ((I + tile - 1) / tile) * ((O + tile - 1) / tile);
  const int64_t wanted = (2 * processors + tiles - 1) / tiles;
  const int64_t fitting = kWorkspace / (O * I * element_size);
  const int64_t stages = S == 1 ? (N + kDepth - 1) / kDepth : N;
  return tiles >= processors ? 1 : std::max<int64_t>(1, std::min({wanted, fitting, stages, int64_t(65535)}));
}

cudaError_t outer_square(const OuterSquareLaunch& launch, cudaStream_t stream) {
  using Exact = HalfStage<__nv_bfloat16, 2>;
  switch (launch.type) {
    case Type::float64: return run_double(launch, stream);
    case Type::bfloat16: return run<__nv_bfloat16, HalfStage<__nv_bfloat16, 1>>(launch, stream);
    case Type::float16: return run<__half, HalfStage<__half, 1>>(launch, stream);
    default:
      return launch.mode == Float32Mode::tf32 ? run<float, TF32Stage>(launch, stream)
                                              : run<float, Exact>(launch, stream);
  }
}

}  // namespace curvext::cuda
