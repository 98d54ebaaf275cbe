#pragma once

#include <cstdint>

#include "draw.h"

// One sweep over the classes of every position, for every device: what it reads, what it writes, and where.
namespace curvext {

// z [outer,C,inner], u and out [K,outer,C,inner], w [outer,inner]; inner strides are 1, and for inner = 1 so are the
// class strides. Positions are numbered outer x inner. S is the storage type, T that of sums.
template <class S, class T>
struct SoftmaxArgs {
  const S* z;
  const S* u;  // the vectors, or the mass of the target; null where there are none
  const T* w;
  S* out;
  const int64_t* label;  // [outer,inner] for residual
  const T* spread;       // [C] or null for residual
  const T* spread_sum;   // its sum
  Draw draw;             // for sample
  int64_t vectors, outer, classes, inner;
  int64_t z_outer, z_class;
  int64_t u_vector, u_outer, u_class;
  int64_t out_vector, out_outer, out_class;

  // The same with other types of pointers.
  template <class S2, class T2>
  SoftmaxArgs<S2, T2> as() const {
    return {static_cast<const S2*>(z),
            static_cast<const S2*>(u),
            static_cast<const T2*>(w),
            static_cast<S2*>(out),
            label,
            static_cast<const T2*>(spread),
            static_cast<const T2*>(spread_sum),
            draw,
            vectors,
            outer,
            classes,
            inner,
            z_outer,
            z_class,
            u_vector,
            u_outer,
            u_class,
            out_vector,
            out_outer,
            out_class};
  }
};

}  // namespace curvext
