#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace curvext::cuda {
namespace {

__device__ inline float widened(float x) { return x; }
__device__ inline double widened(double x) { return x; }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(__half x) { return __half2float(x); }

__device__ inline void narrow(float x, float* p) { *p = x; }
__device__ inline void narrow(double x, double* p) { *p = x; }
__device__ inline void narrow(float x, __nv_bfloat16* p) { *p = __float2bfloat16_rn(x); }
__device__ inline void narrow(float x, __half* p) { *p = __float2half_rn(x); }

template <class S>
__device__ S from_bits(unsigned short x);
template <>
__device__ inline __nv_bfloat16 from_bits<__nv_bfloat16>(unsigned short x) {
  return __ushort_as_bfloat16(x);
}
template <>
__device__ inline __half from_bits<__half>(unsigned short x) {
  return __ushort_as_half(x);
}
__device__ inline unsigned short bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
__device__ inline unsigned short bits_of(__half x) { return __half_as_ushort(x); }

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
// within 2 ulp for divisors from 1 to 2^126, as sums over classes are
__device__ inline float quotient(float x, float y) { return __fdividef(x, y); }
__device__ inline double quotient(double x, double y) {
  double r = __fdividef(1.0f, float(y));  // Newton's steps double its digits; a division would be a call
  r = r * (2 - y * r);
  r = r * (2 - y * r);
  const double q = x * r;
  return q + r * (x - q * y);
}
__device__ inline float square_root(float x) { return sqrtf(x); }
__device__ inline double square_root(double x) { return sqrt(x); }

}  // namespace
}  // namespace curvext::cuda
