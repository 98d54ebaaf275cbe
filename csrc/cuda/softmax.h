#pragma once

#include "../softmax_kinds.h"
#include "launch.h"
#include "widen.h"

// The sweeps over the classes of each position. One online pass carries the largest logit, the sums over all other
// classes and r, the u of the largest; one pass writes. csrc/softmax_formulas.h says why nothing cancels. Classes
// contiguous: a warp or a block per row. Otherwise a thread per position with neighbours in the warp, so that every
// load is coalesced.
namespace curvext::cuda {
namespace {

#define CURVEXT_FORMULA __device__ inline
#include "../softmax_formulas.h"
#undef CURVEXT_FORMULA

// Sums over some classes of one position, relative to the largest logit among them, whose class is left out.
template <Softmax kind, class T>
struct Moments {
  T top, r, rest, dot;
  int best;  // -1 for no class

  __device__ static Moments none() { return {-INFINITY, 0, 0, 0, -1}; }

  // Takes in what lies below the largest logit: a class that was the largest of others, and the sums beside it.
  __device__ void take(T z, T u, T others, T dots) {
    const T shrink = exponential(z - top);
    rest += (others + 1) * shrink;
    if constexpr (kRelative<kind>) dot += (dots + (others + 1) * (u - r)) * shrink;
    else if constexpr (kDots<kind>) dot += (dots + u) * square_root(shrink);
  }

  __device__ void add(T z, T u, int c) {
    if (z == -INFINITY) return;  // a masked class has p = 0; as the first one it would give inf - inf
    if (best >= 0 && !(z > top)) return take(z, u, 0, 0);
    const Moments before = *this;
    *this = {z, u, 0, 0, c};
    if (before.best >= 0) take(before.top, before.r, before.rest, before.dot);
  }

  __device__ void add(const Moments& other) {
    if (other.best < 0) return;
    if (best < 0) {
      *this = other;
      return;
    }
    const bool mine = !(other.top > top);
    const Moments low = mine ? other : *this;
    if (!mine) *this = other;
    take(low.top, low.r, low.rest, low.dot);
  }

  __device__ Moments from_lane_xor(int mask) const {
    return {__shfl_xor_sync(~0u, top, mask), __shfl_xor_sync(~0u, r, mask), __shfl_xor_sync(~0u, rest, mask),
            __shfl_xor_sync(~0u, dot, mask), __shfl_xor_sync(~0u, best, mask)};
  }
};

// Both lanes of a pair form the same sum from the same operands in the same order.
template <Softmax kind, class T>
__device__ Moments<kind, T> warp_total(Moments<kind, T> m) {
  const int lane = threadIdx.x & 31;
  for (int mask = 1; mask < 32; mask *= 2) {
    const Moments<kind, T> other = m.from_lane_xor(mask);
    Moments<kind, T> low = lane & mask ? other : m;
    low.add(lane & mask ? m : other);
    m = low;
  }
  return m;
}

template <Softmax kind, class T, int Threads>
__device__ Moments<kind, T> row_total(Moments<kind, T> m) {
  m = warp_total(m);
  if constexpr (Threads > 32) {
    __shared__ Moments<kind, T> warps[Threads / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = m;
    __syncthreads();
    m = warps[0];
    for (int i = 1; i < Threads / 32; ++i) m.add(warps[i]);
  }
  return m;
}

// One position after its sums: what writing a class takes.
template <Softmax kind, class T>
struct Finished {
  T top, r, rest, sum, dot, mean, scale, w;
  int best;

  __device__ Finished(const Moments<kind, T>& m, T weight) : top(m.top), r(m.r), rest(m.rest), dot(m.dot), w(weight) {
    best = m.best;
    sum = rest + (best >= 0 ? 1 + (top - top) : 0);  // an infinite logit makes all of the position NaN
    finish<kind>(sum, T(1), dot, r, w, scale, mean);
  }

  // The result at one class.
  __device__ T at(T e, T u) const { return value<kind>(e, u, r, mean, scale); }
};

// The values of one position, a class apart by their strides.
template <Softmax kind, class S, class T>
struct Position {
  const SoftmaxArgs<S, T>& p;
  const S* z;
  const S* u;
  S* out;
  int64_t id, z_class, u_class, out_class;

  __device__ T logit(int64_t c) const { return widened(z[c * z_class]); }

  // u, the mass of the target, or what each class has of it
  __device__ T beside(int64_t c) const {
    if constexpr (kReads<kind>) return widened(u[c * u_class]);
    else if constexpr (kind == Softmax::residual) return p.spread ? p.spread[c] : T(0);
    else return T(0);
  }

  __device__ bool wrong_label() const {
    return kind == Softmax::residual && !(p.label[id] >= 0 && p.label[id] < p.classes);
  }

  // Corrects the value of one class; one thread calls it after the others have written.
  __device__ void fix(const Finished<kind, T>& f, int64_t drawn) const {
    if (wrong_label()) return;
    const auto likelihood = [&](int64_t c) { return quotient(exponential(logit(c) - f.top), f.sum); };
    const auto mass = [&](int64_t c) { return beside(c); };
    const auto put = [&](int64_t c, T x) { narrow(x, out + c * out_class); };
    const int64_t label = kind == Softmax::residual ? p.label[id] : drawn;
    fix_label<kind>(f, label, p.spread ? *p.spread_sum : T(0), likelihood, mass, put);
  }
};

// The race of csrc/cpu/isa/softmax.h. A class that cannot win is dismissed in float by a lower bound of its number; the
// others run in double.
struct Race {
  double score = 0;
  float bar = 0;  // not above the score
  int64_t label = 0;

  __device__ static bool close(float e, uint64_t bits, float bar) {
    return e * 1.0001f >= __uint2float_rd(unsigned(bits >> 32)) * 0x1p-32f * bar;
  }

  __device__ void run(double difference, uint64_t bits, int64_t c) {
    const double mine = exp(difference) / -log1p(-uniform(bits));
    if (mine > score) {
      score = mine;
      bar = __double2float_rd(mine) * 0.99999f;
      label = c;
    }
  }

  __device__ void take(double other_score, int64_t other_label) {
    if (other_score > score || (other_score == score && other_label < label)) {
      score = other_score;
      label = other_label;
    }
  }
};

// The winner among the threads of a row; the lowest class among equals, as one after the other would give.
template <int Threads>
__device__ int64_t row_winner(Race race) {
  for (int mask = 1; mask < 32; mask *= 2)
    race.take(__shfl_xor_sync(~0u, race.score, mask), __shfl_xor_sync(~0u, race.label, mask));
  if constexpr (Threads > 32) {
    __shared__ double scores[Threads / 32];
    __shared__ int64_t labels[Threads / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      scores[threadIdx.x / 32] = race.score;
      labels[threadIdx.x / 32] = race.label;
    }
    __syncthreads();
    for (int i = 0; i < Threads / 32; ++i) race.take(scores[i], labels[i]);
  }
  return race.label;
}

// Threads of one row: a warp (several rows per block) or the whole block. The row's z and u come from L2 in the second
// pass.
template <Softmax kind, class S, class T, int Threads>
__global__ void __launch_bounds__(Threads == 32 ? 128 : Threads, Threads == 32 ? 4 : 1)
    rows_kernel(const __grid_constant__ SoftmaxArgs<S, T> p) {
  const int64_t m = Threads == 32 ? int64_t(blockIdx.x) * blockDim.y + threadIdx.y : int64_t(blockIdx.x);
  if (m >= p.outer) return;
  const T w = p.w[m];
  for (int64_t k = 0; k < p.vectors; ++k) {
    const Position<kind, S, T> at{p,
                                  p.z + m * p.z_outer,
                                  kReads<kind> ? p.u + k * p.u_vector + m * p.u_outer : nullptr,
                                  p.out + k * p.out_vector + m * p.out_outer,
                                  m,
                                  1,
                                  1,
                                  1};
    if (w == 0) {
      for (int64_t c = threadIdx.x; c < p.classes; c += Threads) narrow(T(0), at.out + c);
      continue;
    }
    Moments<kind, T> part = Moments<kind, T>::none();
    for (int64_t c = threadIdx.x; c < p.classes; c += Threads)
      part.add(at.logit(c), kDots<kind> ? at.beside(c) : T(0), int(c));
    Finished<kind, T> f(row_total<kind, T, Threads>(part), w);
    if (at.wrong_label()) f.scale = NAN;
    int64_t drawn = 0;
    if constexpr (kind == Softmax::sample) {
      const uint64_t state = p.draw.state(m);
      Race race;
      // every lane stays until the last class, so that a warp shares the bar
      for (int64_t begin = 0; begin < p.classes; begin += Threads) {
        const int64_t c = begin + threadIdx.x;
        const bool inside = c < p.classes;
        const T z = inside ? at.logit(c) : T(0), e = inside ? exponential(z - f.top) : T(0);
        if (inside) narrow(f.at(e, 0), at.out + c);
        const uint64_t bits = mixed(state ^ uint64_t(c) * kGolden);
        const bool close = inside && Race::close(float(e), bits, race.bar);
        if (__any_sync(~0u, close)) {
          if (close) race.run(double(z) - double(f.top), bits, c);
          race.bar =
              __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(race.bar)));  // not negative: ordered as bits
        }
      }
      drawn = row_winner<Threads>(race);
    } else {
      for (int64_t c = threadIdx.x; c < p.classes; c += Threads)
        narrow(f.at(exponential(at.logit(c) - f.top), at.beside(c)), at.out + c);
    }
    if constexpr (!kRelative<kind>) {
      if constexpr (Threads > 32) __syncthreads();
      else __syncwarp();
      if (threadIdx.x == 0) at.fix(f, drawn);
    }
  }
}

constexpr int kColumnThreads = 128;

template <Softmax kind, class S, class T>
__device__ void column(const SoftmaxArgs<S, T>& p, int64_t m, int64_t i, int64_t k) {
  const int64_t id = m * p.inner + i;
  const T w = p.w[id];
  const Position<kind, S, T> at{p,
                                p.z + m * p.z_outer + i,
                                kReads<kind> ? p.u + k * p.u_vector + m * p.u_outer + i : nullptr,
                                p.out + k * p.out_vector + m * p.out_outer + i,
                                id,
                                p.z_class,
                                p.u_class,
                                p.out_class};
  if (w == 0) {
    for (int64_t c = 0; c < p.classes; ++c) narrow(T(0), at.out + c * p.out_class);
    return;
  }
  Moments<kind, T> total = Moments<kind, T>::none();
  for (int64_t c = 0; c < p.classes; ++c) total.add(at.logit(c), kDots<kind> ? at.beside(c) : T(0), int(c));
  Finished<kind, T> f(total, w);
  if (at.wrong_label()) f.scale = NAN;
  Race race;
  [[maybe_unused]] const uint64_t state = kind == Softmax::sample ? p.draw.state(id) : 0;
  for (int64_t c = 0; c < p.classes; ++c) {
    const T z = at.logit(c), e = exponential(z - f.top);
    narrow(f.at(e, at.beside(c)), at.out + c * p.out_class);
    if constexpr (kind == Softmax::sample) {
      const uint64_t bits = mixed(state ^ uint64_t(c) * kGolden);
      if (Race::close(float(e), bits, race.bar)) race.run(double(z) - double(f.top), bits, c);
    }
  }
  if constexpr (!kRelative<kind>) at.fix(f, race.label);
}

// A thread takes one position; a grid that follows outer and inner indices spares the division.
template <Softmax kind, class S, class T>
__global__ void __launch_bounds__(kColumnThreads, 4) columns_kernel(const __grid_constant__ SoftmaxArgs<S, T> p) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t m = (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * blockDim.y + threadIdx.y;
  if (i >= p.inner || m >= p.outer) return;
  for (int64_t k = 0; k < p.vectors; ++k) column<kind>(p, m, i, k);
}

template <Softmax kind, class S, class T>
cudaError_t run(const SoftmaxLaunch& l, cudaStream_t stream) {
  const SoftmaxArgs<S, T> p = l.args.as<S, T>();
  if (p.inner > 1) {
    unsigned across = 1;  // neighbours that a block takes, and outer indices beside them
    while (across < kColumnThreads && across < p.inner) across *= 2;
    const unsigned down = kColumnThreads / across;
    const int64_t tiles = (p.outer + down - 1) / down;
    const int64_t most = 65535;  // blocks along y and z
    const dim3 grid(unsigned((p.inner + across - 1) / across), unsigned(tiles < most ? tiles : most),
                    unsigned((tiles + most - 1) / most));
    columns_kernel<kind, S, T><<<grid, dim3(across, down), 0, stream>>>(p);
  } else if (p.classes <= 1024) {
    rows_kernel<kind, S, T, 32><<<unsigned((p.outer + 3) / 4), dim3(32, 4), 0, stream>>>(p);
  } else {
    rows_kernel<kind, S, T, 512><<<unsigned(p.outer), 512, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

template <Softmax kind>
cudaError_t sweep(const SoftmaxLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run<kind, double, double>(launch, stream);
    case Type::float32: return run<kind, float, float>(launch, stream);
    case Type::bfloat16: return run<kind, __nv_bfloat16, float>(launch, stream);
    default: return run<kind, __half, float>(launch, stream);
  }
}

}  // namespace
}  // namespace curvext::cuda
