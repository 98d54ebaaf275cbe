#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

// The native kernels; kernels.inc declares them once for every device.
namespace curvext::cpu {
#include "kernels.inc"
}

#ifdef CURVEXT_CUDA
namespace curvext::cuda {
#include "kernels.inc"
}
#endif
