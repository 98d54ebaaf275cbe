#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "widen.h"

// Contiguous values of a row in lines of 16 bytes, as memory is read fastest; for the types that are summed in float32.
namespace curvext::cuda {
namespace {

template <class S>
constexpr int kWidth = 16 / sizeof(S);  // values of a line

// 16 bytes in four registers.
template <class S>
struct Line {
  static_assert(sizeof(S) <= 4);
  unsigned word[4];

  __device__ static Line filled(S x) {
    Line line;
#pragma unroll
    for (int e = 0; e < kWidth<S>; ++e) line.set(e, x);
    return line;
  }
  __device__ static Line load(const S* p) {
    const uint4 x = *reinterpret_cast<const uint4*>(p);
    return {x.x, x.y, x.z, x.w};
  }
  __device__ void store(S* p) const { *reinterpret_cast<uint4*>(p) = {word[0], word[1], word[2], word[3]}; }

  // Of 16-bit values two to a word, by shifts: bytes addressed one by one would each take a register.
  __device__ S get(int e) const {
    if constexpr (sizeof(S) == 2) return from_bits<S>((unsigned short)(word[e / 2] >> e % 2 * 16));
    else return __uint_as_float(word[e]);
  }
  __device__ void set(int e, S x) {
    if constexpr (sizeof(S) == 2) {
      const unsigned bits = bits_of(x), other = word[e / 2] & (e % 2 ? 0xffffu : 0xffff0000u);
      word[e / 2] = other | bits << e % 2 * 16;
    } else {
      word[e] = __float_as_uint(x);
    }
  }
};

template <class S>
__device__ auto value(const Line<S>& line, int e) {
  return widened(line.get(e));
}
__device__ inline float value(const Line<__nv_bfloat16>& line, int e) {
  const unsigned word = line.word[e / 2];
  return __uint_as_float(e % 2 ? word & 0xffff0000u : word << 16);
}

}  // namespace
}  // namespace curvext::cuda
