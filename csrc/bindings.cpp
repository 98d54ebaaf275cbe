#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>  // tensors as arguments; torch/extension.h brings far more
#include <torch/version.h>

#include "cpu/isa.h"
#include "kernels.h"
#include "reading.h"
#include "workspace.h"

#define CURVEXT_STRING_OF(x) #x
#define CURVEXT_STRING(x) CURVEXT_STRING_OF(x)

namespace {

// The same names for every device; `where` is the namespace that implements them.
#define CURVEXT_BIND_KERNELS(m, where)                                                                              \
  m.def("outer_cov", &where::outer_cov, py::arg("x"), py::arg("w"), unlocked);                                      \
  m.def("outer_dot", &where::outer_dot, py::arg("a"), py::arg("g"), py::arg("W"), unlocked);                        \
  m.def("outer_gram", &where::outer_gram, py::arg("a"), py::arg("g"), py::arg("a2"), py::arg("g2"), unlocked);      \
  m.def("outer_norm", &where::outer_norm, py::arg("a"), py::arg("g"), unlocked);                                    \
  m.def("outer_square", &where::outer_square, py::arg("a"), py::arg("g"), unlocked);                                \
  m.def("outer_sum", &where::outer_sum, py::arg("a"), py::arg("g"), py::arg("c"), unlocked);                        \
  m.def("mse_hessian_mm", &where::mse_hessian_mm, py::arg("z"), py::arg("u"), py::arg("w"), unlocked);              \
  m.def("mse_sample", &where::mse_sample, py::arg("z"), py::arg("w"), py::arg("seed"), py::arg("draw"),             \
        py::arg("first"), unlocked);                                                                                \
  m.def("sigmoid_hessian_mm", &where::sigmoid_hessian_mm, py::arg("z"), py::arg("u"), py::arg("w"), unlocked);      \
  m.def("sigmoid_sample", &where::sigmoid_sample, py::arg("z"), py::arg("w"), py::arg("seed"), py::arg("draw"),     \
        py::arg("first"), unlocked);                                                                                \
  m.def("softmax_hessian_mm", &where::softmax_hessian_mm, py::arg("z"), py::arg("u"), py::arg("w"), py::arg("dim"), \
        unlocked);                                                                                                  \
  m.def("softmax_residual", &where::softmax_residual, py::arg("z"), py::arg("target"), py::arg("w"),                \
        py::arg("spread"), py::arg("dim"), unlocked);                                                               \
  m.def("softmax_root_mm", &where::softmax_root_mm, py::arg("z"), py::arg("v"), py::arg("w"), py::arg("dim"),       \
        unlocked);                                                                                                  \
  m.def("softmax_root_t_mm", &where::softmax_root_t_mm, py::arg("z"), py::arg("u"), py::arg("w"), py::arg("dim"),   \
        unlocked);                                                                                                  \
  m.def("softmax_sample", &where::softmax_sample, py::arg("z"), py::arg("w"), py::arg("seed"), py::arg("draw"),     \
        py::arg("first"), py::arg("dim"), unlocked);

py::dict build_info() {
  py::dict info;
  info["simd"] = curvext::cpu::simd_level();
  info["simd_levels"] = curvext::cpu::simd_levels();
  info["products_by_tiles"] = curvext::cpu::products_by_tiles();
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["torch"] = TORCH_VERSION;
#ifdef CURVEXT_CUDA
  info["cuda"] = CURVEXT_STRING(CURVEXT_CUDA);
  info["cuda_arch"] = CURVEXT_STRING(CURVEXT_CUDA_ARCH);
#else
  info["cuda"] = py::none();
  info["cuda_arch"] = py::none();
#endif
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  return info;
}

// pybind11 knows c10::Error only as std::exception, hence as RuntimeError.
void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const c10::ValueError& error) {
      PyErr_SetString(PyExc_ValueError, error.what_without_backtrace());
    } catch (const c10::TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what_without_backtrace());
    }
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  translate_errors();
  m.def("build_info", &build_info, "How this extension was built, and the instruction set in use.");
  m.def("reaches_cpu_kernel", &curvext::reaches_cpu_kernel);
  m.def("read", &curvext::read, py::arg("modules"), py::arg("batches"), py::arg("simple"), py::arg("standard"),
        py::arg("tensors"), py::arg("contents"));
  m.def("is_same", &curvext::is_same);
  m.def("all_finite", &curvext::all_finite);
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  auto cpu = m.def_submodule("cpu");
  CURVEXT_BIND_KERNELS(cpu, curvext::cpu)
  cpu.def("simd_levels", &curvext::cpu::simd_levels);
  cpu.def("use_simd", &curvext::cpu::use_simd, py::arg("level"));
  cpu.def("use_workspace", &curvext::use_workspace, py::arg("bytes"));
  cpu.def("use_products_by_tiles", &curvext::cpu::use_products_by_tiles, py::arg("tiles"));
#ifdef CURVEXT_CUDA
  auto cuda = m.def_submodule("cuda");
  CURVEXT_BIND_KERNELS(cuda, curvext::cuda)
#endif
}
