#pragma once

#include "outer_square_operands.h"
#include "outer_square_problem.h"

// How the panels of outer_square come to shared memory: by copies of 16 bytes that run several stages ahead.
namespace curvext::cuda {
namespace {

// The stages of a run of samples are its (n, v, piece of s) in order. The next one is found by adding: a division would
// cost more than the stage's products. What is added at the end of a pair (n, v) stays the same for all of its stages,
// so that prepare() forms it once for each, outside the loop over them.
template <class S>
struct SampleWalk {
  const S *left, *right;  // the thread's first line of the stage in g and a
  int rows;               // of the pair that are left, 0 after the last pair
  int next_rows = 0;
  int64_t left_jump = 0, right_jump = 0, left_step, right_step;

  const Problem<S>& p;
  int64_t pairs;  // that follow
  int64_t v = 0;

  __device__ SampleWalk(const Problem<S>& p, int64_t begin, int64_t count, int row, int64_t o, int64_t i)
      : left(p.g + begin * p.g_sample + row * p.g_position + o),
        right(p.a + begin * p.a_sample + row * p.a_position + i),
        rows(int(p.S)),
        left_step(kDepth<S> * p.g_position),
        right_step(kDepth<S> * p.a_position),
        p(p),
        pairs(count * p.V - 1) {}

  // Before the last stage of each pair is asked for.
  __device__ void prepare() {
    const int64_t steps = (p.S - 1) / kDepth<S>;
    const bool last = v + 1 == p.V;
    next_rows = pairs-- > 0 ? int(p.S) : 0;
    left_jump = (last ? p.g_sample - v * p.g_vector : p.g_vector) - steps * left_step;
    right_jump = (last ? p.a_sample : 0) - steps * right_step;
    v = last ? 0 : v + 1;
  }
  __device__ bool at_last() const { return rows <= kDepth<S>; }

  __device__ void advance() {
    const bool last = at_last();
    left += last ? left_jump : left_step;
    right += last ? right_jump : right_step;
    rows = last ? next_rows : rows - kDepth<S>;
  }
};

// For S = 1 they are (piece of n, v).
template <class S>
struct FoldedWalk {
  const S *left, *right;
  int rows;  // of the run that are left
  int64_t left_jump, right_jump, left_step;
  int v, V;

  __device__ FoldedWalk(const Problem<S>& p, int64_t begin, int64_t count, int row, int64_t o, int64_t i)
      : left(p.g + (begin + row) * p.g_sample + o),
        right(p.a + (begin + row) * p.a_sample + i),
        rows(int(count)),
        left_jump(kDepth<S> * p.g_sample - (p.V - 1) * p.g_vector),
        right_jump(kDepth<S> * p.a_sample),
        left_step(p.g_vector),
        v(int(p.V)),
        V(v) {}

  __device__ void prepare() {}
  __device__ bool at_last() const { return v == 1; }

  __device__ void advance() {
    const bool last = at_last();
    left += last ? left_jump : left_step;
    right += last ? right_jump : 0;
    rows = last ? rows - kDepth<S> : rows;
    v = last ? V : v - 1;
  }
};

// The stages on their way, [stage][side][position][column], and the thread's lines in them. Aligned: lines of 16 bytes
// begin at multiples of 16 in both tensors, and none has columns outside; otherwise values are read one by one.
template <class S, class Walk, bool Aligned, int Stages>
struct Pipeline {
  static constexpr int kLineColumns = kTile / kWidth<S>, kHalf = kDepth<S> / 2;
  static_assert(kThreads / kLineColumns == kHalf);
  static constexpr int kPitch = (kTile + 8) * sizeof(S), kSide = kDepth<S> * kPitch, kStage = 2 * kSide;
  static constexpr int kBytes = Stages * kStage, kNoRow = 1 << 30;

  const int row = threadIdx.x / kLineColumns, column = threadIdx.x % kLineColumns * kWidth<S>;
  char* const memory;
  Walk walk;
  const int own;                    // the thread's first line in a stage
  int left_columns, right_columns;  // of its lines that the tensors have
  int left_row, right_row;          // of its first line, beyond any where the tensor has no such column
  const int64_t left_half, right_half;
  int writes = 0, reads = 0;  // stages

  __device__ static int within(int64_t x) { return x < 0 ? 0 : x < kWidth<S> ? int(x) : kWidth<S>; }

  // left_step and right_step: from one position of a stage to the next
  __device__ Pipeline(char* memory, const Walk& walk, int64_t left_step, int64_t right_step, int64_t o_left,
                      int64_t i_left)
      : memory(memory),
        walk(walk),
        own(row * kPitch + column * int(sizeof(S))),
        left_columns(within(o_left - column)),
        right_columns(within(i_left - column)),
        left_row(kept(left_columns > 0 ? row : kNoRow)),
        right_row(kept(right_columns > 0 ? row : kNoRow)),
        left_half(kHalf * left_step),
        right_half(kHalf * right_step) {}

  // Starts the copies of the next stage; its group counts also where none is left.
  __device__ void fetch() {
    char* to = memory + writes + own;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      copy(to + half * kHalf * kPitch, walk.left + half * left_half, left_row + half * kHalf, left_columns);
      copy(to + kSide + half * kHalf * kPitch, walk.right + half * right_half, right_row + half * kHalf, right_columns);
    }
    commit_copies();
    walk.advance();
    writes = writes == kBytes - kStage ? 0 : writes + kStage;
  }

  __device__ const char* stage() const { return memory + reads; }
  __device__ void next() { reads = reads == kBytes - kStage ? 0 : reads + kStage; }

  // A line that this thread has asked for.
  __device__ Line<S> line(int side, int half) const {
    return Line<S>::load(reinterpret_cast<const S*>(stage() + own + side * kSide + half * kHalf * kPitch));
  }

 private:
  __device__ void copy(char* to, const S* from, int at, int columns) const {
    if constexpr (Aligned) {
      copy_async(to, from, at, walk.rows);
    } else {
      Line<S> line = Line<S>::filled(S(0.0f));
#pragma unroll
      for (int e = 0; e < kWidth<S>; ++e)
        if (at < walk.rows && e < columns) line.set(e, from[e]);
      line.store(reinterpret_cast<S*>(to));
    }
  }
};

}  // namespace
}  // namespace curvext::cuda
