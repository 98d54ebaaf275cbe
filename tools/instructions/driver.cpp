// Calls one kernel of one instruction set on fixed data, between marks that the counter looks for. No torch: it links
// with csrc/cpu/isa/avx2.cpp alone, so that a run under callgrind takes a second.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/isa.h"

namespace curvext::cpu::avx2 {
const Primitives& primitives();
}

namespace {

using curvext::cpu::Primitives;

// The same values everywhere: a linear congruential generator, scaled to [-1, 1).
std::vector<float> values(int64_t count) {
  std::vector<float> x(count);
  uint32_t state = 1;
  for (float& v : x) {
    state = state * 1664525u + 1013904223u;
    v = float(int32_t(state)) / 2147483648.0f;
  }
  return x;
}

// One tile of outer_square: 8 samples of 64 positions.
struct OuterSquare {
  static constexpr int64_t samples = 8, positions = 64;
  const Primitives& isa = curvext::cpu::avx2::primitives();
  std::vector<float> left = values(samples * positions * isa.tile_float.rows);
  std::vector<float> right = values(samples * positions * isa.tile_float.columns);
  std::vector<float> tile = std::vector<float>(isa.tile_float.rows * isa.tile_float.columns);
};

// 4 rows of 1001 classes, so that the part after the last whole vector is in the count.
struct SoftmaxHessian {
  static constexpr int64_t rows = 4, classes = 1001;
  const Primitives& isa = curvext::cpu::avx2::primitives();
  std::vector<float> z = values(rows * classes), u = values(rows * classes), w = values(rows);
  std::vector<float> out = std::vector<float>(rows * classes), scratch = std::vector<float>(classes + 64);
};

}  // namespace

extern "C" {

__attribute__((noinline)) void counted_outer_square(OuterSquare& at) {
  at.isa.tile_float.add_square(OuterSquare::samples, OuterSquare::positions, at.left.data(), at.right.data(),
                               at.tile.data());
}

__attribute__((noinline)) void counted_softmax_hessian_mm(SoftmaxHessian& at) {
  curvext::SoftmaxArgs<float, float> args{};
  args.z = at.z.data();
  args.u = at.u.data();
  args.w = at.w.data();
  args.out = at.out.data();
  args.vectors = 1;
  args.outer = SoftmaxHessian::rows;
  args.classes = SoftmaxHessian::classes;
  args.inner = 1;
  args.z_outer = args.u_outer = args.out_outer = SoftmaxHessian::classes;
  args.u_vector = args.out_vector = SoftmaxHessian::rows * SoftmaxHessian::classes;
  args.z_class = args.u_class = args.out_class = 1;
  at.isa.softmax_float.hessian.rows(args, 0, SoftmaxHessian::rows, at.scratch.data());
}
}

// The sum of the result is printed, so that nothing is optimised away and a wrong result is seen.
int main(int count, char** words) {
  double sum = 0;
  if (count == 2 && !std::strcmp(words[1], "outer_square")) {
    OuterSquare at;
    counted_outer_square(at);
    for (float x : at.tile) sum += x;
  } else if (count == 2 && !std::strcmp(words[1], "softmax_hessian_mm")) {
    SoftmaxHessian at;
    counted_softmax_hessian_mm(at);
    for (float x : at.out) sum += x < 0 ? -x : x;
  } else {
    std::fprintf(stderr, "driver: expected outer_square or softmax_hessian_mm\n");
    return 2;
  }
  std::printf("%.9g\n", sum);
  return 0;
}
