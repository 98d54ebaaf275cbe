// Output Hessians and drawn residuals of losses that act on each output alone; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

// Values that stay in L1 between two steps.
constexpr int64_t kTile = 256;

// h = w l''(z), for l = w (f - y)^2
struct MseHessian {
  template <class V>
  CURVEXT_INLINE V curvature(V, V w) {
    return w + w;
  }
};

// and for l = w [log(1 + e^z) - y z]: w p (1 - p), by e^-|z|, which keeps it far from zero
struct SigmoidHessian {
  template <class V>
  CURVEXT_INLINE V curvature(V z, V w) {
    const V e = exp_nonpositive(z < 0 ? z : V{} - z);
    return w * (e / ((1 + e) * (1 + e)));
  }
};

// Calls take(at, n) for every vector of [begin, end), n of its lanes inside.
template <class T, class Take>
CURVEXT_INLINE void each_vector(int64_t begin, int64_t end, Take take) {
  constexpr int64_t lanes = Simd<T>::lanes;
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) take(i, lanes);
  if (i < end) take(i, end - i);
}

template <class S>
CURVEXT_INLINE auto load_inside(const S* p, int64_t n, int64_t lanes) {
  return n == lanes ? load(p) : load_part(p, n);
}

template <class S, class V>
CURVEXT_INLINE void store_inside(S* p, V v, int64_t n, int64_t lanes) {
  if (n == lanes) store(p, v);
  else store_part(p, v, n);
}

template <class T>
CURVEXT_INLINE typename Simd<T>::V weight(const T* w, int64_t step, int64_t i, int64_t n) {
  return step ? load_inside(w + i, n, Simd<T>::lanes) : broadcast<T>(*w);
}

template <class Loss, class S, class T>
static void element_hessian(const ElementProblem<S, T>& p, int64_t begin, int64_t end) {
  using V = typename Simd<T>::V;
  constexpr int64_t lanes = Simd<T>::lanes;
  T curvature[kTile];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t stop = end - tile < kTile ? end : tile + kTile;
    each_vector<T>(tile, stop, [&](int64_t i, int64_t n) CURVEXT_LAMBDA {
      store(curvature + (i - tile),
            Loss::template curvature<V>(load_inside(p.z + i, n, lanes), weight(p.w, p.w_step, i, n)));
    });
    for (int64_t k = 0; k < p.vectors; ++k)
      each_vector<T>(tile, stop, [&](int64_t i, int64_t n) CURVEXT_LAMBDA {
        const V u = load_inside(p.u + k * p.count + i, n, lanes);
        // a weight of zero silences the element whatever stands there
        const V h = weight(p.w, p.w_step, i, n) == 0 ? V{} : load(curvature + (i - tile)) * u;
        store_inside(p.out + k * p.count + i, h, n, lanes);
      });
  }
}

// log(x) for x in (0, 1), to 1e-15: by x = 2^k m with m around 1, and 2 atanh((m - 1) / (m + 1)).
CURVEXT_INLINE Doubles log_fraction(Doubles x) {
  const Longs bits = (Longs)x - 0x3fe6a09e667f3bcd;  // sqrt(1/2): m lies in [sqrt(1/2), sqrt(2))
  const Longs k = bits >> 52;
  const Doubles m = (Doubles)((Longs)x - (k << 52));
  const Doubles s = (m - 1) / (m + 1), t = s * s;
  Doubles q = Doubles{} + 1.0 / 23;  // |s| <= 0.172: the terms beyond are below 1e-19
#pragma GCC unroll 10
  for (int i = 21; i >= 3; i -= 2) q = q * t + 1.0 / i;
  return __builtin_convertvector(k, Doubles) * 0x1.62e42fefa39efp-1 + (s * 2 + (s * 2) * (t * q));
}

// sin(2 pi x) and cos(2 pi x) for x in [0, 1), to 1e-15
CURVEXT_INLINE void sin_cos_turns(Doubles x, Doubles& sine, Doubles& cosine) {
  const Doubles magic = Doubles{} + 0x1.8p52;
  const Doubles quarters = (x * 4 + magic) - magic;
  const Longs quadrant = __builtin_convertvector(quarters, Longs) & 3;
  const Doubles a = (x - quarters * 0.25) * 0x1.921fb54442d18p2, b = a * a;  // |a| <= pi / 4
  Doubles s = Doubles{} + 1.0 / 355687428096000.0, c = Doubles{} - 1.0 / 6402373705728000.0;
  s = s * b - 1.0 / 1307674368000.0;
  s = s * b + 1.0 / 6227020800.0;
  s = s * b - 1.0 / 39916800.0;
  s = s * b + 1.0 / 362880.0;
  s = s * b - 1.0 / 5040.0;
  s = s * b + 1.0 / 120.0;
  s = s * b - 1.0 / 6.0;
  s = s * b * a + a;
  c = c * b + 1.0 / 20922789888000.0;
  c = c * b - 1.0 / 87178291200.0;
  c = c * b + 1.0 / 479001600.0;
  c = c * b - 1.0 / 3628800.0;
  c = c * b + 1.0 / 40320.0;
  c = c * b - 1.0 / 720.0;
  c = c * b + 1.0 / 24.0;
  c = c * b - 0.5;
  c = c * b + 1.0;
  const Longs odd = (quadrant & 1) != 0;
  const Doubles first = odd ? c : s, second = odd ? s : c;
  sine = (quadrant & 2) != 0 ? -first : first;
  cosine = ((quadrant + 1) & 2) != 0 ? -second : second;
}

// sqrt(2 w) e with e standard normal (Box, Muller, "A note on the generation of random normal deviates", 1958): an even
// element takes the cosine of its pair, the odd one after it the sine.
struct MseSample {
  template <class S, class T>
  CURVEXT_INLINE void fill(const S*, uint64_t datum, int64_t from, int64_t n, T* noise) {
    constexpr int64_t kPairs = Simd<double>::lanes;
    T pairs[kTile + 4 * kPairs];
    const int64_t odd = from % 2;
    for (int64_t i = 0; i < n + odd; i += 2 * kPairs) {
      const Counters key = counters(from - odd + i, 2);
      const Doubles first = uniform(mixed(key ^ datum)), second = uniform(mixed((key + kGolden) ^ datum));
      const Doubles radius = square_root(-2 * log_fraction(first));
      Doubles sine, cosine;
      sin_cos_turns(second, sine, cosine);
      store_in_turn(pairs + i, radius * cosine, radius * sine);
    }
    __builtin_memcpy(noise, pairs + odd, size_t(n) * sizeof(T));
  }
  template <class V>
  CURVEXT_INLINE V scaled(V noise, V w) {
    return square_root(w + w) * noise;
  }
};

// sqrt(w) (p - b), b = 1 with probability p = 1 / (1 + e^-z); 1 - p is the p of -z, so nothing cancels. Where a number
// drawn in double lies closer to p than float tells, p is formed in double: labels are the same for every dtype.
struct SigmoidSample {
  template <class S, class T>
  CURVEXT_INLINE void fill(const S* z, uint64_t datum, int64_t from, int64_t n, T* score) {
    using V = typename Simd<T>::V;
    constexpr int64_t lanes = Simd<T>::lanes;
    constexpr int kHalf = int(lanes) / kHalves<T>;
    each_vector<T>(0, n, [&](int64_t i, int64_t inside) CURVEXT_LAMBDA {
      const V x = load_inside(z + i, inside, lanes);
      const auto negative = x < 0;
      const V e = exp_nonpositive(negative ? x : V{} - x);
      const V small = e / (1 + e), large = 1 / (1 + e);  // p of -|z| and of |z|
      const V p = negative ? small : large, q = negative ? large : small;
      Longs label[kHalves<T>];
      for (int h = 0; h < kHalves<T>; ++h) {
        const Doubles drawn = uniform(mixed(counters(from + i + h * kHalf, 1) ^ datum));
        const Doubles distance = drawn - half<T>(p, h);
        label[h] = distance < 0;
        const Longs close = (distance < 0 ? -distance : distance) < 1e-5;
        if (__builtin_expect(any(close), 0))
          for (int l = 0; l < kHalf && h * kHalf + l < inside; ++l)
            if (close[l]) label[h][l] = drawn[l] < 1 / (1 + std::exp(-double(scalar(z + i + h * kHalf + l)))) ? -1 : 0;
      }
      store_inside(score + i, joined_masks<T>(label) ? -q : p, inside, lanes);
    });
  }
  template <class V>
  CURVEXT_INLINE V scaled(V score, V w) {
    return square_root(w) * score;
  }
};

template <class Loss, class S, class T>
static void element_sample(const ElementProblem<S, T>& p, int64_t begin, int64_t end) {
  using V = typename Simd<T>::V;
  constexpr int64_t lanes = Simd<T>::lanes;
  T score[kTile];
  for (int64_t tile = begin; tile < end;) {
    const int64_t datum = tile / p.draw.positions, from = tile % p.draw.positions;
    int64_t n = p.draw.positions - from;  // up to the end of the datum
    n = n < kTile ? n : kTile;
    n = n < end - tile ? n : end - tile;
    Loss::fill(p.z + tile, p.draw.datum(datum), from, n, score);
    each_vector<T>(tile, tile + n, [&](int64_t i, int64_t count) CURVEXT_LAMBDA {
      const V w = weight(p.w, p.w_step, i, count);
      const V x = Loss::template scaled<V>(load_inside(score + (i - tile), count, lanes), w);
      store_inside(p.out + i, w == 0 ? V{} : x, count, lanes);
    });
    tile += n;
  }
}

}  // namespace curvext::cpu::CURVEXT_ISA
