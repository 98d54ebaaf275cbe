#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../draw.h"
#include "../softmax_args.h"

// Launchers on raw pointers, extents and a stream; no torch headers, so that device code compiles in seconds anywhere.
namespace curvext::cuda {

enum class Type { float64, float32, bfloat16, float16 };

// How float32 products run on the tensor cores: as three bfloat16 products, or in TF32.
enum class Float32Mode { bf16x3, tf32 };

struct OuterSquareLaunch {
  const void* a;  // [N,S,I], rows of I contiguous values
  const void* g;  // [V,N,S,O], rows of O contiguous values
  int64_t V, N, S, I, O;
  int64_t a_sample, a_position;
  int64_t g_vector, g_sample, g_position;
  int64_t splits;
  void* parts;   // [splits,O,I] of the accumulation type; unused for splits = 1
  void* result;  // [O,I]
  Type type;
  Float32Mode mode;
};

// Number of runs of samples, at most as many as parts fit the workspace, with which the processors are busy longest.
int64_t outer_square_splits(int64_t V, int64_t N, int64_t S, int64_t I, int64_t O, bool is_double, int64_t fitting,
                            int processors);
cudaError_t outer_square(const OuterSquareLaunch& launch, cudaStream_t stream);

// out[i,j] = out[j,i] for j < i, of the accumulation type
struct MirrorLaunch {
  void* out;  // [D,D], contiguous
  int64_t D;
  Type type;
};

cudaError_t outer_cov(const MirrorLaunch& launch, cudaStream_t stream);

// out[r] += sum_sc x[r,s,c] y[r,s,c]
struct DotsLaunch {
  const void* x;  // [rows, positions, features] of the accumulation type, unit stride over features
  const void* y;  // likewise, of `type`
  void* out;      // [rows] of the accumulation type
  int64_t rows, positions, features;
  int64_t x_row, x_position, y_row, y_position, out_row;
  Type type;
};

cudaError_t outer_dot(const DotsLaunch& launch, cudaStream_t stream);
cudaError_t outer_norm(const DotsLaunch& launch, cudaStream_t stream);

// out[n,m] += sum_st p[n,s,m,t] q[n,s,m,t], all of the accumulation type
struct PairsLaunch {
  const void* p;  // [N,S,M,R], contiguous
  const void* q;  // likewise
  void* out;      // [N,M]
  int64_t N, S, M, R;
  int64_t out_row, out_column;
  Type type;
};

cudaError_t outer_gram(const PairsLaunch& launch, cudaStream_t stream);

// h[n,s,o] = sum_v c[v,n] g[v,n,s,o]
struct WeighLaunch {
  const void* c;  // [V,N] of the accumulation type
  const void* g;  // [V,N,S,O] of `type`
  void* h;        // [N,S,O] of the accumulation type, contiguous
  int64_t V, N, S, O;
  int64_t c_vector, c_sample;
  int64_t g_vector, g_sample, g_position, g_feature;
  Type type;
};

cudaError_t outer_sum(const WeighLaunch& launch, cudaStream_t stream);

struct SoftmaxLaunch {
  SoftmaxArgs<void, void> args;  // of `type` and its accumulation type
  Type type;
};

cudaError_t softmax_hessian_mm(const SoftmaxLaunch& launch, cudaStream_t stream);
cudaError_t softmax_residual(const SoftmaxLaunch& launch, cudaStream_t stream);
cudaError_t softmax_root_mm(const SoftmaxLaunch& launch, cudaStream_t stream);
cudaError_t softmax_root_t_mm(const SoftmaxLaunch& launch, cudaStream_t stream);
cudaError_t softmax_sample(const SoftmaxLaunch& launch, cudaStream_t stream);

struct ElementLaunch {
  const void* z;
  const void* u;   // [vectors, count], or null
  const void* w;   // of the accumulation type
  int64_t w_step;  // 1, or 0 for one weight
  void* out;
  int64_t count, vectors;
  Draw draw;
  Type type;
};

cudaError_t mse_hessian_mm(const ElementLaunch& launch, cudaStream_t stream);
cudaError_t mse_sample(const ElementLaunch& launch, cudaStream_t stream);
cudaError_t sigmoid_hessian_mm(const ElementLaunch& launch, cudaStream_t stream);
cudaError_t sigmoid_sample(const ElementLaunch& launch, cudaStream_t stream);

}  // namespace curvext::cuda
