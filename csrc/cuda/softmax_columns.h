#pragma once

#include "softmax.h"

// The sweep where the classes are not contiguous: a thread for each position, its neighbours in the warp, so that every
// load is coalesced. With many classes several slices of threads share them. The classes are read twice, in runs whose
// loads are all asked for at once.
namespace curvext::cuda {
namespace {

// Lanes: positions of a block. Slices: threads of each.
template <int Lanes_, int Slices_>
struct Panel {
  static constexpr int Lanes = Lanes_, Slices = Slices_, Threads = Lanes * Slices;
};
using WidePanel = Panel<128, 1>;
using DeepPanel = Panel<32, 8>;
constexpr int64_t kDeepClasses = 64;  // from which on slices share them

// Combines what the slices of a position bring, in their order.
template <class P, class X>
__device__ X slice_total(const X& mine, void (*add)(X&, const X&)) {
  if constexpr (P::Slices == 1) {
    return mine;
  } else {
    __shared__ X all[P::Slices][P::Lanes];
    const int lane = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    all[threadIdx.z][lane] = mine;
    __syncthreads();
    X total = all[0][lane];
    for (int slice = 1; slice < P::Slices; ++slice) add(total, all[slice][lane]);
    return total;
  }
}

// A block is across x down positions, inner and outer ones, x Slices; a grid that follows both spares a division.
template <Softmax kind, class S, class T, class P>
__global__ void __launch_bounds__(P::Threads, (kind == Softmax::sample ? 256 : 512) / P::Threads)
    columns_kernel(const __grid_constant__ SoftmaxArgs<S, T> p) {
  using M = Moments<kind, T>;
  constexpr int kRun = (kReads<kind> ? 32 : 64) / sizeof(S);  // 64 bytes on their way
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t outer = (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * blockDim.y + threadIdx.y;
  const bool inside = i < p.inner && outer < p.outer;  // the others keep the barriers
  const int64_t m = inside ? outer : 0, classes = inside ? p.classes : 0, id = inside ? m * p.inner + i : 0;
  const T w = p.w[id];
  const int slice = threadIdx.z;
  const uint64_t state = kind == Softmax::sample ? p.draw.state(id) : 0;
  T z[kRun], u[kRun];
  for (int64_t k = 0; k < p.vectors; ++k) {
    const Position<kind, S, T> at{p,
                                  p.z + m * p.z_outer + i,
                                  kReads<kind> ? p.u + k * p.u_vector + m * p.u_outer + i : nullptr,
                                  p.out + k * p.out_vector + m * p.out_outer + i,
                                  id,
                                  p.z_class,
                                  p.u_class,
                                  p.out_class};
    // visit(begin): classes begin, begin + Slices, ... are in z and u
    const auto sweep = [&](auto visit) {
      for (int64_t begin = slice; begin < classes; begin += kRun * P::Slices) {
#pragma unroll
        for (int x = 0; x < kRun; ++x) {
          const int64_t c = begin + x * P::Slices;
          z[x] = c < classes ? at.logit(c) : T(-INFINITY);
          u[x] = kReads<kind> && c < classes ? at.beside(c) : T(0);
        }
        visit(begin);
      }
    };
    M part = M::none();
    if (w != 0)
      sweep([&](int64_t begin) {
        M some = M::template of<kRun>([&](int x) { return z[x]; }, [&](int x) { return u[x]; }, [] {});
        if (some.best >= 0) some.best = int(begin + some.best * P::Slices);
        part.add(some);
      });
    const M total = slice_total<P, M>(part, [](M& sum, const M& x) { sum.add(x); });
    Finished<kind, T> f(total, w);
    if (inside && at.wrong_label()) f.scale = NAN;
    Race race;
    if (w != 0)
      sweep([&](int64_t begin) {
#pragma unroll
        for (int x = 0; x < kRun; ++x) {
          const int64_t c = begin + x * P::Slices;
          if (c >= classes) break;
          const T beside = kind == Softmax::residual ? at.beside(c) : u[x];
          narrow(f.at(exponential(z[x] - f.top), beside), at.out + c * p.out_class);
        }
        if constexpr (kind == Softmax::sample) {
#pragma unroll 1
          for (int64_t c = begin; c < classes && c < begin + kRun * P::Slices; c += P::Slices) {
            const T difference = at.logit(c) - f.top;
            const uint64_t bits = mixed(state ^ uint64_t(c) * kGolden);
            if (Race::close(float(exponential(difference)), bits, race.bar)) race.run(difference, bits, c);
          }
        }
      });
    else
      for (int64_t c = slice; c < classes; c += P::Slices) narrow(T(0), at.out + c * p.out_class);
    if constexpr (kind == Softmax::sample)
      race = slice_total<P, Race>(race, [](Race& winner, const Race& x) { winner.take(x); });
    if (!inside || w == 0) continue;
    const int64_t label = at.fixed_class(f, race.label);
    if (label >= 0 && label % P::Slices == slice) at.fix(f, label);
  }
}

template <class P, Softmax kind, class S, class T>
cudaError_t launch_columns(const SoftmaxArgs<S, T>& p, cudaStream_t stream) {
  unsigned across = 1;
  while (across < P::Lanes && across < p.inner) across *= 2;
  const unsigned down = P::Lanes / across;
  const int64_t tiles = (p.outer + down - 1) / down;
  const int64_t most = 65535;  // blocks along y and z
  const dim3 grid(unsigned((p.inner + across - 1) / across), unsigned(tiles < most ? tiles : most),
                  unsigned((tiles + most - 1) / most));
  columns_kernel<kind, S, T, P><<<grid, dim3(across, down, P::Slices), 0, stream>>>(p);
  return cudaGetLastError();
}

template <Softmax kind, class S, class T>
cudaError_t run_columns(const SoftmaxArgs<S, T>& p, cudaStream_t stream) {
  return p.classes < kDeepClasses ? launch_columns<WidePanel, kind>(p, stream)
                                  : launch_columns<DeepPanel, kind>(p, stream);
}

}  // namespace
}  // namespace curvext::cuda
