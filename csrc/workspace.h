#pragma once

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdint>

// Memory that the outer-product kernels take beside their results. Each kernel has a size that suits its device; a test
// replaces it by a small one, so that the loops over pieces run more than once on inputs that a test can afford.
namespace curvext {

inline std::atomic<int64_t> replaced_workspace{0};

// The bytes that a kernel may take, whose own choice is `own`.
inline int64_t workspace_bytes(int64_t own) {
  const int64_t bytes = replaced_workspace.load(std::memory_order_relaxed);
  return bytes > 0 ? bytes : own;
}

// Every kernel takes pieces of this many bytes; 0 gives each its own choice again.
inline void use_workspace(int64_t bytes) {
  TORCH_CHECK_VALUE(bytes >= 0, "use_workspace: bytes is ", bytes, ", expected a size, or 0 for each kernel's own");
  replaced_workspace.store(bytes, std::memory_order_relaxed);
}

}  // namespace curvext
