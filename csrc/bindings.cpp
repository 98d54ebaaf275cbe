#include <torch/extension.h>
#include <torch/version.h>

#include "cpu/isa.h"
#include "kernels.h"

#define CURVEXT_STRING_OF(x) #x
#define CURVEXT_STRING(x) CURVEXT_STRING_OF(x)

namespace {

using OfPair = at::Tensor (*)(const at::Tensor&, const at::Tensor&);

using OfTriple = at::Tensor (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&);

using OfPairs = at::Tensor (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);

void bind_kernels(py::module_& m, OfTriple outer_dot, OfPairs outer_gram, OfPair outer_norm, OfPair outer_square,
                  OfTriple outer_sum,
                  at::Tensor (*softmax_hessian_mm)(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("outer_dot", outer_dot, py::arg("a"), py::arg("g"), py::arg("W"), unlocked);
  m.def("outer_gram", outer_gram, py::arg("a"), py::arg("g"), py::arg("a2"), py::arg("g2"), unlocked);
  m.def("outer_norm", outer_norm, py::arg("a"), py::arg("g"), unlocked);
  m.def("outer_square", outer_square, py::arg("a"), py::arg("g"), unlocked);
  m.def("outer_sum", outer_sum, py::arg("a"), py::arg("g"), py::arg("c"), unlocked);
  m.def("softmax_hessian_mm", softmax_hessian_mm, py::arg("z"), py::arg("u"), py::arg("w"), py::arg("dim"), unlocked);
}

py::dict build_info() {
  py::dict info;
  info["simd"] = curvext::cpu::simd_level();
  info["simd_levels"] = curvext::cpu::simd_levels();
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
  auto cpu = m.def_submodule("cpu");
  bind_kernels(cpu, &curvext::cpu::outer_dot, &curvext::cpu::outer_gram, &curvext::cpu::outer_norm,
               &curvext::cpu::outer_square, &curvext::cpu::outer_sum, &curvext::cpu::softmax_hessian_mm);
  cpu.def("simd_levels", &curvext::cpu::simd_levels);
  cpu.def("use_simd", &curvext::cpu::use_simd, py::arg("level"));
#ifdef CURVEXT_CUDA
  auto cuda = m.def_submodule("cuda");
  bind_kernels(cuda, &curvext::cuda::outer_dot, &curvext::cuda::outer_gram, &curvext::cuda::outer_norm,
               &curvext::cuda::outer_square, &curvext::cuda::outer_sum, &curvext::cuda::softmax_hessian_mm);
#endif
}
