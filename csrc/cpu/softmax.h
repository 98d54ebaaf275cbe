#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "../checks.h"
#include "../softmax_layout.h"
#include "isa.h"

// One sweep over the classes of every position: how it is cut into tasks, for all kernels that sweep.
namespace curvext::cpu {

// About this many logits are worth a thread.
constexpr int64_t kSoftmaxGrain = 16384;
// Rows of at most this many classes are gathered, so that the lanes are positions.
constexpr int64_t kFewClasses = 16;
// Positions that are no whole vector of neighbours are gathered up to this many classes.
constexpr int64_t kGatheredClasses = 1024;

template <class S, class T>
void sweep(const SoftmaxLayout& layout, const at::Tensor& w, const SoftmaxExtras& extras, int64_t lanes,
           const SoftmaxWalks<S, T>& walks) {
  const SoftmaxArgs<S, T> args = softmax_args<S, T>(layout, w, extras);
  const auto parts = [](int64_t all, int64_t size) { return (all + size - 1) / size; };
  // as wide as leaves each thread one
  const int64_t panels_of_outer = parts(at::get_num_threads(), args.outer);
  const int64_t panel =
      std::min(parts(parts(args.inner, panels_of_outer), lanes) * lanes, kSoftmaxPanelBytes / int64_t(sizeof(S)));
  const auto run = [&](int64_t tasks, int64_t positions, int64_t scratch, auto walk) {
    const int64_t work = std::max<int64_t>(1, args.classes * args.vectors * positions);
    at::parallel_for(0, tasks, std::max<int64_t>(1, kSoftmaxGrain / work), [&](int64_t begin, int64_t end) {
      const auto memory = std::unique_ptr<T[]>(new T[scratch]);
      walk(begin, end, memory.get());
    });
  };
  const int64_t positions = args.outer * args.inner;
  const int64_t few = args.inner == 1 ? kFewClasses : args.inner < lanes ? kGatheredClasses : 0;
  if (args.classes <= few) {
    run(parts(positions, lanes), lanes, (1 + 2 * kSoftmaxVectors) * args.classes * lanes,
        [&](int64_t begin, int64_t end, T* scratch) { walks.tiles(args, begin, end, scratch); });
  } else if (args.inner == 1) {
    run(positions, 1, args.classes,
        [&](int64_t begin, int64_t end, T* scratch) { walks.rows(args, begin, end, scratch); });
  } else {
    run(args.outer * parts(args.inner, panel), panel, 0,
        [&](int64_t begin, int64_t end, T*) { walks.columns(args, panel, begin, end); });
  }
}

// Sweeps by the walks that `choose` takes from the table of a dtype; returns the result [K, *z].
template <class Choose>
at::Tensor swept(const at::Tensor& z, const std::optional<at::Tensor>& vectors, const at::Tensor& w, int64_t dim,
                 const SoftmaxExtras& extras, Choose choose) {
  const SoftmaxLayout layout = softmax_layout(z, vectors, dim);
  if (layout.out.numel() == 0) return layout.answer();
  const at::Tensor weights = w.to(accumulation_type(z.scalar_type())).contiguous();
  const auto by = [&](const auto& ops) { sweep(layout, weights, extras, ops.lanes, choose(ops)); };
  const Primitives& level = primitives();
  switch (z.scalar_type()) {
    case at::kDouble: by(level.softmax_double); break;
    case at::kFloat: by(level.softmax_float); break;
    case at::kBFloat16: by(level.softmax_bfloat16); break;
    default: by(level.softmax_float16);
  }
  return layout.answer();
}

}  // namespace curvext::cpu
