#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../checks.h"
#include "isa.h"

// One pass over the outputs of a loss that acts on each alone, for all kernels that make one.
namespace curvext::cpu {

// About this many values are worth a thread.
constexpr int64_t kElementGrain = 16384;

template <class S, class T>
void run_elements(void (*run)(const ElementProblem<S, T>&, int64_t, int64_t), const at::Tensor& z, const at::Tensor& u,
                  const at::Tensor& w, const at::Tensor& out, const Draw& draw) {
  const ElementProblem<S, T> problem{static_cast<const S*>(z.const_data_ptr()),
                                     u.defined() ? static_cast<const S*>(u.const_data_ptr()) : nullptr,
                                     w.const_data_ptr<T>(),
                                     is_one_value(w) ? 0 : 1,
                                     static_cast<S*>(out.data_ptr()),
                                     z.numel(),
                                     u.defined() ? u.size(0) : 1,
                                     draw};
  const int64_t grain = std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, problem.vectors));
  at::parallel_for(0, problem.count, grain, [&](int64_t begin, int64_t end) { run(problem, begin, end); });
}

// Runs what `choose` takes from the table of a dtype over z and its vectors u, if any; gives the result, contiguous.
template <class Choose>
at::Tensor each_element(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, const Draw& draw,
                        Choose choose) {
  const at::Tensor out = at::empty(u.defined() ? u.sizes() : z.sizes(), z.options());
  if (out.numel() == 0) return out;
  const at::Tensor values = z.contiguous(), vectors = u.defined() ? u.contiguous() : u;
  at::Tensor weights = w.to(accumulation_type(z.scalar_type()));
  if (!is_one_value(weights)) weights = weights.contiguous();
  const auto by = [&](const auto& ops) { run_elements(choose(ops), values, vectors, weights, out, draw); };
  const Primitives& level = primitives();
  switch (z.scalar_type()) {
    case at::kDouble: by(level.element_double); break;
    case at::kFloat: by(level.element_float); break;
    case at::kBFloat16: by(level.element_bfloat16); break;
    default: by(level.element_float16);
  }
  return out;
}

}  // namespace curvext::cpu
