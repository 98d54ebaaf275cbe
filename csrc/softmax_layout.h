#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/movedim.h>

#include <cstdint>
#include <optional>

#include "softmax_args.h"

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
  at::Tensor z, u, out;  // u is undefined where there are no vectors, and then `out` has K = 1
  int64_t dim;           // class dimension of z
  int64_t asked;         // class dimension of the caller's z
  Folded zf, uf, outf;

  // The result [K, *z] with the classes where the caller has them.
  at::Tensor answer() const { return dim == asked ? out : at::movedim(out, dim + 1, asked + 1); }
};

inline SoftmaxLayout softmax_layout(at::Tensor z, std::optional<at::Tensor> vectors, int64_t dim) {
  const int64_t last = z.dim() - 1, asked = dim;
  at::Tensor u = vectors.value_or(at::Tensor());
  // Logits [N,T,C] seen as [N,C,T] are rows of contiguous classes: walk them as such.
  const bool rows = dim != last && z.stride(dim) == 1 && z.size(dim) > 1 && (!u.defined() || u.stride(dim + 1) == 1);
  if (rows) {
    z = at::movedim(z, dim, last);
    if (u.defined()) u = at::movedim(u, dim + 1, last + 1);
    dim = last;
  }
  auto zf = fold(z, 0, dim);
  if (!zf) {
    z = z.contiguous();
    zf = fold(z, 0, dim);
  }
  auto uf = u.defined() ? fold(u, 1, dim + 1) : zf;
  if (!uf && u.defined()) {
    u = u.contiguous();
    uf = fold(u, 1, dim + 1);
  }
  at::Tensor out = at::empty_like(u.defined() ? u : z.unsqueeze(0), at::MemoryFormat::Contiguous);
  if (out.numel() == 0) return {z, u, out, dim, asked, {}, {}, {}};  // nothing to walk
  return {z, u, out, dim, asked, *zf, *uf, *fold(out, 1, dim + 1)};
}

// What a kernel may need beside z, its vectors and w; spread and its sum are of the accumulation type.
struct SoftmaxExtras {
  at::Tensor label, spread, spread_sum;
  Draw draw{};
};

template <class T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

// The arguments of a sweep; w is contiguous and of the accumulation type.
template <class S, class T>
SoftmaxArgs<S, T> softmax_args(const SoftmaxLayout& layout, const at::Tensor& w, const SoftmaxExtras& extras) {
  const Folded &z = layout.zf, &u = layout.uf, &out = layout.outf;
  SoftmaxArgs<S, T> args{};
  args.z = data_or_null<S>(layout.z);
  args.u = data_or_null<S>(layout.u);
  args.w = data_or_null<T>(w);
  args.out = static_cast<S*>(layout.out.data_ptr());
  args.label = data_or_null<int64_t>(extras.label);
  args.spread = data_or_null<T>(extras.spread);
  args.spread_sum = data_or_null<T>(extras.spread_sum);
  args.draw = extras.draw;
  args.vectors = layout.out.size(0);
  args.outer = z.outer;
  args.classes = z.classes;
  args.inner = z.inner;
  args.z_outer = z.outer_stride;
  args.z_class = z.class_stride;
  args.u_vector = layout.u.defined() ? layout.u.stride(0) : 0;
  args.u_outer = u.outer_stride;
  args.u_class = u.class_stride;
  args.out_vector = layout.out.stride(0);
  args.out_outer = out.outer_stride;
  args.out_class = out.class_stride;
  return args;
}

}  // namespace curvext
