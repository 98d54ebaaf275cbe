#pragma once

#include "cuda.h"

// Stands in for csrc/cuda/instructions.h. Which lane holds which element is as the PTX ISA says, sections "Warp Level
// Matrix Load Instruction: ldmatrix" and "Warp Level Matrix Multiply-Accumulate: mma.m16n8k16, mma.m16n8k8".
namespace curvext::cuda {
namespace {

// cp.async.cg .shared.global of 16 bytes with ignore-src, whose address must be aligned even where it is ignored. When
// it has come is for emulation.cpp to choose.
inline void copy_async(void* shared, const void* global, int row, int rows) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    emulation::fail("cp.async: an address is not a multiple of 16");
  emulation::start_copy(shared, row < rows ? global : nullptr);
}

inline void commit_copies() { emulation::commit_copies(); }

template <int Pending>
void wait_copies() {
  emulation::wait_copies(Pending);
}

template <class T>
T& given_shared() {
  return *static_cast<T*>(emulation::given_shared(sizeof(T)));
}

template <class T, class... P, class... A>
cudaError_t launch_with(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, A... arguments) {
  emulation::run(grid, block, [&] { kernel(arguments...); }, 1, sizeof(T));
  return cudaGetLastError();
}

inline int kept(int x) { return x; }

// ldmatrix .m8n8.x4.trans.b16: lane 8 m + r has the address of row r of matrix m; lane l receives of each matrix the
// elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
inline void load_transposed(unsigned (&r)[4], const void* p, int line = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(p) % 16) emulation::fail("ldmatrix: a row is not aligned to 16 bytes");
  struct Row {
    uint16_t element[8];
  } mine;
  std::memcpy(&mine, p, sizeof(Row));
  const auto* rows = emulation::meet("ldmatrix", line, ~0u, emulation::words_of(mine));
  const int lane = emulation::lane();
  for (int m = 0; m < 4; ++m) {
    const auto element = [&](int row) { return emulation::from<Row>(rows[8 * m + row]).element[lane / 4]; };
    r[m] = element(lane % 4 * 2) | unsigned(element(lane % 4 * 2 + 1)) << 16;
  }
}

// Where the i-th element of a lane stands in its matrix.
struct Place {
  int row, column;
};
inline Place result_place(int lane, int i) { return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + i % 2}; }

// Elements of 16 bits, two to a register, k = 16.
template <class H>
struct Sixteen {
  static constexpr int kDepth = 16, kLeft = 8, kRight = 4;
  static Place left(int lane, int i) {
    const bool upper = i < 2 || (i >= 4 && i < 6);
    return {lane / 4 + (upper ? 0 : 8), lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8)};
  }
  static Place right(int lane, int i) { return {lane % 4 * 2 + i % 2 + (i < 2 ? 0 : 8), lane / 4}; }
  static float value(const uint32_t* registers, int i) {
    return emulation::bits<H>(uint16_t(registers[i / 2] >> (i % 2 * 16)));
  }
};

// TF32, one to a register, k = 8; the low 13 bits are not read.
struct TF32 {
  static constexpr int kDepth = 8, kLeft = 4, kRight = 2;
  static Place left(int lane, int i) { return {lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4}; }
  static Place right(int lane, int i) { return {lane % 4 + i * 4, lane / 4}; }
  static float value(const uint32_t* registers, int i) { return emulation::bits<float>(registers[i] & ~0x1fffu); }
};

// mma.sync .m16n8 .row.col .f32: d += a b. PTX leaves the rounding of the sum open; towards zero is the worst of it.
template <class Layout>
void multiply_by(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line) {
  const emulation::Words mine{{a[0], a[1], a[2], a[3], b0, b1}};
  const auto* all = emulation::meet("mma", line, ~0u, mine);
  float left[16][Layout::kDepth], right[Layout::kDepth][8];
  const Place corner = result_place(emulation::lane(), 0);
  for (int lane = 0; lane < 32; ++lane) {  // those that hold what this lane's results are made of
    if (Layout::left(lane, 0).row == corner.row)
      for (int i = 0; i < Layout::kLeft; ++i) {
        const Place at = Layout::left(lane, i);
        left[at.row][at.column] = Layout::value(all[lane].word, i);
      }
    if (Layout::right(lane, 0).column / 2 * 2 == corner.column)
      for (int i = 0; i < Layout::kRight; ++i) {
        const Place at = Layout::right(lane, i);
        right[at.row][at.column] = Layout::value(all[lane].word + 4, i);
      }
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = result_place(emulation::lane(), i);
    double sum = d[i];
    for (int k = 0; k < Layout::kDepth; ++k) sum += double(left[at.row][k]) * double(right[k][at.column]);
    const float nearest = float(sum);
    d[i] = std::fabs(nearest) > std::fabs(sum) ? std::nextafterf(nearest, 0) : nearest;
  }
}

template <class H>
void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line = __builtin_LINE()) {
  multiply_by<Sixteen<H>>(d, a, b0, b1, line);
}

inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                          int line = __builtin_LINE()) {
  multiply_by<TF32>(d, a, b0, b1, line);
}

// cvt.rn.bf16x2.f32 and cvt.rn.f16x2.f32: the first operand goes to the upper half
template <class H>
unsigned packed(float first, float second) {
  const auto word = [](float x) { return unsigned(H(x).x); };
  return word(first) | word(second) << 16;
}

// min.bf16x2 and max.bf16x2: a NaN gives the other operand
inline unsigned clamped_bfloat16(unsigned word) {
  const auto clamped = [](unsigned half) {
    const float x = emulation::bits<float>(half << 16), most = emulation::bits<float>(0x7f7f0000u);
    return std::isnan(x) ? 0x7f7fu : emulation::bits<uint32_t>(std::fmin(std::fmax(x, -most), most)) >> 16;
  };
  return clamped(word & 0xffff) | clamped(word >> 16) << 16;
}

// fma.rn.bf16x2 x x + -0
inline unsigned squared_bfloat16(unsigned word) {
  const auto squared = [](unsigned half) {
    const float x = emulation::bits<float>(half << 16);
    return unsigned(__nv_bfloat16(x * x).x);
  };
  return squared(word & 0xffff) | squared(word >> 16) << 16;
}

// cvt.rna.tf32.f32: to nearest, ties away from zero; what stands in the low 13 bits is open.
inline unsigned rounded_to_tf32(float x) {
  return (std::isfinite(x) ? __float_as_uint(x) + 0x1000 : __float_as_uint(x)) | 0x1fff;
}

}  // namespace
}  // namespace curvext::cuda
