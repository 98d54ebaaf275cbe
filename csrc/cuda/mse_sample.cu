#include "elementwise.h"

namespace curvext::cuda {
namespace {

// sqrt(2 w) e by Box and Muller: an even position takes the cosine of its pair, the odd one after it the sine.
struct MseSample {
  template <class T>
  __device__ static T score(T, T w, uint64_t datum, uint64_t position) {
    const uint64_t pair = position & ~uint64_t(1);
    const double radius = sqrt(-2 * log(uniform(mixed(datum ^ pair * kGolden))));
    const double turns = 2 * uniform(mixed(datum ^ (pair + 1) * kGolden));
    return square_root(w + w) * T(radius * (position & 1 ? sinpi(turns) : cospi(turns)));
  }
};

}  // namespace

cudaError_t mse_sample(const ElementLaunch& launch, cudaStream_t stream) {
  return each_element<MseSample, true>(launch, stream);
}

}  // namespace curvext::cuda
