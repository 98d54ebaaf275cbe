#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "instructions.h"
#include "widen.h"

// Rows of contiguous values as the threads of a row hold them: in lines of 16 bytes, as memory is read fastest.
namespace curvext::cuda {
namespace {

template <class S>
constexpr int kWidth = 16 / sizeof(S);  // values of a line

// 16 bytes in four registers.
template <class S>
struct Line {
  unsigned word[4];

  __device__ static Line filled(S x) {
    Line line;
#pragma unroll
    for (int e = 0; e < kWidth<S>; ++e) line.set(e, x);
    return line;
  }
  __device__ static Line load(const S* p) {
    const uint4 x = *reinterpret_cast<const uint4*>(p);
    return {x.x, x.y, x.z, x.w};
  }
  __device__ void store(S* p) const { *reinterpret_cast<uint4*>(p) = {word[0], word[1], word[2], word[3]}; }

  // Of 16-bit values two to a word, by shifts: bytes addressed one by one would each take a register.
  __device__ S get(int e) const {
    if constexpr (sizeof(S) == 2) return from_bits<S>((unsigned short)(word[e / 2] >> e % 2 * 16));
    else if constexpr (sizeof(S) == 4) return __uint_as_float(word[e]);
    else return __hiloint2double(int(word[2 * e + 1]), int(word[2 * e]));
  }
  __device__ void set(int e, S x) {
    if constexpr (sizeof(S) == 2) {
      const unsigned bits = bits_of(x), other = word[e / 2] & (e % 2 ? 0xffffu : 0xffff0000u);
      word[e / 2] = other | bits << e % 2 * 16;
    } else if constexpr (sizeof(S) == 4) {
      word[e] = __float_as_uint(x);
    } else {
      word[2 * e] = unsigned(__double2loint(x));
      word[2 * e + 1] = unsigned(__double2hiint(x));
    }
  }
};

template <class S>
__device__ auto value(const Line<S>& line, int e) {
  return widened(line.get(e));
}
__device__ inline float value(const Line<__nv_bfloat16>& line, int e) {
  const unsigned word = line.word[e / 2];
  return __uint_as_float(e % 2 ? word & 0xffff0000u : word << 16);
}

// x(e) for each of its values, rounded to the type of the line.
template <class S, class X>
__device__ Line<S> rounded(X x) {
  Line<S> line;
  if constexpr (sizeof(S) == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) line.word[i] = packed<S>(x(2 * i), x(2 * i + 1));
  } else {
#pragma unroll
    for (int e = 0; e < kWidth<S>; ++e) line.set(e, x(e));
  }
  return line;
}

// How the threads of a row share it. Lines lie at the 16-byte boundaries of the tensor that the cut is made for, so
// that every tensor whose rows have the same remainder is read and written by whole lines, whatever their length; the
// thread with number t holds line t of every `group`. The few values before the first boundary and behind the last go
// to one thread each.
template <class S>
struct Cut {
  int values, head, lines, thread, group;

  __device__ static int before_boundary(const S* row) {
    return int((16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / sizeof(S));
  }
  __device__ Cut(const S* row, int values, int thread, int group) : values(values), thread(thread), group(group) {
    const int before = before_boundary(row);
    head = before < values ? before : values;
    lines = (values - head) / kWidth<S>;
  }

  __device__ bool fits(const S* row) const { return before_boundary(row) == head || lines == 0; }
  // The first value of the thread's j-th line, and whether the row has that line.
  __device__ int first(int j) const { return head + (j * group + thread) * kWidth<S>; }
  __device__ bool has(int j) const { return j * group + thread < lines; }
  // The value outside lines that is this thread's, -1 for none.
  __device__ int edge() const {
    const int at = thread < head ? thread : thread + lines * kWidth<S>;
    return at < values && thread < 2 * kWidth<S> ? at : -1;
  }
  __device__ bool owns(int value) const {
    const int line = (value - head) / kWidth<S>;
    if (value < head) return value == thread;
    return line < lines ? line % group == thread : value - lines * kWidth<S> == thread;
  }

  // Lines [begin, begin + Lines) of the thread, `outside` where the row has none. All loads are issued before the first
  // is used; where the boundaries disagree, value by value.
  template <int Lines>
  __device__ void read(Line<S> (&to)[Lines], const S* row, int begin, S outside) const {
    if (fits(row)) {
#pragma unroll
      for (int j = 0; j < Lines; ++j) {
        to[j] = Line<S>::filled(outside);
        if (has(begin + j)) to[j] = Line<S>::load(row + first(begin + j));
      }
    } else {
#pragma unroll
      for (int j = 0; j < Lines; ++j) {
        to[j] = Line<S>::filled(outside);
        if (has(begin + j))
#pragma unroll
          for (int e = 0; e < kWidth<S>; ++e) to[j].set(e, row[first(begin + j) + e]);
      }
    }
  }

  __device__ void write(const Line<S>& line, S* row, int j) const {
    if (!has(j)) return;
    if (fits(row)) return line.store(row + first(j));
#pragma unroll
    for (int e = 0; e < kWidth<S>; ++e) row[first(j) + e] = line.get(e);
  }
};

}  // namespace
}  // namespace curvext::cuda
