// The formulas of a sweep over the classes of a position, the same on every device. Included once in each namespace
// that sweeps, which has CURVEXT_FORMULA for how they are inlined, square_root, and quotient(x, y) = x / y.
//
// With e = exp(z - max z) and the largest class t left out of every sum, rest = sum_c≠t e_c, the normaliser is 1 + rest
// and 1 - p_t = rest / (1 + rest): nothing cancels where p_t is 1. For H u and S^T u the vectors are taken relative to
// r = u_t, so that u - <p,u> = (u - r) - <p,u - r> consists of differences to the likeliest class.

// What writing needs after the sums. had is 1, or 0 where no class is above the lowest float, which then has no r; dot
// is the sum of q u with q = p or its root up to the normaliser, of q (u - r) for the relative kinds.
template <Softmax kind, class V>
CURVEXT_FORMULA void finish(V sum, V had, V dot, V r, V w, V& scale, V& mean) {
  if constexpr (kind == Softmax::root) mean = quotient(had * r + dot, sum);
  else mean = quotient(dot, sum);
  if constexpr (kind == Softmax::root || kind == Softmax::root_t) scale = square_root(quotient(w, sum));
  else if constexpr (kind == Softmax::sample) scale = quotient(square_root(w), sum);
  else scale = quotient(w, sum);
}

// The result at one class; u is also the mass of the target there.
template <Softmax kind, class V>
CURVEXT_FORMULA V value(V e, V u, V r, V mean, V scale) {
  if constexpr (kind == Softmax::hessian) return (e * scale) * ((u - r) - mean);
  else if constexpr (kind == Softmax::root_t) return (square_root(e) * scale) * ((u - r) - mean);
  else if constexpr (kind == Softmax::sample) return e * scale;
  else if constexpr (kind == Softmax::root) {
    const V q = square_root(e);
    return (q * scale) * (u - q * mean);
  } else return e * scale - u;
}

// The one class whose value needs more than its own exponential, or whose terms would cancel: put(class, value)
// replaces what the sweep wrote.
//
// at: the position after its sums: best, its likeliest class, -1 where there is none; w, rest, sum, dot, r, scale.
// label: the target or what was drawn. all: the sum of the spread. likelihood(c): p_c. beside(c): the target's mass, or
// its spread.
template <Softmax kind, class At, class N, class Likelihood, class Beside, class Put>
CURVEXT_FORMULA void fix_label(const At& at, int64_t label, N all, Likelihood likelihood, Beside beside, Put put) {
  if constexpr (kind == Softmax::root) {
    if (at.best >= 0) put(at.best, quotient(at.scale * (at.r * at.rest - at.dot), at.sum));
  } else if constexpr (kind == Softmax::residual) {
    const N even = beside(label);
    if (label == at.best) put(label, (all - even) - at.w * quotient(at.rest, at.sum));
    else put(label, at.w * likelihood(label) - (at.w - all) - even);
  } else if constexpr (kind == Softmax::mass_residual) {
    if (at.best >= 0) put(at.best, (at.w - beside(at.best)) - at.w * quotient(at.rest, at.sum));
  } else if constexpr (kind == Softmax::sample) {
    const N root = square_root(at.w);
    if (label == at.best) put(label, -root * quotient(at.rest, at.sum));
    else put(label, root * (likelihood(label) - 1));
  }
}
