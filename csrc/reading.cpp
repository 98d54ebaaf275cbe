#include "reading.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "contents.h"

namespace curvext {
namespace {

// Autocast has no rule for the library's operations.
const c10::DispatchKeySet kNothingToDo = c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset |
                                         c10::DispatchKeySet(c10::DispatchKey::BackendSelect) |
                                         c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);

class Reader {
 public:
  Reader(const py::object& simple, const py::object& standard, const py::object& tensors, bool contents)
      : simple_(simple), standard_(standard), tensors_(tensors), contents_(contents) {}

  bool add_module(PyObject* module) {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(module));
    const py::object forward = py::reinterpret_steal<py::object>(PyObject_GetAttr(type, name_of_forward()));
    const py::object attributes = py::reinterpret_steal<py::object>(PyObject_GetAttr(module, name_of_dict()));
    if (!forward || !attributes || !PyDict_CheckExact(attributes.ptr())) {
      PyErr_Clear();
      return false;
    }
    add(module);
    add(type);
    add(forward.ptr());
    add_number(PyDict_GET_SIZE(attributes.ptr()));
    PyObject *name, *value;
    for (Py_ssize_t at = 0; PyDict_Next(attributes.ptr(), &at, &name, &value);) {
      if (contains(standard_, name)) {
        if (!add_standard(name, value)) return false;
        continue;
      }
      add(name);
      add(value);
      if (!add_value(value)) return false;
    }
    return true;
  }

  // A tuple, list or dictionary of tensors, which are data: their contents are not read.
  bool add_batch(PyObject* batch) {
    add(batch);
    if (PyDict_CheckExact(batch)) return add_table(batch, [&](PyObject* value) { return add_tensor(value, false); });
    if (!PyTuple_CheckExact(batch) && !PyList_CheckExact(batch)) return false;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(batch);
    add_number(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* value = PySequence_Fast_GET_ITEM(batch, i);
      add(value);
      if (!add_tensor(value, false)) return false;
    }
    return true;
  }

  py::object finished() {
    std::vector<Contents> found(held_.size());
    {
      const py::gil_scoped_release unlocked;
      for (size_t i = 0; i < held_.size(); ++i) found[i] = contents(held_[i]);
    }
    for (const Contents& each : found) {
      add_number(int64_t(each.sum));
      add_number(int64_t(each.mixed));
    }
    py::tuple objects(objects_.size());
    for (size_t i = 0; i < objects_.size(); ++i) objects[i] = std::move(objects_[i]);
    return py::make_tuple(objects,
                          py::bytes(reinterpret_cast<const char*>(numbers_.data()), numbers_.size() * sizeof(int64_t)));
  }

 private:
  static PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }
  static PyObject* name_of_forward() {
    static PyObject* const name = interned("forward");
    return name;
  }
  static PyObject* name_of_dict() {
    static PyObject* const name = interned("__dict__");
    return name;
  }

  void add(PyObject* object) { objects_.push_back(py::reinterpret_borrow<py::object>(object)); }
  void add_number(int64_t number) { numbers_.push_back(number); }

  template <class Add>
  bool add_table(PyObject* table, Add add_entry) {
    // an OrderedDict, as hooks stand in, has an order of its own, which move_to_end changes
    if (!PyDict_Check(table) || (!PyDict_CheckExact(table) && PyDict_GET_SIZE(table) > 1)) return false;
    add_number(PyDict_GET_SIZE(table));
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(table, &at, &key, &value);) {
      add(key);
      add(value);
      if (!add_entry(value)) return false;
    }
    return true;
  }

  // An attribute that every module has: training, a table of tensors, of modules or of hooks, or what no output
  // depends on. A name that is not interned is one of those that Python alone reads.
  bool add_standard(PyObject* name, PyObject* value) {
    static PyObject* const training = interned("training");
    static PyObject* const of_tensors[] = {interned("_parameters"), interned("_buffers")};
    static PyObject* const of_objects[] = {interned("_modules"), interned("_forward_hooks"),
                                           interned("_forward_pre_hooks")};
    if (!PyUnicode_CheckExact(name) || !PyUnicode_CHECK_INTERNED(name)) return false;
    if (name == training) return add(value), true;
    for (PyObject* table : of_tensors)
      if (name == table) return add_table(value, [&](PyObject* t) { return t == Py_None || add_tensor(t, true); });
    for (PyObject* table : of_objects)
      if (name == table) return add_table(value, [](PyObject*) { return true; });
    return true;
  }

  // Any other attribute, which has been added itself.
  bool add_value(PyObject* value) {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(value));
    if (contains(simple_, type) || PyCFunction_CheckExact(value)) return true;
    if (contains(tensors_, type)) {
      if (!add_tensor(value, true)) return false;
      add_number(THPVariable_Unpack(value).requires_grad());
      return true;
    }
    if (!PyTuple_CheckExact(value) && !PyList_CheckExact(value)) return false;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(value);
    add_number(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* item = PySequence_Fast_GET_ITEM(value, i);
      add(item);
      if (!contains(simple_, reinterpret_cast<PyObject*>(Py_TYPE(item)))) return false;
    }
    return true;
  }

  bool add_tensor(PyObject* object, bool with_contents) {
    if (!contains(tensors_, reinterpret_cast<PyObject*>(Py_TYPE(object)))) return false;
    const at::Tensor& tensor = THPVariable_Unpack(object);
    if (!is_plain(tensor)) return false;
    add_number(tensor.is_inference() ? 0 : int64_t(tensor._version()));
    add_number(reinterpret_cast<int64_t>(tensor.const_data_ptr()));
    add_number(int64_t(tensor.scalar_type()));
    add_number(tensor.dim());
    for (const int64_t size : tensor.sizes()) add_number(size);
    for (const int64_t stride : tensor.strides()) add_number(stride);
    if (with_contents && contents_) held_.push_back(tensor);
    return true;
  }

  static bool contains(const py::object& set, PyObject* type) {
    const int found = PySet_Contains(set.ptr(), type);
    if (found < 0) throw py::error_already_set();
    return found == 1;
  }

  const py::object &simple_, &standard_, &tensors_;
  const bool contents_;
  std::vector<py::object> objects_;
  std::vector<int64_t> numbers_;
  std::vector<at::Tensor> held_;
};

}  // namespace

bool reaches_cpu_kernel(const py::args& args) {
  if (at::hasCallbacks() || at::impl::torch_function_mode_enabled()) return false;
  const auto& local = c10::impl::tls_local_dispatch_key_set();
  c10::DispatchKeySet keys = local.included_;
  const bool graph = at::GradMode::is_enabled();
  for (const py::handle arg : args) {
    if (!THPVariable_Check(arg.ptr())) continue;
    if (!THPVariable_CheckExact(arg.ptr())) return false;  // a subclass may have a __torch_function__
    const at::Tensor& tensor = THPVariable_Unpack(arg.ptr());
    if (graph && tensor.requires_grad()) return false;
    if (tensor._fw_grad(0).defined()) return false;
    keys = keys | tensor.key_set();
  }
  keys = (keys - local.excluded_) - kNothingToDo;
  return keys.highestPriorityTypeId() == c10::DispatchKey::CPU;
}

py::object read(const py::list& modules, const py::object& batches, const py::object& simple,
                const py::object& standard, const py::object& tensors, bool contents) {
  Reader reader(simple, standard, tensors, contents);
  for (const py::handle module : modules)
    if (!reader.add_module(module.ptr())) return py::none();
  if (!batches.is_none())
    for (const py::handle batch : batches)
      if (!reader.add_batch(batch.ptr())) return py::none();
  return reader.finished();
}

bool is_same(const py::tuple& a, const py::tuple& b) {
  PyObject *left = PyTuple_GET_ITEM(a.ptr(), 0), *right = PyTuple_GET_ITEM(b.ptr(), 0);
  const Py_ssize_t count = PyTuple_GET_SIZE(left);
  if (PyTuple_GET_SIZE(right) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (PyTuple_GET_ITEM(left, i) != PyTuple_GET_ITEM(right, i)) return false;
  const py::handle numbers(PyTuple_GET_ITEM(a.ptr(), 1));
  return numbers.equal(py::handle(PyTuple_GET_ITEM(b.ptr(), 1)));
}

py::object all_finite(const py::list& tensors) {
  std::vector<at::Tensor> held;
  for (const py::handle object : tensors) {
    if (!THPVariable_Check(object.ptr())) return py::none();
    held.push_back(THPVariable_Unpack(object.ptr()));
    if (!tells_finite(held.back())) return py::none();
  }
  bool finite = true;
  {
    const py::gil_scoped_release unlocked;
    for (const at::Tensor& tensor : held) finite = finite && is_finite(tensor);
  }
  return py::bool_(finite);
}

}  // namespace curvext
