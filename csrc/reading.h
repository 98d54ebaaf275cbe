#pragma once

#include <pybind11/pybind11.h>

// What the library asks of Python's objects many times in a product, answered without running Python.
namespace py = pybind11;

namespace curvext {

// Whether torch's dispatcher would bring a call with these arguments to the CPU kernel with nothing to do on the way:
// no gradient or tangent to be carried, no transform, mode or subclass, no profiler.
bool reaches_cpu_kernel(const py::args& args);

// Everything that an answer depends on, as far as native code can read it: (objects, numbers), equal by identity and by
// bytes only if nothing has changed; None where something is of a kind that only Python's own reading knows.
//
//   modules    their classes, forward, training, attributes, hooks, submodules, parameters and buffers
//   batches    their tensors, by address, version, sizes and strides
//   simple     types whose values never change
//   standard   names of attributes that every module has
//   tensors    types of tensors that are no subclass
//   contents   whether to read the contents of the modules' tensors
py::object read(const py::list& modules, const py::object& batches, const py::object& simple,
                const py::object& standard, const py::object& tensors, bool contents);

// Whether two readings are of one state.
bool is_same(const py::tuple& a, const py::tuple& b);

// Whether all of some tensors have finite values; None where one is not plain.
py::object all_finite(const py::list& tensors);

}  // namespace curvext
