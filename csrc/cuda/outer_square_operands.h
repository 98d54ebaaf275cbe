#pragma once

#include <cstdint>

#include "instructions.h"
#include "lines.h"

// What outer_square multiplies: how a stage of panels of g (left) and a (right) stands in shared memory, how lines of
// the input become such, and how a warp multiplies its 32 x 64 of them. Each counts its addresses in bytes from the
// beginning of a stage, as few as possible: the rest are constants in the instructions.
namespace curvext::cuda {
namespace {

constexpr int kTile = 128;     // of the result, both ways
constexpr int kThreads = 256;  // 8 warps, 4 along o by 2 along i, each 32 x 64

// Positions of a stage: of each panel every thread copies two lines, half the stage apart.
template <class S>
constexpr int kDepth = 4 * kWidth<S>;

using Fragments = float[2][8][4];  // a warp's 32 x 64: 2 tiles of 16 along o, 8 of 8 along i

// The values of a line, or the sums of their squares.
template <class S>
using Values = float[kWidth<S>];

// A result's place in the warp's 32 x 64.
struct Entry {
  int row, column;
};

template <int Words>
__device__ void store_words(char* p, const unsigned (&words)[Words]) {
  static_assert(Words == 2 || Words == 4);
  if constexpr (Words == 4) *reinterpret_cast<uint4*>(p) = {words[0], words[1], words[2], words[3]};
  else *reinterpret_cast<uint2*>(p) = {words[0], words[1]};
}

// 16-bit values, and for Parts = 2 high and low halves of float32 in bfloat16, whose three leading products give
// float32 quality: [side][part][position][column].
template <class H, int Parts, int Depth>
struct HalfOperand {
  // Rows begin 4 banks apart: ldmatrix reads 8 of them at once.
  static constexpr int kPitch = (kTile + 8) * sizeof(H), kPart = Depth * kPitch, kSide = Parts * kPart;
  static constexpr int kBytes = 2 * kSide;

  int left, right;  // the lane's row of the tiles that ldmatrix loads

  __device__ HalfOperand(int row, int column) {
    const int lane = threadIdx.x % 32;
    // Lanes 0..7 address tile 0, 8..15 tile 1, and so on: (o, k), (o + 8, k), (o, k + 8), (o + 8, k + 8).
    left = kept((lane % 8 + lane / 16 * 8) * kPitch + (row + lane / 8 % 2 * 8) * int(sizeof(H)));
    // (k, i), (k + 8, i), (k, i + 8), (k + 8, i + 8).
    right = kept(kSide + (lane % 8 + lane / 8 % 2 * 8) * kPitch + (column + lane / 16 * 8) * int(sizeof(H)));
  }

  // Where the result (r, j, e) of the lane lies.
  __device__ static Entry place(int r, int j, int e) {
    const int lane = threadIdx.x % 32;
    return {r * 16 + lane / 4 + e / 2 * 8, j * 8 + lane % 4 * 2 + e % 2};
  }

  __device__ static char* at(char* stage, int side, int k, int column) {
    return stage + side * kSide + k * kPitch + column * int(sizeof(H));
  }

  template <class S>
  __device__ static void put(char* to, const Values<S>& x) {
    unsigned high[kWidth<S> / 2], low[kWidth<S> / 2];
#pragma unroll
    for (int i = 0; i < kWidth<S> / 2; ++i) {
      high[i] = packed<H>(x[2 * i], x[2 * i + 1]);
      if constexpr (Parts == 2) {
        // An infinite or rounded-up high part would leave inf - inf: the largest one, and the rest in the low part.
        high[i] = clamped_bfloat16(high[i]);
        low[i] =
            packed<H>(x[2 * i] - __uint_as_float(high[i] << 16), x[2 * i + 1] - __uint_as_float(high[i] & 0xffff0000u));
      }
    }
    store_words(to, high);
    if constexpr (Parts == 2) store_words(to + kPart, low);
  }

  // The squares of a line of this type, each rounded to it.
  __device__ static void put_squares(char* to, const Line<H>& line) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = squared_bfloat16(line.word[i]);
    store_words(to, words);
  }

  // Adds the product of positions [k, k + 16).
  __device__ void multiply_step(Fragments& sums, const char* stage, int k) const {
    unsigned a[Parts][2][4];
#pragma unroll
    for (int part = 0; part < Parts; ++part)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_transposed(a[part][i], stage + left + part * kPart + k * kPitch + i * 16 * int(sizeof(H)));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      unsigned b[Parts][4];
#pragma unroll
      for (int part = 0; part < Parts; ++part)
        load_transposed(b[part], stage + right + part * kPart + k * kPitch + j * 16 * int(sizeof(H)));
#pragma unroll
      for (int pair = Parts == 2 ? 0 : 2; pair < 3; ++pair) {  // hi lo, lo hi, hi hi
        const int lp = pair == 1 ? 1 : 0, rp = pair == 0 ? 1 : 0;
        // neighbours go to different sums: none waits for the one before it
#pragma unroll
        for (int x = 0; x < 4; ++x)
          multiply<H>(sums[x / 2][2 * j + x % 2], a[lp][x / 2], b[rp][x % 2 * 2], b[rp][x % 2 * 2 + 1]);
      }
    }
  }
};

// float32 that is multiplied in TF32, rounded, as truncation would bias every square by 1.4e-3:
// [side][position][column]. Which rows of a tile a lane's values are does not matter as long as the results go there:
// rows 2 g and 2 g + 1 in the place of g and g + 8, for its g = lane / 4, are read at once.
template <int Depth>
struct TF32Operand {
  // Rows begin 8 banks apart: 4 of them are read at once, 32 bytes of each.
  static constexpr int kPitch = (kTile + 8) * 4, kSide = Depth * kPitch, kBytes = 2 * kSide;

  int left, right;

  __device__ TF32Operand(int row, int column) {
    const int lane = threadIdx.x % 32;
    left = kept(lane % 4 * kPitch + (row + lane / 4 * 2) * 4);
    right = kept(kSide + lane % 4 * kPitch + (column + lane / 4) * 4);
  }

  __device__ static Entry place(int r, int j, int e) {
    const int lane = threadIdx.x % 32;
    return {r * 16 + lane / 4 * 2 + e / 2, j * 8 + lane % 4 * 2 + e % 2};
  }

  __device__ static char* at(char* stage, int side, int k, int column) {
    return stage + side * kSide + k * kPitch + column * 4;
  }

  template <class S>
  __device__ static void put(char* to, const Values<S>& x) {
#pragma unroll
    for (int i = 0; i < kWidth<S>; i += 4) {
      const unsigned words[4] = {__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                                 __float_as_uint(x[i + 3])};
      store_words(to + 4 * i, words);
    }
  }

  __device__ void multiply_step(Fragments& sums, const char* stage, int begin) const {
#pragma unroll
    for (int k = begin; k < begin + 16; k += 8) {
      unsigned a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int later = 0; later < 2; ++later) {
          const uint2 two =
              *reinterpret_cast<const uint2*>(stage + left + (k + later * 4) * kPitch + i * 16 * int(sizeof(float)));
          a[i][2 * later] = rounded_to_tf32(__uint_as_float(two.x));
          a[i][2 * later + 1] = rounded_to_tf32(__uint_as_float(two.y));
        }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* x = reinterpret_cast<const float*>(stage + right + k * kPitch + j * 8 * int(sizeof(float)));
        const unsigned b0 = rounded_to_tf32(x[0]), b1 = rounded_to_tf32(x[kPitch]);  // 4 positions on
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_tf32(sums[i][j], a[i], b0, b1);
      }
    }
  }
};

}  // namespace
}  // namespace curvext::cuda
