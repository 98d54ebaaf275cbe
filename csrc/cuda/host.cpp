#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/version.h>

#include "../checks.h"
#include "../kernels.h"
#include "../outer_cov.h"
#include "../outer_dot.h"
#include "../outer_gram.h"
#include "../outer_norm.h"
#include "../outer_sum.h"
#include "../softmax_layout.h"
#include "../workspace.h"
#include "launch.h"

// The door from tensors to launchers: checks, allocation, device guard, current stream.
namespace curvext::cuda {
namespace {

Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return Type::float64;
    case at::kFloat: return Type::float32;
    case at::kBFloat16: return Type::bfloat16;
    default: return Type::float16;
  }
}

int processors(const at::Tensor& tensor) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, tensor.get_device()));
  return count;
}

// What PyTorch's own products may do. Since 2.11 the first is read, which knows both the old and the new switches:
// allowTF32CuBLAS() throws where a user has set the new ones.
Float32Mode float32_mode() {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11
  const bool tf32 = at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
                    at::Float32Precision::TF32;
#else
  const bool tf32 = at::globalContext().allowTF32CuBLAS();
#endif
  return tf32 ? Float32Mode::tf32 : Float32Mode::bf16x3;
}

at::Tensor unit_columns(const at::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : tensor.contiguous();
}

// A piece of a plain product: large enough to fill the device.
int64_t piece_bytes() { return workspace_bytes(int64_t(32) << 20); }

// The partial results of outer_square.
constexpr int64_t kPartsBytes = int64_t(64) << 20;
// Columns of a strip of outer_cov: few enough to leave half out, wide enough to fill the device.
constexpr int64_t kCovTile = 512;

// One row as long as the two tensors allow: positions that follow each other in both become features.
DotsLaunch dots(const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) {
  const int64_t positions = x.size(1), features = x.size(2);
  const bool joined = x.stride(1) == features && y.stride(1) == features;
  return {x.const_data_ptr(),
          y.const_data_ptr(),
          out.data_ptr(),
          x.size(0),
          joined ? 1 : positions,
          joined ? positions * features : features,
          x.stride(0),
          x.stride(1),
          y.stride(0),
          y.stride(1),
          out.stride(0),
          type_of(y)};
}

// Launches a sweep over the classes of every position; gives the result [K, *z].
at::Tensor swept(const at::Tensor& z, const std::optional<at::Tensor>& vectors, const at::Tensor& w, int64_t dim,
                 const SoftmaxExtras& extras, cudaError_t (*launch_sweep)(const SoftmaxLaunch&, cudaStream_t)) {
  const c10::cuda::CUDAGuard guard(z.device());
  const SoftmaxLayout layout = softmax_layout(z, vectors, dim);
  if (layout.out.numel() == 0) return layout.answer();
  const at::Tensor weights = w.to(accumulation_type(z.scalar_type())).contiguous();
  const SoftmaxLaunch launch{softmax_args<void, void>(layout, weights, extras), type_of(z)};
  C10_CUDA_CHECK(launch_sweep(launch, c10::cuda::getCurrentCUDAStream()));
  return layout.answer();
}

// Launches one pass over z and its vectors u, if any; gives the result, contiguous.
at::Tensor each_element(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, const Draw& draw,
                        cudaError_t (*launch_pass)(const ElementLaunch&, cudaStream_t)) {
  const c10::cuda::CUDAGuard guard(z.device());
  const at::Tensor out = at::empty(u.defined() ? u.sizes() : z.sizes(), z.options());
  if (out.numel() == 0) return out;
  const at::Tensor values = z.contiguous(), vectors = u.defined() ? u.contiguous() : u;
  at::Tensor weights = w.to(accumulation_type(z.scalar_type()));
  if (!is_one_value(weights)) weights = weights.contiguous();
  const ElementLaunch launch{values.const_data_ptr(),
                             data_or_null<void>(vectors),
                             weights.const_data_ptr(),
                             is_one_value(weights) ? 0 : 1,
                             out.data_ptr(),
                             z.numel(),
                             u.defined() ? u.size(0) : 1,
                             draw,
                             type_of(z)};
  C10_CUDA_CHECK(launch_pass(launch, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

at::Tensor outer_dot(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W) {
  check_outer_dot("outer_dot", a, g, W);
  const c10::cuda::CUDAGuard guard(a.device());
  return outer_dot_by(a, g, W, piece_bytes(), [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) {
    C10_CUDA_CHECK(outer_dot(dots(unit_columns(x), unit_columns(y), out), c10::cuda::getCurrentCUDAStream()));
  });
}

at::Tensor outer_cov(const at::Tensor& x, const at::Tensor& w) {
  check_outer_cov("outer_cov", x, w);
  const c10::cuda::CUDAGuard guard(x.device());
  return outer_cov_by(x, w, cov_bytes(x, int64_t(32) << 20), kCovTile, [](const at::Tensor& out) {
    const MirrorLaunch launch{out.data_ptr(), out.size(0), type_of(out)};
    C10_CUDA_CHECK(outer_cov(launch, c10::cuda::getCurrentCUDAStream()));
  });
}

at::Tensor outer_gram(const at::Tensor& a, const at::Tensor& g, const at::Tensor& a2, const at::Tensor& g2) {
  check_outer_gram("outer_gram", a, g, a2, g2);
  const c10::cuda::CUDAGuard guard(a.device());
  return outer_gram_by(
      a, g, a2, g2, piece_bytes(), [](const at::Tensor& p, const at::Tensor& q, const at::Tensor& out) {
        const PairsLaunch launch{p.const_data_ptr(), q.const_data_ptr(), out.data_ptr(), p.size(0),     p.size(1),
                                 p.size(2),          p.size(3),          out.stride(0),  out.stride(1), type_of(p)};
        C10_CUDA_CHECK(outer_gram(launch, c10::cuda::getCurrentCUDAStream()));
      });
}

at::Tensor outer_norm(const at::Tensor& a, const at::Tensor& g) {
  check_outer_windows("outer_norm", a, g);
  const c10::cuda::CUDAGuard guard(a.device());
  return outer_norm_by(
      without_windows(a), g, piece_bytes(), [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) {
        C10_CUDA_CHECK(outer_norm(dots(unit_columns(x), unit_columns(y), out), c10::cuda::getCurrentCUDAStream()));
      });
}

at::Tensor outer_square(const at::Tensor& windows, const at::Tensor& g) {
  check_outer_windows("outer_square", windows, g);
  const c10::cuda::CUDAGuard guard(windows.device());
  const at::Tensor a = without_windows(windows);
  const int64_t V = g.size(0), N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(3);
  const auto options = a.options().dtype(accumulation_type(a.scalar_type()));
  if (V == 0 || N == 0 || S == 0 || I == 0 || O == 0) return at::zeros({O, I}, options);
  const at::Tensor x = unit_columns(a), y = unit_columns(g);
  const at::Tensor result = at::empty({O, I}, options);
  const int64_t splits = outer_square_splits(V, N, S, I, O, a.scalar_type() == at::kDouble,
                                             workspace_bytes(kPartsBytes) / int64_t(result.nbytes()), processors(a));
  at::Tensor parts = splits > 1 ? at::empty({splits, O, I}, options) : result;
  const OuterSquareLaunch launch{x.const_data_ptr(),
                                 y.const_data_ptr(),
                                 V,
                                 N,
                                 S,
                                 I,
                                 O,
                                 x.stride(0),
                                 x.stride(1),
                                 y.stride(0),
                                 y.stride(1),
                                 y.stride(2),
                                 splits,
                                 parts.data_ptr(),
                                 result.data_ptr(),
                                 type_of(a),
                                 float32_mode()};
  C10_CUDA_CHECK(outer_square(launch, c10::cuda::getCurrentCUDAStream()));
  return result;
}

at::Tensor outer_sum(const at::Tensor& a, const at::Tensor& g, const at::Tensor& c) {
  check_outer_sum("outer_sum", a, g, c);
  const c10::cuda::CUDAGuard guard(a.device());
  const auto weigh = [](const at::Tensor& c, const at::Tensor& g, const at::Tensor& h) {
    const WeighLaunch launch{c.const_data_ptr(), g.const_data_ptr(), h.data_ptr(), g.size(0),   g.size(1),
                             g.size(2),          g.size(3),          c.stride(0),  c.stride(1), g.stride(0),
                             g.stride(1),        g.stride(2),        g.stride(3),  type_of(g)};
    C10_CUDA_CHECK(outer_sum(launch, c10::cuda::getCurrentCUDAStream()));
  };
  const auto add_product = [](const at::Tensor& x, const at::Tensor& y, at::Tensor out, bool first) {
    if (first) at::mm_out(out, x.t(), y);
    else out.addmm_(x.t(), y);
  };
  return outer_sum_by(a, g, c, piece_bytes(), weigh, add_product);
}

at::Tensor softmax_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_hessian_mm", z, w, dim);
  check_vectors("softmax_hessian_mm", z, "u", u);
  return swept(z, u, w, dim, {}, softmax_hessian_mm);
}

at::Tensor softmax_root_mm(const at::Tensor& z, const at::Tensor& v, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_root_mm", z, w, dim);
  check_vectors("softmax_root_mm", z, "v", v);
  return swept(z, v, w, dim, {}, softmax_root_mm);
}

at::Tensor softmax_root_t_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_root_t_mm", z, w, dim);
  check_vectors("softmax_root_t_mm", z, "u", u);
  return swept(z, u, w, dim, {}, softmax_root_t_mm);
}

at::Tensor softmax_residual(const at::Tensor& z, const at::Tensor& target, const at::Tensor& w,
                            const std::optional<at::Tensor>& spread, int64_t dim) {
  dim = check_softmax("softmax_residual", z, w, dim);
  if (!check_target("softmax_residual", z, target, w, spread, dim))
    return swept(z, target.unsqueeze(0), w, dim, {}, softmax_residual).select(0, 0);
  SoftmaxExtras extras;
  const c10::cuda::CUDAGuard guard(z.device());
  extras.label = target.contiguous();
  if (spread) {
    extras.spread = spread->to(accumulation_type(z.scalar_type())).contiguous();
    extras.spread_sum = extras.spread.sum();
  }
  return swept(z, std::nullopt, w, dim, extras, softmax_residual).select(0, 0);
}

at::Tensor softmax_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first,
                          int64_t dim) {
  dim = check_softmax("softmax_sample", z, w, dim);
  SoftmaxExtras extras;
  extras.draw = {seed, draw, first, positions_of_datum(w)};
  return swept(z, std::nullopt, w, dim, extras, softmax_sample).select(0, 0);
}

at::Tensor mse_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w) {
  check_elements("mse_hessian_mm", z, w);
  check_vectors("mse_hessian_mm", z, "u", u);
  return each_element(z, u, w, {}, mse_hessian_mm);
}

at::Tensor mse_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first) {
  check_elements("mse_sample", z, w);
  return each_element(z, at::Tensor(), w, {seed, draw, first, positions_of_datum(z)}, mse_sample);
}

at::Tensor sigmoid_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w) {
  check_elements("sigmoid_hessian_mm", z, w);
  check_vectors("sigmoid_hessian_mm", z, "u", u);
  return each_element(z, u, w, {}, sigmoid_hessian_mm);
}

at::Tensor sigmoid_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first) {
  check_elements("sigmoid_sample", z, w);
  return each_element(z, at::Tensor(), w, {seed, draw, first, positions_of_datum(z)}, sigmoid_sample);
}

}  // namespace curvext::cuda
