#include <algorithm>
#include <iterator>

#include "outer_square_double.h"
#include "outer_square_tensor_cores.h"
#include "waves.h"

// outer_square: which kernel a launch takes, and the sum of the parts of runs of samples.
namespace curvext::cuda {
namespace {

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
Problem<S> problem_of(const OuterSquareLaunch& l) {
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

// Whether every row of both tensors begins at a multiple of 16 bytes and ends at one. Strides of dimensions of size 1
// count: the walks add them, and a copy that is not wanted needs an aligned address all the same.
template <class S>
bool aligned(const OuterSquareLaunch& l) {
  const int64_t strides[] = {l.a_sample, l.a_position, l.g_vector, l.g_sample, l.g_position, l.I, l.O};
  const auto fits = [](int64_t stride) { return stride % kWidth<S> == 0; };
  return (reinterpret_cast<uintptr_t>(l.a) | reinterpret_cast<uintptr_t>(l.g)) % 16 == 0 &&
         std::all_of(std::begin(strides), std::end(strides), fits);
}

template <class S, class Operand, Folding folding, bool Direct = false>
cudaError_t run(const OuterSquareLaunch& l, cudaStream_t stream) {
  using K = Kind<S, Operand, folding, Direct>;
  float* out = static_cast<float*>(l.splits > 1 ? l.parts : l.result);
  const dim3 blocks = grid(l, kTile);
  const cudaError_t done =
      aligned<S>(l)
          ? launch_with<typename K::Memory>(square_kernel<K, true>, blocks, kThreads, stream, problem_of<S>(l), out)
          : launch_with<typename K::Memory>(square_kernel<K, false>, blocks, kThreads, stream, problem_of<S>(l), out);
  return done == cudaSuccess ? add_parts<float>(l, stream) : done;
}

using Bfloat16 = __nv_bfloat16;

cudaError_t run_float(const OuterSquareLaunch& l, cudaStream_t stream) {
  using Exact = HalfOperand<Bfloat16, 2, kDepth<float>>;
  using Fast = TF32Operand<kDepth<float>>;
  if (l.mode == Float32Mode::tf32)
    return l.S == 1 ? run<float, Fast, Folding::several>(l, stream) : run<float, Fast, Folding::none, true>(l, stream);
  return l.S == 1 ? run<float, Exact, Folding::several>(l, stream) : run<float, Exact, Folding::none>(l, stream);
}

cudaError_t run_bfloat16(const OuterSquareLaunch& l, cudaStream_t stream) {
  using Operand = HalfOperand<Bfloat16, 1, kDepth<Bfloat16>>;
  if (l.S > 1) return run<Bfloat16, Operand, Folding::none, true>(l, stream);
  return l.V == 1 ? run<Bfloat16, Operand, Folding::one>(l, stream)
                  : run<Bfloat16, Operand, Folding::several>(l, stream);
}

// Squares of float16 values leave its range, so they are multiplied in TF32, which has as many digits.
cudaError_t run_half(const OuterSquareLaunch& l, cudaStream_t stream) {
  return l.S > 1 ? run<__half, HalfOperand<__half, 1, kDepth<__half>>, Folding::none, true>(l, stream)
                 : run<__half, TF32Operand<kDepth<__half>>, Folding::several>(l, stream);
}

cudaError_t run_double(const OuterSquareLaunch& l, cudaStream_t stream) {
  double* out = static_cast<double*>(l.splits > 1 ? l.parts : l.result);
  const dim3 blocks = grid(l, kDoubleTile);
  if (l.S == 1) square_double_kernel<true><<<blocks, kDoubleThreads, 0, stream>>>(problem_of<double>(l), out);
  else square_double_kernel<false><<<blocks, kDoubleThreads, 0, stream>>>(problem_of<double>(l), out);
  return add_parts<double>(l, stream);
}

}  // namespace

int64_t outer_square_splits(int64_t V, int64_t N, int64_t S, int64_t I, int64_t O, bool is_double, int64_t fitting,
                            int processors) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  const int64_t tile = is_double ? kDoubleTile : kTile, tiles = ceil_div(I, tile) * ceil_div(O, tile);
  const Work work = S == 1 ? Work{tiles, ceil_div(N, 16), 1} : Work{tiles, N, V * ceil_div(S, 16)};
  return best_splits(work, std::min<int64_t>(fitting, 65535), processors);
}

cudaError_t outer_square(const OuterSquareLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run_double(launch, stream);
    case Type::bfloat16: return run_bfloat16(launch, stream);
    case Type::float16: return run_half(launch, stream);
    default: return run_float(launch, stream);
  }
}

}  // namespace curvext::cuda
