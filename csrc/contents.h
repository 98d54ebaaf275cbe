#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// What lies in the memory of tensors on the CPU, read at its speed and without a temporary.
namespace curvext {

// Two numbers that almost any change of a tensor's values changes. A change of one 8-byte word always changes `sum`,
// the sum of all words; `mixed`, of products that depend on a word's place, shows changes of sign, scale and order.
// Neither depends on the number of threads.
// Source: the products are those of NH; Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC", 1999.
struct Contents {
  uint64_t sum = 0, mixed = 0;
  bool operator==(const Contents& other) const { return sum == other.sum && mixed == other.mixed; }
};

// Whether a tensor's values are its memory: strided, on the CPU, of no subclass or transform, and not to be negated
// or conjugated when read.
bool is_plain(const at::Tensor& tensor);

// Of a plain tensor, in the order of its memory where that has neither gaps nor overlaps, else in its own.
Contents contents(const at::Tensor& tensor);

// Whether a plain tensor of floating point values, which lie without gaps, has no nan and no inf.
bool is_finite(const at::Tensor& tensor);

// Whether is_finite answers for a tensor.
bool tells_finite(const at::Tensor& tensor);

}  // namespace curvext
