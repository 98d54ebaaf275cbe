#include "../kernels.h"
#include "softmax.h"

namespace curvext::cpu {
namespace {

// A label outside the classes is allowed where w is 0 alone.
void check_labels(const at::Tensor& label, const at::Tensor& w, int64_t classes) {
  const int64_t* at = label.const_data_ptr<int64_t>();
  const at::Tensor weights = w.to(at::kDouble).contiguous();
  const double* weight = weights.const_data_ptr<double>();
  for (int64_t m = 0; m < label.numel(); ++m)
    TORCH_CHECK_VALUE(weight[m] == 0 || (at[m] >= 0 && at[m] < classes), "softmax_residual: target has the index ",
                      at[m], " at a position of weight ", weight[m], ", expected 0 to ", classes - 1);
}

}  // namespace

at::Tensor softmax_residual(const at::Tensor& z, const at::Tensor& target, const at::Tensor& w,
                            const std::optional<at::Tensor>& spread, int64_t dim) {
  dim = check_softmax("softmax_residual", z, w, dim);
  if (!check_target("softmax_residual", z, target, w, spread, dim))
    return swept(z, target.unsqueeze(0), w, dim, {}, [](const auto& ops) { return ops.mass_residual; }).select(0, 0);
  const at::Tensor label = target.contiguous();
  check_labels(label, w, z.size(dim));
  SoftmaxExtras extras;
  extras.label = label;
  if (spread) {
    extras.spread = spread->to(accumulation_type(z.scalar_type())).contiguous();
    extras.spread_sum = extras.spread.sum();
  }
  return swept(z, std::nullopt, w, dim, extras, [](const auto& ops) { return ops.residual; }).select(0, 0);
}

}  // namespace curvext::cpu
