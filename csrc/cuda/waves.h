#pragma once

#include <algorithm>
#include <cstdint>

// How many runs of samples a kernel cuts its work into, whose blocks are `tiles` of the result for each run. Plain C++,
// so that its choices are tested anywhere.
namespace curvext::cuda {

struct Work {
  int64_t tiles;   // blocks of one run, one to a processor
  int64_t pieces;  // what a run has a whole number of
  int64_t stages;  // of the main loop, for each piece
};

// What a block spends, in stages, before and after its own: the first loads, and a part that is written and added.
constexpr int64_t kBlockOverhead = 8;

// Stages until the last block is done: blocks come in waves of one for each processor.
inline int64_t stages_until_done(const Work& work, int64_t splits, int64_t processors) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  return ceil_div(work.tiles * splits, processors) * (ceil_div(work.pieces, splits) * work.stages + kBlockOverhead);
}

// The number of runs, at most `most`, that is done first, and the least of those.
inline int64_t best_splits(const Work& work, int64_t most, int64_t processors) {
  int64_t best = 1;
  for (int64_t splits = 2; splits <= std::min({most, work.pieces, processors}); ++splits)
    if (stages_until_done(work, splits, processors) < stages_until_done(work, best, processors)) best = splits;
  return best;
}

}  // namespace curvext::cuda
