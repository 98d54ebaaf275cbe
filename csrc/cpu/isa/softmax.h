// The sweeps over the classes of each position; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

// The factor of u in the inner product: p or its root, up to the normaliser.
template <Softmax kind, class V>
CURVEXT_INLINE V weighed(V e) {
  if constexpr (kind == Softmax::root) return square_root(e);
  else return e;
}

template <class V>
CURVEXT_INLINE V quotient(V x, V y) {
  return x / y;
}

#define CURVEXT_FORMULA CURVEXT_INLINE
#include "../../softmax_formulas.h"
#undef CURVEXT_FORMULA

// What is known of one position after its sums.
struct Position {
  int64_t id, best, label;  // best is -1 where no logit is above the lowest float
  double w, rest, sum, dot, r, scale;
};

// Corrects the value of one class of a position; z(c) and u(c) give its values, put(c, value) writes.
template <Softmax kind, class S, class T, class Z, class U, class Put>
CURVEXT_INLINE void fix(const SoftmaxArgs<S, T>& p, const Position& at, T top, Z z, U u, Put put) {
  const auto likelihood = [&](int64_t c) { return double(exp_nonpositive(broadcast<T>(z(c) - top))[0]) / at.sum; };
  const auto beside = [&](int64_t c) -> double {
    if constexpr (kind == Softmax::residual) return p.spread ? double(p.spread[c]) : 0.0;
    else return double(u(c));
  };
  fix_label<kind>(at, at.label, p.spread ? double(*p.spread_sum) : 0.0, likelihood, beside, put);
}

// A race of exponential clocks: class c rings at the rate e_c, after E_c / e_c with E_c = -log(1 - U_c), and the first
// to ring is drawn. It is Gumbel's maximum of z_c - log E_c without the outer logarithm. Because E_c >= U_c, a class
// with e_c < score U_c cannot win, and only the few others are looked at in double; so labels are the same for every
// dtype and every device, but for ties at the last bit of a double.
constexpr double kDoubt = 1 + 1e-5;  // far more than the error of an exponential in float

// The library's functions are of SSE code, which upper halves of registers that are not clean slow down several times;
// inlined, GCC 12 leaves some calls with such halves.
template <class T>
static __attribute__((noinline)) void race(uint64_t bits, T z, T top, int64_t c, double& score, int64_t& label) {
#if defined(__x86_64__) && CURVEXT_VECTOR_BYTES >= 32
  _mm256_zeroupper();
#endif
  const double mine = std::exp(double(z) - double(top)) / -std::log1p(-curvext::uniform(bits));
  if (mine > score) {
    score = mine;
    label = c;
  }
}

template <class S>
static void write_zeros(S* out, int64_t count) {
  __builtin_memset((void*)out, 0, size_t(count) * sizeof(S));
}

}  // namespace curvext::cpu::CURVEXT_ISA
