#pragma once

#include "launch.h"

namespace curvext::cuda {
namespace {

// What each thread of outer_square is given: a [N,S,I] and g [V,N,S,O] by their strides, and into how many runs N is
// cut.
template <class T>
struct Problem {
  const T* a;
  const T* g;
  int64_t V, N, S, I, O;
  int64_t a_sample, a_position, g_vector, g_sample, g_position;
  int64_t splits;
};

}  // namespace
}  // namespace curvext::cuda
