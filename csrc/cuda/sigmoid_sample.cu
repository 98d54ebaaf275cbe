#include "elementwise.h"

namespace curvext::cuda {
namespace {

// sqrt(w) (p - b), b = 1 with probability p; 1 - p is the p of -z. Where the number drawn lies closer to p than float
// tells, p is formed in double, so that labels are the same for every dtype and device.
struct SigmoidSample {
  template <class T>
  __device__ static T score(T z, T w, uint64_t datum, uint64_t position) {
    const double drawn = uniform(mixed(datum ^ position * kGolden));
    const T e = exponential(z < 0 ? z : -z);
    const T less = e / (1 + e), more = 1 / (1 + e);
    const T p = z < 0 ? less : more, q = z < 0 ? more : less;
    bool label = drawn < double(p);
    if (fabs(drawn - double(p)) < 1e-5) label = drawn < 1 / (1 + exp(-double(z)));
    return square_root(w) * (label ? -q : p);
  }
};

}  // namespace

cudaError_t sigmoid_sample(const ElementLaunch& launch, cudaStream_t stream) {
  return each_element<SigmoidSample, true>(launch, stream);
}

}  // namespace curvext::cuda
