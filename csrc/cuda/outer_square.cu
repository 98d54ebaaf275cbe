#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "instructions.h"
#include "launch.h"
#include "waves.h"

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

// The values of each stage that one thread loads, from stage to stage: every fourth row, and `Columns` neighbours of
// each. The stages of a run of samples are its (n, v, piece of s) in order, or pieces of n when folded. Where the next
// one lies is counted, as a division would cost more than the stage's products.
template <class S, bool Folded, int Columns>
struct Loader {
  static constexpr int kStep = 4, kRows = kDepth / kStep;

  const Problem<S>& p;
  const int row = threadIdx.x / (kThreads / kStep), column = threadIdx.x % (kThreads / kStep) * Columns;
  const int64_t o, i;
  int64_t n, last;        // the sample, and the end of the run
  int64_t v = 0, s = 0;   // the vector, and the first position of the stage
  const S *left, *right;  // the thread's first value of the stage in g and a

  __device__ Loader(const Problem<S>& problem, int64_t split, int64_t o_tile, int64_t i_tile)
      : p(problem), o(o_tile + column), i(i_tile + column) {
    n = p.N * split / p.splits;
    last = p.N * (split + 1) / p.splits;
    seek();
  }

  __device__ bool open() const { return n < last; }
  __device__ bool closes_sample() const { return !Folded && s + kDepth >= p.S_; }

  __device__ void advance() {
    if constexpr (Folded) {
      n += kDepth;
    } else {
      s += kDepth;
      if (s < p.S_) {
        left += kDepth * p.g_position;
        right += kDepth * p.a_position;
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
  template <class T>
  __device__ void fetch(T (&g_values)[kRows][Columns], T (&a_values)[kRows][Columns]) const {
    const int64_t rest = (Folded ? last - n : p.S_ - s) - row;
    const int rows = rest < kDepth ? int(rest) : kDepth;
    const int64_t a_step = kStep * (Folded ? p.a_sample : p.a_position);
    const int64_t g_step = kStep * (Folded ? p.g_sample : p.g_position);
    read<T>(right, rows, a_step, p.I - i, [&](int r, int c, T x) { a_values[r][c] = Folded ? T(x * x) : x; });
    if constexpr (!Folded) {
      read<T>(left, rows, g_step, p.O - o, [&](int r, int c, T x) { g_values[r][c] = x; });
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < Columns; ++c) g_values[r][c] = 0;
      const S* from = left;
#pragma unroll 1
      for (int64_t vector = 0; vector < p.V; ++vector, from += p.g_vector)
        read<T>(from, rows, g_step, p.O - o, [&](int r, int c, T x) { g_values[r][c] += x * x; });
    }
  }

 private:
  __device__ void seek() {
    left = p.g + v * p.g_vector + n * p.g_sample + s * p.g_position + row * (Folded ? p.g_sample : p.g_position) + o;
    right = p.a + n * p.a_sample + s * p.a_position + row * (Folded ? p.a_sample : p.a_position) + i;
  }

  template <class T>
  __device__ static T value(const S* from) {
    if constexpr (std::is_same_v<T, uint16_t>) return *reinterpret_cast<const uint16_t*>(from);
    else return widen(*from);
  }

  // Calls take(r, c, value) for the thread's rows of a stage, of which `rows` and `columns` are left, zero beyond. What
  // is multiplied as it is stored, uint16_t, stays so.
  template <class T, class Take>
  __device__ static void read(const S* from, int rows, int64_t step, int64_t columns, Take take) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < Columns; ++c)
        take(r, c, r * kStep < rows && c < columns ? value<T>(from + r * step + c) : T(0));
  }
};

using Fragments = float[2][8][4];  // a warp's 32 x 64: 2 tiles of 16 along o, 8 of 8 along i

// Shared memory of one stage in 16-bit words: Parts = 1 holds the values, Parts = 2 their high and low bfloat16 halves,
// whose three leading products give float32 quality.
template <class H, int Parts>
struct HalfStage {
  static constexpr float kLargest = 0x1.fep127f;  // of bfloat16
  alignas(16) H left[Parts][kDepth][kPitch];      // ldmatrix reads rows of 16 bytes
  alignas(16) H right[Parts][kDepth][kPitch];

  using Value = std::conditional_t<Parts == 1, uint16_t, float>;

  // Two neighbours at once.
  __device__ static void put(H (&panel)[Parts][kDepth][kPitch], int k, int column, const Value (&x)[2]) {
    if constexpr (Parts == 1) {
      word(panel[0][k][column]) = x[0] | unsigned(x[1]) << 16;
    } else {
      // An infinite or rounded-up high part would leave inf - inf: the largest one, and the rest in the low part.
      const unsigned high = packed_bfloat16(fminf(fmaxf(x[0], -kLargest), kLargest),  //
                                            fminf(fmaxf(x[1], -kLargest), kLargest));
      word(panel[0][k][column]) = high;
      word(panel[1][k][column]) =
          packed_bfloat16(x[0] - __uint_as_float(high << 16), x[1] - __uint_as_float(high & 0xffff0000u));
    }
  }
  __device__ static unsigned& word(H& first) { return reinterpret_cast<unsigned&>(first); }

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
  struct alignas(8) Two {
    unsigned x, y;
  };
  alignas(8) unsigned left[1][kDepth][kPitch];
  alignas(8) unsigned right[1][kDepth][kPitch];

  using Value = float;

  __device__ static void put(unsigned (&panel)[1][kDepth][kPitch], int k, int column, const float (&x)[2]) {
    reinterpret_cast<Two&>(panel[0][k][column]) = {rounded_to_tf32(x[0]), rounded_to_tf32(x[1])};
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
template <class L, class Stage>
struct Staged {
  typename Stage::Value left[L::kRows][2], right[L::kRows][2];

  __device__ void store(const L& loader, Stage& shared) const {
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) {
      Stage::put(shared.left, loader.row + r * L::kStep, loader.column, left[r]);
      Stage::put(shared.right, loader.row + r * L::kStep, loader.column, right[r]);
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
  Loader<S, Folded, 2> loader(p, blockIdx.z, o, i);
  Fragments main = {}, tmp = {};
  Staged<Loader<S, Folded, 2>, Stage> next;
  if (loader.open()) loader.fetch(next.left, next.right);
  for (int turn = 0; loader.open(); turn ^= 1) {
    Stage& now = shared[turn];
    const bool closes = loader.closes_sample();
    next.store(loader, now);
    __syncthreads();
    loader.advance();
    if (loader.open()) loader.fetch(next.left, next.right);
    now.product(tmp, row, column);
    if (closes) close<true>(main, tmp);
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
  Loader<double, Folded, 1> loader(p, blockIdx.z, o, i);
  double main[4][4] = {}, tmp[4][4] = {};
  for (; loader.open(); loader.advance()) {
    double g[loader.kRows][1], a[loader.kRows][1];
    loader.fetch(g, a);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < loader.kRows; ++r) {
      left[loader.row + r * loader.kStep][loader.column] = g[r][0];
      right[loader.row + r * loader.kStep][loader.column] = a[r][0];
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

int64_t outer_square_splits(int64_t V, int64_t N, int64_t S, int64_t I, int64_t O, bool is_double, int64_t fitting,
                            int processors) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  const int64_t tile = is_double ? kDoubleTile : kTile, tiles = ceil_div(I, tile) * ceil_div(O, tile);
  const Work work = S == 1 ? Work{tiles, ceil_div(N, kDepth), 1} : Work{tiles, N, V * ceil_div(S, kDepth)};
  return best_splits(work, std::min<int64_t>(fitting, 65535), processors);
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
