#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

// out = w p (u - <p,u>). One online pass carries (max, sum e^x, sum e^x (u - r)) with r the u of the running maximum,
// so that nothing cancels where p is 1; one pass writes. Classes contiguous: a warp or a block per row. Otherwise a
// thread per position with neighbours in the warp, so that every load is coalesced.
namespace curvext::cuda {
namespace {

__device__ float widen(float x) { return x; }
__device__ double widen(double x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widen(__half x) { return __half2float(x); }

__device__ void narrow(float x, float* p) { *p = x; }
__device__ void narrow(double x, double* p) { *p = x; }
__device__ void narrow(float x, __nv_bfloat16* p) { *p = __float2bfloat16_rn(x); }
__device__ void narrow(float x, __half* p) { *p = __float2half_rn(x); }

__device__ float exponential(float x) { return expf(x); }
__device__ double exponential(double x) { return exp(x); }

// Sums over some classes of one position, relative to the largest logit among them and its u.
template <class T>
struct Moments {
  T top, reference, sum, dot;

  __device__ static Moments none() { return {-INFINITY, 0, 0, 0}; }

  __device__ void add(T z, T u) {
    if (z == -INFINITY) return;  // a masked class has p = 0; as the first one it would give inf - inf
    if (z > top) {
      const T shrink = sum == 0 ? T(0) : exponential(top - z);
      dot = (dot + sum * (reference - u)) * shrink;
      sum *= shrink;
      top = z;
      reference = u;
    }
    const T e = exponential(z - top);
    sum += e;
    dot += e * (u - reference);
  }

  __device__ void add(const Moments& other) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    const bool mine = !(other.top > top);
    const Moments& high = mine ? *this : other;
    const Moments& low = mine ? other : *this;
    const T shrink = exponential(low.top - high.top);
    const T shift = low.reference - high.reference;
    *this = {high.top, high.reference, high.sum + low.sum * shrink, high.dot + (low.dot + low.sum * shift) * shrink};
  }

  __device__ Moments from_lane_xor(int mask) const {
    return {__shfl_xor_sync(~0u, top, mask), __shfl_xor_sync(~0u, reference, mask), __shfl_xor_sync(~0u, sum, mask),
            __shfl_xor_sync(~0u, dot, mask)};
  }
};

// Both lanes of a pair form the same sum from the same operands in the same order.
template <class T>
__device__ Moments<T> warp_total(Moments<T> m) {
  const int lane = threadIdx.x & 31;
  for (int mask = 1; mask < 32; mask *= 2) {
    const Moments<T> other = m.from_lane_xor(mask);
    Moments<T> low = lane & mask ? other : m;
    low.add(lane & mask ? m : other);
    m = low;
  }
  return m;
}

template <class T, int Threads>
__device__ Moments<T> row_total(Moments<T> m) {
  m = warp_total(m);
  if constexpr (Threads > 32) {
    __shared__ Moments<T> warps[Threads / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = m;
    __syncthreads();
    m = warps[0];
    for (int i = 1; i < Threads / 32; ++i) m.add(warps[i]);
  }
  return m;
}

template <class S, class T>
struct Problem {
  const S* z;
  const S* u;
  const T* w;
  S* out;
  int64_t vectors, outer, classes, inner;
  int64_t z_outer, z_class, u_vector, u_outer, u_class, out_vector, out_outer, out_class;
};

// Threads of one row: a warp (several rows per block) or the whole block. The row's z and u come from L2 in the second
// pass.
template <class S, class T, int Threads>
__global__ void rows_kernel(Problem<S, T> p) {
  const int64_t m = Threads == 32 ? int64_t(blockIdx.x) * blockDim.y + threadIdx.y : int64_t(blockIdx.x);
  if (m >= p.outer) return;
  const S* z = p.z + m * p.z_outer;
  const T w = p.w[m];
  for (int64_t k = 0; k < p.vectors; ++k) {
    const S* u = p.u + k * p.u_vector + m * p.u_outer;
    S* out = p.out + k * p.out_vector + m * p.out_outer;
    if (w == 0) {
      for (int64_t c = threadIdx.x; c < p.classes; c += Threads) narrow(T(0), out + c);
      continue;
    }
    Moments<T> part = Moments<T>::none();
    for (int64_t c = threadIdx.x; c < p.classes; c += Threads) part.add(widen(z[c]), widen(u[c]));
    const Moments<T> total = row_total<T, Threads>(part);
    const T mean = total.dot / total.sum, scale = w / total.sum;
    for (int64_t c = threadIdx.x; c < p.classes; c += Threads) {
      const T e = exponential(widen(z[c]) - total.top);
      narrow((e * scale) * ((widen(u[c]) - total.reference) - mean), out + c);
    }
  }
}

template <class S, class T>
__global__ void columns_kernel(Problem<S, T> p) {
  const int64_t position = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= p.outer * p.inner) return;
  const int64_t m = position / p.inner, i = position % p.inner;
  const S* z = p.z + m * p.z_outer + i;
  const T w = p.w[position];
  for (int64_t k = 0; k < p.vectors; ++k) {
    const S* u = p.u + k * p.u_vector + m * p.u_outer + i;
    S* out = p.out + k * p.out_vector + m * p.out_outer + i;
    Moments<T> total = Moments<T>::none();
    if (w != 0)
      for (int64_t c = 0; c < p.classes; ++c) total.add(widen(z[c * p.z_class]), widen(u[c * p.u_class]));
    const T mean = total.dot / total.sum, scale = w / total.sum;
    for (int64_t c = 0; c < p.classes; ++c) {
      const T e = exponential(widen(z[c * p.z_class]) - total.top);
      const T x = (e * scale) * ((widen(u[c * p.u_class]) - total.reference) - mean);
      narrow(w == 0 ? T(0) : x, out + c * p.out_class);
    }
  }
}

template <class S, class T>
cudaError_t run(const SoftmaxLaunch& l, cudaStream_t stream) {
  const Problem<S, T> p{static_cast<const S*>(l.z),
                        static_cast<const S*>(l.u),
                        static_cast<const T*>(l.w),
                        static_cast<S*>(l.out),
                        l.vectors,
                        l.outer,
                        l.classes,
                        l.inner,
                        l.z_outer,
                        l.z_class,
                        l.u_vector,
                        l.u_outer,
                        l.u_class,
                        l.out_vector,
                        l.out_outer,
                        l.out_class};
  if (l.inner > 1) {
    const int64_t positions = l.outer * l.inner;
    columns_kernel<<<unsigned((positions + 127) / 128), 128, 0, stream>>>(p);
  } else if (l.classes <= 1024) {
    rows_kernel<S, T, 32><<<unsigned((l.outer + 3) / 4), dim3(32, 4), 0, stream>>>(p);
  } else {
    rows_kernel<S, T, 512><<<unsigned(l.outer), 512, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t softmax_hessian_mm(const SoftmaxLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run<double, double>(launch, stream);
    case Type::float32: return run<float, float>(launch, stream);
    case Type::bfloat16: return run<__nv_bfloat16, float>(launch, stream);
    default: return run<__half, float>(launch, stream);
  }
}

}  // namespace curvext::cuda
