#pragma once

#include "../softmax_kinds.h"
#include "clusters.h"
#include "launch.h"
#include "widen.h"

// What is known of a position while its classes are swept over, shared by the sweep over rows (softmax_rows.h) and the
// one over columns (softmax_columns.h). csrc/softmax_formulas.h says why nothing cancels.
namespace curvext::cuda {
namespace {

#define CURVEXT_FORMULA __device__ inline
#include "../softmax_formulas.h"
#undef CURVEXT_FORMULA

// Sums over some classes of one position, relative to the largest logit among them, whose class is left out.
template <Softmax kind, class T>
struct Moments {
  T top, r, rest, dot;  // the largest logit and the u beside it; sums over the others
  int best;             // its class; -1 for none, and then rest is 0, or NaN where a logit is

  __device__ static Moments none() { return {-INFINITY, 0, 0, 0, -1}; }

  // Of N values that a thread holds, z(i) and u(i): first the largest, then the sums, so that each exponential is taken
  // once and nothing is rescaled. A masked class, -inf, counts as 0 whatever its u is. `best` is an i; between() is
  // called between the two.
  template <int N, class Z, class U, class Between>
  __device__ static Moments of(Z z, U u, Between between) {
    Moments m = none();
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (z(i) > m.top) {
        m.top = z(i);
        m.best = i;
        if constexpr (kDots<kind>) m.r = u(i);
      }
    between();
    const T base = m.best >= 0 ? m.top : T(0);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const T e = exponential(i == m.best ? T(-INFINITY) : z(i) - base);  // without a branch
      m.rest += e;
      if constexpr (kDots<kind>)
        if (e > 0) m.dot += kRelative<kind> ? e * (u(i) - m.r) : square_root(e) * u(i);
    }
    return m;
  }

  // The sums as part of a total with a larger logit: this one's class is now one of the others.
  __device__ void lower(T to, T to_r) {
    if (best < 0) return;
    const T shrink = exponential(top - to), others = rest + 1;
    if constexpr (kRelative<kind>) dot = (dot + others * (r - to_r)) * shrink;
    else if constexpr (kDots<kind>) dot = (dot + r) * square_root(shrink);
    rest = others * shrink;
  }

  __device__ void add(Moments other) {
    if (other.top > top) {
      const Moments low = *this;
      *this = other;
      other = low;
    }
    other.lower(top, r);
    rest += other.rest;
    dot += other.dot;
  }
};

template <class T>
__device__ T warp_sum(T x) {
  for (int mask = 1; mask < 32; mask *= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

// Of the 32 lanes, the same in each.
template <Softmax kind, class T>
__device__ Moments<kind, T> warp_total(Moments<kind, T> m) {
  T top = m.top;
  for (int mask = 1; mask < 32; mask *= 2) {
    const T other = __shfl_xor_sync(~0u, top, mask);
    if (other > top) top = other;
  }
  const unsigned having = __ballot_sync(~0u, m.best >= 0 && m.top == top);
  const int winner = having ? __ffs(having) - 1 : 0;
  Moments<kind, T> total{top, __shfl_sync(~0u, m.r, winner), 0, 0, __shfl_sync(~0u, m.best, winner)};
  if ((threadIdx.x & 31) != winner) m.lower(top, total.r);
  total.rest = warp_sum(m.rest);
  if constexpr (kDots<kind>) total.dot = warp_sum(m.dot);
  return total;
}

// One position after its sums: what writing a class takes.
template <Softmax kind, class T>
struct Finished {
  T top, r, rest, sum, dot, mean, scale, w;
  int best;

  __device__ Finished(const Moments<kind, T>& m, T weight) : top(m.top), r(m.r), rest(m.rest), dot(m.dot), w(weight) {
    best = m.best;
    sum = rest + (best >= 0 ? 1 + (top - top) : 0);  // an infinite logit makes all of the position NaN
    finish<kind>(sum, T(1), dot, r, w, scale, mean);
  }

  // The result at one class.
  __device__ T at(T e, T u) const { return value<kind>(e, u, r, mean, scale); }
};

// The values of one position, a class apart by their strides.
template <Softmax kind, class S, class T>
struct Position {
  const SoftmaxArgs<S, T>& p;
  const S* z;
  const S* u;
  S* out;
  int64_t id, z_class, u_class, out_class;

  __device__ T logit(int64_t c) const { return widened(z[c * z_class]); }

  // u, the mass of the target, or what each class has of it
  __device__ T beside(int64_t c) const {
    if constexpr (kReads<kind>) return widened(u[c * u_class]);
    else if constexpr (kind == Softmax::residual) return p.spread ? p.spread[c] : T(0);
    else return T(0);
  }

  __device__ bool wrong_label() const {
    return kind == Softmax::residual && !(p.label[id] >= 0 && p.label[id] < p.classes);
  }

  // The class whose value is corrected after its sweep, -1 for none; drawn: what was sampled.
  __device__ int64_t fixed_class(const Finished<kind, T>& f, int64_t drawn) const {
    if constexpr (kRelative<kind>) return -1;
    else if constexpr (kind == Softmax::residual) return wrong_label() ? -1 : p.label[id];
    else if constexpr (kind == Softmax::sample) return drawn;
    else return f.best;
  }

  // Corrects the value of that class; the thread that wrote it calls this.
  __device__ void fix(const Finished<kind, T>& f, int64_t label) const {
    const auto likelihood = [&](int64_t c) { return quotient(exponential(logit(c) - f.top), f.sum); };
    const auto mass = [&](int64_t c) { return beside(c); };
    const auto put = [&](int64_t c, T x) { narrow(x, out + c * out_class); };
    fix_label<kind>(f, label, p.spread ? *p.spread_sum : T(0), likelihood, mass, put);
  }
};

// The race of csrc/cpu/isa/softmax.h. A class that cannot win is dismissed in float by a lower bound of its number; the
// others run in double.
struct Race {
  double score = 0;
  float bar = 0;  // not above the score
  int64_t label = 0;

  __device__ static bool close(float e, uint64_t bits, float bar) {
    return e * 1.0001f >= __uint2float_rd(unsigned(bits >> 32)) * 0x1p-32f * bar;
  }

  __device__ void run(double difference, uint64_t bits, int64_t c) {
    const double mine = exp(difference) / -log1p(-uniform(bits));
    if (mine > score) {
      score = mine;
      bar = __double2float_rd(mine) * 0.99999f;
      label = c;
    }
  }

  // The lowest class among equals wins, as one after the other would give.
  __device__ void take(const Race& other) {
    if (other.score > score || (other.score == score && other.label < label)) {
      score = other.score;
      label = other.label;
    }
  }
};

__device__ inline Race warp_winner(Race race) {
  for (int mask = 1; mask < 32; mask *= 2)
    race.take({__shfl_xor_sync(~0u, race.score, mask), 0, __shfl_xor_sync(~0u, race.label, mask)});
  return race;
}

}  // namespace
}  // namespace curvext::cuda
