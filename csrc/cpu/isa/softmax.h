// The sweeps over the classes of each position; included once for each level.
//
// With e = exp(z - max z) and the largest class t left out of every sum, rest = sum_c≠t e_c, the normaliser is 1 + rest
// and 1 - p_t = rest / (1 + rest): nothing cancels where p_t is 1. For H u and S^T u the vectors are taken relative to
// r = u_t, so that u - <p,u> = (u - r) - <p,u - r> consists of differences to the likeliest class.
namespace curvext::cpu::CURVEXT_ISA {

// The factor of u in the inner product: p or its root, up to the normaliser.
template <Softmax kind, class V>
CURVEXT_INLINE V weighed(V e) {
  if constexpr (kind == Softmax::root) return square_root(e);
  else return e;
}

template <Softmax kind, class V>
CURVEXT_INLINE void finish(V sum, V had, V dot, V r, V w, V& scale, V& mean) {
  if constexpr (kind == Softmax::root) mean = (had * r + dot) / sum;
  else mean = dot / sum;
  if constexpr (kind == Softmax::root || kind == Softmax::root_t) scale = square_root(w / sum);
  else if constexpr (kind == Softmax::sample) scale = square_root(w) / sum;
  else scale = w / sum;
}

// The result at one class; u is also the mass of the target there.
template <Softmax kind, class V>
CURVEXT_INLINE V value(V e, V u, V r, V mean, V scale) {
  if constexpr (kind == Softmax::hessian) return (e * scale) * ((u - r) - mean);
  if constexpr (kind == Softmax::root_t) return (square_root(e) * scale) * ((u - r) - mean);
  if constexpr (kind == Softmax::sample) return e * scale;
  if constexpr (kind == Softmax::root) {
    const V q = square_root(e);
    return (q * scale) * (u - q * mean);
  }
  return e * scale - u;
}

// What is known of one position after its sums.
struct Position {
  int64_t id, best, label;  // best is -1 where no logit is above the lowest float
  double w, rest, sum, dot, r, scale;
};

// The one class whose value needs more than its own exponential, or whose terms would cancel: its value replaces what
// the sweep wrote. z(c) and u(c) give the position's values.
template <Softmax kind, class S, class T, class Z, class U, class Put>
CURVEXT_INLINE void amend(const SoftmaxProblem<S, T>& p, const Position& at, T top, Z z, U u, Put put) {
  const auto likelihood = [&](int64_t c) { return double(exp_nonpositive(broadcast<T>(z(c) - top))[0]) / at.sum; };
  if constexpr (kind == Softmax::root) {
    if (at.best >= 0) put(at.best, at.scale * (at.r * at.rest - at.dot) / at.sum);
  } else if constexpr (kind == Softmax::residual) {
    const double even = p.spread ? double(p.spread[at.label]) : 0.0, all = p.spread_sum;
    if (at.label == at.best) put(at.label, (all - even) - at.w * (at.rest / at.sum));
    else put(at.label, at.w * likelihood(at.label) - (at.w - all) - even);
  } else if constexpr (kind == Softmax::mass_residual) {
    if (at.best >= 0) put(at.best, (at.w - double(u(at.best))) - at.w * (at.rest / at.sum));
  } else if constexpr (kind == Softmax::sample) {
    const double root = square_root(at.w);
    if (at.label == at.best) put(at.label, -root * (at.rest / at.sum));
    else put(at.label, root * (likelihood(at.label) - 1));
  }
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
