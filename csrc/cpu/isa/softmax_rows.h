// The sweeps where the lanes are classes: a position at a time, its classes contiguous. Included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

// Float sums run over at most this many classes of a row before they go to double.
constexpr int64_t kChunk = 2048;

template <Softmax kind, class S, class T>
struct SoftmaxRow {
  using V = typename Simd<T>::V;
  using Index = typename Simd<T>::Mask;
  using I = typename Simd<T>::Index;
  static constexpr int lanes = Simd<T>::lanes;

  // Lanes from n on hold -inf, whose exponential is zero.
  CURVEXT_INLINE V logits(const S* z, int64_t n) {
    if (n >= lanes) return load(z);
    return first_lanes<T>(n) ? V(load_part(z, n)) : broadcast<T>(-__builtin_huge_val());
  }
  CURVEXT_INLINE V some(const S* u, int64_t n) { return n >= lanes ? V(load(u)) : V(load_part(u, n)); }

  // The largest logit and the first class that holds it; class 0 and -inf when every logit is NaN, which compares as
  // not larger. A maximum alone takes one operation for each vector, and the search ends where it finds.
  static int64_t argmax(const S* z, int64_t classes, T& top) {
    constexpr int kMaxima = 4;
    V m[kMaxima];
    for (V& each : m) each = broadcast<T>(-__builtin_huge_val());
    int64_t c = 0;
    for (; c + kMaxima * lanes <= classes; c += kMaxima * lanes)
#pragma GCC unroll 4
      for (int j = 0; j < kMaxima; ++j) m[j] = larger(load(z + c + j * lanes), m[j]);
    for (; c < classes; c += lanes) m[0] = larger(logits(z + c, classes - c), m[0]);
    top = joined(larger(larger(m[0], m[1]), larger(m[2], m[3])), [](T x, T y) CURVEXT_LAMBDA { return x > y ? x : y; });
    if (top == -std::numeric_limits<T>::infinity()) return 0;
    c = 0;
    while (c + lanes <= classes && !any(load(z + c) == top)) c += lanes;
    while (T(scalar(z + c)) != top) ++c;
    return c;
  }

  CURVEXT_INLINE V larger(V x, V m) { return x > m ? x : m; }

  // weighed(e) (u - r) in the first n lanes, for S v weighed(e) u without the largest class.
  CURVEXT_INLINE V term(V e, const S* u, int64_t n, T r, Index is_best) {
    V found;
    if constexpr (kRelative<kind>) found = e * (some(u, n) - r);
    else found = is_best ? V{} : weighed<kind>(e) * some(u, n);
    if (n >= lanes) return found;
    return first_lanes<T>(n) ? found : V{};
  }

  // Calls add(class, how many classes are left, which of two sums, whether the likeliest may be among them) for each
  // vector of a chunk. Only where it may be does anything compare with it.
  template <class Add>
  CURVEXT_INLINE void each_vector(int64_t begin, int64_t end, int64_t best, Add add) {
    int64_t c = begin;
    const auto without = [&](int64_t stop) CURVEXT_LAMBDA {
      for (; c + 2 * lanes <= stop; c += 2 * lanes)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) add(c + j * lanes, lanes, j, std::false_type{});
      for (; c + lanes <= stop; c += lanes) add(c, lanes, 0, std::false_type{});
    };
    const int64_t holder = best / lanes * lanes;
    if (begin <= holder && holder + lanes <= end) {
      without(holder);
      add(c, lanes, 1, std::true_type{});
      c += lanes;
    }
    without(end);
    if (c < end) add(c, end - c, 0, std::true_type{});
  }

  // e = exp(z - top), and the sum of all but the largest; with it that of the first vector's terms. Memory is idle
  // meanwhile, so the next position, next_z and next_u further on, is asked for.
  static double exponentials(const S* z, const S* u, int64_t classes, int64_t best, T top, T r, int64_t next_z,
                             int64_t next_u, T* e, double& dot) {
    double rest = 0;
    dot = 0;
    for (int64_t begin = 0; begin < classes; begin += kChunk) {
      const int64_t end = classes - begin < kChunk ? classes : begin + kChunk;
      V sums[2] = {}, dots[2] = {};
      each_vector(begin, end, best, [&](int64_t c, int64_t n, int j, auto may_hold) CURVEXT_LAMBDA {
        __builtin_prefetch(z + c + next_z, 0, 2);
        if constexpr (kDots<kind>) __builtin_prefetch(u + c + next_u, 0, 2);
        const V x = exp_nonpositive(logits(z + c, n) - top);
        if (n >= lanes) store(e + c, x);
        else store_part(e + c, x, n);
        const Index is_best = may_hold.value ? lane_index<T>() + I(c) == I(best) : Index{};
        sums[j] += is_best ? x - 1 : x;  // a NaN stays one
        if constexpr (kDots<kind>) dots[j] += term(x, u + c, n, r, is_best);
      });
      rest += total(sums[0] + sums[1]);
      if constexpr (kDots<kind>) dot += total(dots[0] + dots[1]);
    }
    return rest;
  }

  // The sum of a further vector's terms.
  static double product(const T* e, const S* u, int64_t classes, int64_t best, T r) {
    double dot = 0;
    for (int64_t begin = 0; begin < classes; begin += kChunk) {
      const int64_t end = classes - begin < kChunk ? classes : begin + kChunk;
      V dots[2] = {};
      each_vector(begin, end, best, [&](int64_t c, int64_t n, int j, auto may_hold) CURVEXT_LAMBDA {
        const V x = n >= lanes ? load(e + c) : V(load_part(e + c, n));
        dots[j] += term(x, u + c, n, r, may_hold.value ? lane_index<T>() + I(c) == I(best) : Index{});
      });
      dot += total(dots[0] + dots[1]);
    }
    return dot;
  }

  static void write(const SoftmaxArgs<S, T>& p, const T* e, const S* u, T r, T mean, T scale, S* out) {
    const V rs = broadcast<T>(r), means = broadcast<T>(mean), scales = broadcast<T>(scale);
    const auto second = [&](int64_t c, int64_t n) CURVEXT_LAMBDA -> V {
      if constexpr (kReads<kind>) return some(u + c, n);
      else if constexpr (kind == Softmax::residual)
        return !p.spread ? V{} : n >= lanes ? V(load(p.spread + c)) : V(load_part(p.spread + c, n));
      else return V{};
    };
    int64_t c = 0;
    for (; c + lanes <= p.classes; c += lanes)
      store(out + c, value<kind, V>(load(e + c), second(c, lanes), rs, means, scales));
    if (c < p.classes) {
      const int64_t n = p.classes - c;
      store_part(out + c, value<kind, V>(V(load_part(e + c, n)), second(c, n), rs, means, scales), n);
    }
  }

  static int64_t draw(const T* e, const S* z, int64_t classes, T top, uint64_t state) {
    double score = 0;
    int64_t label = 0;
    constexpr int kHalf = lanes / kHalves<T>;
    Counters key{};
    for (int l = 0; l < kHalf; ++l) key[l] = uint64_t(l) * kGolden;
    for (int64_t c = 0; c < classes; c += lanes) {
      const int64_t n = classes - c < lanes ? classes - c : lanes;
      const V x = n < lanes ? V(load_part(e + c, n)) : V(load(e + c));
      for (int h = 0; h < kHalves<T>; ++h, key += kHalf * kGolden) {
        const Counters bits = mixed(key ^ state);
        const Longs close = half<T>(x, h) * kDoubt >= uniform(bits) * score;
        if (__builtin_expect(any(close), 0))
          for (int l = 0; l < kHalf && h * kHalf + l < n; ++l) {
            const int64_t at = c + h * kHalf + l;
            if (close[l]) race<T>(bits[l], T(scalar(z + at)), top, at, score, label);
          }
      }
    }
    return label;
  }
};

template <Softmax kind, class S, class T>
static void softmax_rows(const SoftmaxArgs<S, T>& p, int64_t begin, int64_t end, T* e) {
  using Row = SoftmaxRow<kind, S, T>;
  for (int64_t m = begin; m < end; ++m) {
    const S* z = p.z + m * p.z_outer;
    S* out = p.out + m * p.out_outer;
    if (p.w[m] == 0) {
      for (int64_t k = 0; k < p.vectors; ++k) write_zeros(out + k * p.out_vector, p.classes);
      continue;
    }
    T top;
    Position at{};
    at.id = m;
    at.w = p.w[m];
    at.best = Row::argmax(z, p.classes, top);
    const S* first = kReads<kind> ? p.u + m * p.u_outer : nullptr;
    const T r = kDots<kind> && p.vectors > 0 ? T(scalar(first + at.best)) : T(0);
    double first_dot = 0;
    at.rest =
        p.vectors > 0 ? Row::exponentials(z, first, p.classes, at.best, top, r, p.z_outer, p.u_outer, e, first_dot) : 0;
    at.sum = 1 + at.rest;
    if constexpr (kind == Softmax::residual) at.label = p.label[m];
    if constexpr (kind == Softmax::sample) at.label = Row::draw(e, z, p.classes, top, p.draw.state(m));
    for (int64_t k = 0; k < p.vectors; ++k, out += p.out_vector) {
      const S* u = kReads<kind> ? first + k * p.u_vector : nullptr;
      if constexpr (kDots<kind>) {
        at.r = scalar(u + at.best);
        at.dot = k == 0 ? first_dot : Row::product(e, u, p.classes, at.best, T(at.r));
      }
      double mean;
      finish<kind, double>(at.sum, 1, at.dot, at.r, at.w, at.scale, mean);
      Row::write(p, e, u, T(at.r), T(mean), T(at.scale), out);
      fix<kind>(
          p, at, top, [&](int64_t c) { return T(scalar(z + c)); }, [&](int64_t c) { return T(scalar(u + c)); },
          [&](int64_t c, double x) { store_part(out + c, broadcast<T>(T(x)), 1); });
    }
  }
}

}  // namespace curvext::cpu::CURVEXT_ISA
