// The table of one instruction set: everything under csrc/cpu/isa compiled for it.
#include "vector.h"

#include "draws.h"
#include "elementwise.h"
#include "outer_square.h"
#include "rows.h"
#include "softmax.h"
// which these two need
#include "softmax_panels.h"
#include "softmax_rows.h"

namespace curvext::cpu::CURVEXT_ISA {

#define CURVEXT_NAME_OF(x) #x
#define CURVEXT_NAME(x) CURVEXT_NAME_OF(x)

template <class T>
static constexpr TileOps<T> tile_ops() {
  return {kRows, Tile<T>::columns, add_square<T>, add_product<T>, add_squared<T>, square<T>, add_norm<T>};
}

template <class S, class T>
static constexpr PackOps<S, T> pack_ops() {
  return {pack<kRows, S, T>, pack<Tile<T>::columns, S, T>, pack_across<kRows, S, T>, pack_runs<Tile<T>::columns, S, T>};
}

template <class S, class T>
static constexpr RowOps<S, T> row_ops() {
  return {dot<S, T>, scale<S, T>};
}

template <Softmax kind, class S, class T>
static constexpr SoftmaxWalks<S, T> softmax_walks() {
  return {softmax_rows<kind, S, T>, softmax_tiles<kind, S, T>, softmax_columns<kind, S, T>};
}

template <class S, class T>
static constexpr SoftmaxOps<S, T> softmax_ops() {
  return {Simd<T>::lanes,
          softmax_walks<Softmax::hessian, S, T>(),
          softmax_walks<Softmax::root, S, T>(),
          softmax_walks<Softmax::root_t, S, T>(),
          softmax_walks<Softmax::residual, S, T>(),
          softmax_walks<Softmax::mass_residual, S, T>(),
          softmax_walks<Softmax::sample, S, T>()};
}

template <class S, class T>
static constexpr ElementOps<S, T> element_ops() {
  return {element_hessian<MseHessian, S, T>, element_sample<MseSample, S, T>, element_hessian<SigmoidHessian, S, T>,
          element_sample<SigmoidSample, S, T>};
}

const Primitives& primitives() {
  static constexpr Primitives table{CURVEXT_NAME(CURVEXT_ISA),
                                    tile_ops<float>(),
                                    tile_ops<double>(),
                                    pack_ops<double, double>(),
                                    pack_ops<float, float>(),
                                    pack_ops<BFloat16, float>(),
                                    pack_ops<Float16, float>(),
                                    row_ops<double, double>(),
                                    row_ops<float, float>(),
                                    row_ops<BFloat16, float>(),
                                    row_ops<Float16, float>(),
                                    softmax_ops<double, double>(),
                                    softmax_ops<float, float>(),
                                    softmax_ops<BFloat16, float>(),
                                    softmax_ops<Float16, float>(),
                                    element_ops<double, double>(),
                                    element_ops<float, float>(),
                                    element_ops<BFloat16, float>(),
                                    element_ops<Float16, float>()};
  return table;
}

}  // namespace curvext::cpu::CURVEXT_ISA
