#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/movedim.h>

#include <cstdint>
#include <optional>

// Reads a tensor [outer..., C, inner...] as three extents with three strides, so that the class dimension may stand
// anywhere and slices of larger buffers are not copied.
namespace curvext {

struct Folded {
  int64_t outer, classes, inner;
  int64_t outer_stride, class_stride, inner_stride;
};

// The common stride of dimensions [begin, end) seen as one, or nothing when they do not fold.
inline std::optional<int64_t> folded_stride(const at::Tensor& tensor, int64_t begin, int64_t end) {
  int64_t stride = 0, extent = 1;
  for (int64_t d = end - 1; d >= begin; --d) {
    if (tensor.size(d) == 1) continue;
    if (extent == 1) stride = tensor.stride(d);
    else if (tensor.stride(d) != stride * extent) return std::nullopt;
    extent *= tensor.size(d);
  }
  return stride;
}

inline int64_t extent(const at::Tensor& tensor, int64_t begin, int64_t end) {
  int64_t product = 1;
  for (int64_t d = begin; d < end; ++d) product *= tensor.size(d);
  return product;
}

// Dimensions [first, dim) are the outer ones, dim the classes, the rest the inner ones.
inline std::optional<Folded> fold(const at::Tensor& tensor, int64_t first, int64_t dim) {
  const auto outer = folded_stride(tensor, first, dim);
  const auto inner = folded_stride(tensor, dim + 1, tensor.dim());
  if (!outer || !inner) return std::nullopt;
  Folded f{extent(tensor, first, dim),
           tensor.size(dim),
           extent(tensor, dim + 1, tensor.dim()),
           *outer,
           tensor.stride(dim),
           *inner};
  const bool unit = f.inner == 1 ? (f.class_stride == 1 || f.classes == 1) : f.inner_stride == 1;
  if (!unit) return std::nullopt;
  return f;
}

// z, u and the result as the kernels walk them; whatever does not fold is made contiguous first.
struct SoftmaxLayout {
  at::Tensor z, u, out;
  int64_t dim;  // class dimension of z
  Folded zf, uf, outf;
};

inline SoftmaxLayout softmax_layout(at::Tensor z, at::Tensor u, int64_t dim) {
  const int64_t last = z.dim() - 1;
  // Logits [N,T,C] seen as [N,C,T] are rows of contiguous classes: walk them as such.
  const bool rows = dim != last && z.stride(dim) == 1 && z.size(dim) > 1 && u.stride(dim + 1) == 1;
  if (rows) {
    z = at::movedim(z, dim, last);
    u = at::movedim(u, dim + 1, last + 1);
    dim = last;
  }
  auto zf = fold(z, 0, dim);
  if (!zf) {
    z = z.contiguous();
    zf = fold(z, 0, dim);
  }
  auto uf = fold(u, 1, dim + 1);
  if (!uf) {
    u = u.contiguous();
    uf = fold(u, 1, dim + 1);
  }
  at::Tensor out = at::empty_like(u, at::MemoryFormat::Contiguous);
  return {z, u, out, dim, *zf, *uf, *fold(out, 1, dim + 1)};
}

}  // namespace curvext
