#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace curvext::cuda {
namespace {

__device__ inline float widened(float x) { return x; }
__device__ inline double widened(double x) { return x; }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(__half x) { return __half2float(x); }

}  // namespace
}  // namespace curvext::cuda
