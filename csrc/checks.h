#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

// Argument checks shared by the CPU and CUDA hosts. Each message names the function, the argument, what came and what
// was wanted; bindings.cpp turns them into ValueError and TypeError.
namespace curvext {

inline at::ScalarType accumulation_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_dtype(const char* function, const char* argument, const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, function,
                   ": ", argument, " has dtype ", type, ", expected float64, float32, bfloat16 or float16");
}

inline void check_same_dtype(const char* function, const char* argument, const at::Tensor& tensor,
                             const char* other_argument, const at::Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), function, ": ", argument, " has dtype ",
                   tensor.scalar_type(), " but ", other_argument, " has ", other.scalar_type(),
                   ", expected the same dtype");
}

inline void check_same_device(const char* function, const char* argument, const at::Tensor& tensor,
                              const char* other_argument, const at::Tensor& other) {
  TORCH_CHECK_VALUE(tensor.device() == other.device(), function, ": ", argument, " is on ", tensor.device(), " but ",
                    other_argument, " is on ", other.device(), ", expected the same device");
}

// a [N,S,I] and g [V,N,S,O], the pair that every outer-product kernel takes.
inline void check_outer_pair(const char* function, const at::Tensor& a, const at::Tensor& g) {
  TORCH_CHECK_VALUE(a.dim() == 3, function, ": a has shape ", a.sizes(), ", expected [N, S, I]");
  TORCH_CHECK_VALUE(g.dim() == 4, function, ": g has shape ", g.sizes(), ", expected [V, N, S, O]");
  TORCH_CHECK_VALUE(g.size(1) == a.size(0) && g.size(2) == a.size(1), function, ": g has shape ", g.sizes(),
                    ", expected [V, ", a.size(0), ", ", a.size(1), ", O] beside a of shape ", a.sizes());
  check_dtype(function, "a", a);
  check_same_dtype(function, "g", g, "a", a);
  check_same_device(function, "g", g, "a", a);
}

// The pair, where a may also be [N,S1,S2,I1,I2], windows of a strided tensor: S = S1 S2, I = I1 I2.
inline void check_outer_windows(const char* function, const at::Tensor& a, const at::Tensor& g) {
  if (a.dim() != 5) return check_outer_pair(function, a, g);
  TORCH_CHECK_VALUE(g.dim() == 4 && g.size(1) == a.size(0) && g.size(2) == a.size(1) * a.size(2), function,
                    ": g has shape ", g.sizes(), ", expected [V, ", a.size(0), ", ", a.size(1) * a.size(2),
                    ", O] beside windows a of shape ", a.sizes());
  check_dtype(function, "a", a);
  check_same_dtype(function, "g", g, "a", a);
  check_same_device(function, "g", g, "a", a);
}

// Windows as [N,S,I]; copies them where they are no view of that shape.
inline at::Tensor without_windows(const at::Tensor& a) {
  return a.dim() == 3 ? a : a.reshape({a.size(0), a.size(1) * a.size(2), a.size(3) * a.size(4)});
}

inline void check_same_or_accumulation_dtype(const char* function, const char* argument, const at::Tensor& tensor,
                                             const char* other_argument, const at::Tensor& other) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == other.scalar_type() || tensor.scalar_type() == accumulation_type(other.scalar_type()),
      function, ": ", argument, " has dtype ", tensor.scalar_type(), ", expected ", other.scalar_type(), " as ",
      other_argument, " or ", accumulation_type(other.scalar_type()));
}

// x [M,D] and a weight w [M] for each of its rows.
inline void check_outer_cov(const char* function, const at::Tensor& x, const at::Tensor& w) {
  TORCH_CHECK_VALUE(x.dim() == 2, function, ": x has shape ", x.sizes(), ", expected [M, D]");
  TORCH_CHECK_VALUE(w.dim() == 1 && w.size(0) == x.size(0), function, ": w has shape ", w.sizes(), ", expected [",
                    x.size(0), "], a weight for each row of x");
  check_dtype(function, "x", x);
  check_same_or_accumulation_dtype(function, "w", w, "x", x);
  check_same_device(function, "w", w, "x", x);
}

// The pair, and K matrices W [K,O,I] of the shape of its gradients.
inline void check_outer_dot(const char* function, const at::Tensor& a, const at::Tensor& g, const at::Tensor& W) {
  check_outer_pair(function, a, g);
  TORCH_CHECK_VALUE(W.dim() == 3 && W.size(1) == g.size(3) && W.size(2) == a.size(2), function, ": W has shape ",
                    W.sizes(), ", expected [K, ", g.size(3), ", ", a.size(2), "] beside a of shape ", a.sizes(),
                    " and g of shape ", g.sizes());
  check_same_or_accumulation_dtype(function, "W", W, "a", a);
  check_same_device(function, "W", W, "a", a);
}

// a [N,S,I] and g [N,S,O] with a2 [N',S',I] and g2 [N',S',O]: one vector for each datum.
inline void check_outer_gram(const char* function, const at::Tensor& a, const at::Tensor& g, const at::Tensor& a2,
                             const at::Tensor& g2) {
  TORCH_CHECK_VALUE(a.dim() == 3, function, ": a has shape ", a.sizes(), ", expected [N, S, I]");
  TORCH_CHECK_VALUE(g.dim() == 3 && g.size(0) == a.size(0) && g.size(1) == a.size(1), function, ": g has shape ",
                    g.sizes(), ", expected [", a.size(0), ", ", a.size(1), ", O] beside a of shape ", a.sizes());
  TORCH_CHECK_VALUE(a2.dim() == 3 && a2.size(2) == a.size(2), function, ": a2 has shape ", a2.sizes(),
                    ", expected [N', S', ", a.size(2), "] beside a of shape ", a.sizes());
  TORCH_CHECK_VALUE(g2.dim() == 3 && g2.size(0) == a2.size(0) && g2.size(1) == a2.size(1) && g2.size(2) == g.size(2),
                    function, ": g2 has shape ", g2.sizes(), ", expected [", a2.size(0), ", ", a2.size(1), ", ",
                    g.size(2), "] beside a2 of shape ", a2.sizes(), " and g of shape ", g.sizes());
  check_dtype(function, "a", a);
  check_same_dtype(function, "g", g, "a", a);
  check_same_dtype(function, "a2", a2, "a", a);
  check_same_dtype(function, "g2", g2, "a", a);
  check_same_device(function, "g", g, "a", a);
  check_same_device(function, "a2", a2, "a", a);
  check_same_device(function, "g2", g2, "a", a);
}

// The pair, and K weights c [K,V,N] of each of its gradients.
inline void check_outer_sum(const char* function, const at::Tensor& a, const at::Tensor& g, const at::Tensor& c) {
  check_outer_pair(function, a, g);
  TORCH_CHECK_VALUE(c.dim() == 3 && c.size(1) == g.size(0) && c.size(2) == g.size(1), function, ": c has shape ",
                    c.sizes(), ", expected [K, ", g.size(0), ", ", g.size(1), "] beside g of shape ", g.sizes());
  check_same_or_accumulation_dtype(function, "c", c, "a", a);
  check_same_device(function, "c", c, "a", a);
}

// z of any shape with a class dimension, w of z's shape without it. Returns the class dimension counted from the front.
inline int64_t check_softmax(const char* function, const at::Tensor& z, const at::Tensor& w, int64_t dim) {
  TORCH_CHECK_VALUE(z.dim() >= 1, function, ": z is a scalar, expected logits with a class dimension");
  TORCH_CHECK_VALUE(dim >= -z.dim() && dim < z.dim(), function, ": dim is ", dim,
                    ", expected a dimension of z of shape ", z.sizes());
  const int64_t classes_at = dim < 0 ? dim + z.dim() : dim;
  auto positions = z.sizes().vec();
  positions.erase(positions.begin() + classes_at);
  TORCH_CHECK_VALUE(w.sizes() == at::IntArrayRef(positions), function, ": w has shape ", w.sizes(), ", expected ",
                    at::IntArrayRef(positions), ", the shape of z without its class dimension");
  check_dtype(function, "z", z);
  check_same_or_accumulation_dtype(function, "w", w, "z", z);
  check_same_device(function, "w", w, "z", z);
  return classes_at;
}

// Vectors [K, *z.shape] beside z.
inline void check_vectors(const char* function, const at::Tensor& z, const char* argument, const at::Tensor& u) {
  TORCH_CHECK_VALUE(u.dim() == z.dim() + 1 && u.sizes().slice(1) == z.sizes(), function, ": ", argument, " has shape ",
                    u.sizes(), ", expected [K, *z.shape] with z.shape = ", z.sizes());
  check_same_dtype(function, argument, u, "z", z);
  check_same_device(function, argument, u, "z", z);
}

// A target of class indices [*w.shape], or of the mass of each class [*z.shape], and the mass that every class gets
// beside an index. Returns whether it is of indices.
inline bool check_target(const char* function, const at::Tensor& z, const at::Tensor& target, const at::Tensor& w,
                         const std::optional<at::Tensor>& spread, int64_t dim) {
  const bool indices = target.scalar_type() == at::kLong;
  TORCH_CHECK_TYPE(indices || target.scalar_type() == z.scalar_type(), function, ": target has dtype ",
                   target.scalar_type(), ", expected class indices of int64 or the mass of each class in ",
                   z.scalar_type(), " as z");
  TORCH_CHECK_VALUE(target.sizes() == (indices ? w : z).sizes(), function, ": target has shape ", target.sizes(),
                    ", expected ", (indices ? w : z).sizes(), indices ? ", an index for each position" : " as z");
  check_same_device(function, "target", target, "z", z);
  if (!spread) return indices;
  TORCH_CHECK_VALUE(indices, function, ": spread is given beside the mass of each class, expected it beside indices");
  TORCH_CHECK_VALUE(spread->dim() == 1 && spread->size(0) == z.size(dim), function, ": spread has shape ",
                    spread->sizes(), ", expected [", z.size(dim), "], one value for each class");
  check_same_or_accumulation_dtype(function, "spread", *spread, "z", z);
  check_same_device(function, "spread", *spread, "z", z);
  return indices;
}

// A datum is an index of the first dimension; its positions are counted over the others.
inline int64_t positions_of_datum(const at::Tensor& positions) {
  int64_t count = 1;
  for (int64_t d = 1; d < positions.dim(); ++d) count *= positions.size(d);
  return count;
}

// Whether a tensor is one value, expanded.
inline bool is_one_value(const at::Tensor& tensor) {
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.stride(d) != 0 && tensor.size(d) != 1) return false;
  return true;
}

// Losses that act on each output alone: w has z's shape.
inline void check_elements(const char* function, const at::Tensor& z, const at::Tensor& w) {
  TORCH_CHECK_VALUE(w.sizes() == z.sizes(), function, ": w has shape ", w.sizes(), ", expected ", z.sizes(), " as z");
  check_dtype(function, "z", z);
  check_same_or_accumulation_dtype(function, "w", w, "z", z);
  check_same_device(function, "w", w, "z", z);
}

}  // namespace curvext
