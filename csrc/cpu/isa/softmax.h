// The sweeps over the classes of each position; included once for each level.
//
// With e = exp(z - max z) and the largest class t left out of every sum, rest = sum_c≠t e_c, the normaliser is 1 + rest
// and 1 - p_t = rest / (1 + rest): nothing cancels where p_t is 1. For H u and S^T u the vectors are taken relative to
// r = u_t, so that u - <p,u> = (u - r) - <p,u - r> consists of differences to the likeliest class.
namespace curvext::cpu::CURVEXT_ISA {

// Float sums run over at most this many classes of a row before they go to double.
constexpr int64_t kChunk = 2048;
// Classes that a panel of positions takes between two looks at its largest logits.
constexpr int64_t kRun = 8;
// Classes ahead of which a panel asks for its lines.
constexpr int64_t kAhead = 16;

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

// ---------------------------------------------------------------------- rows: the lanes are classes

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

  static void write(const SoftmaxProblem<S, T>& p, const T* e, const S* u, T r, T mean, T scale, S* out) {
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
static void softmax_rows(const SoftmaxProblem<S, T>& p, int64_t begin, int64_t end, T* e) {
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
      amend<kind>(
          p, at, top, [&](int64_t c) { return T(scalar(z + c)); }, [&](int64_t c) { return T(scalar(u + c)); },
          [&](int64_t c, double x) { store_part(out + c, broadcast<T>(T(x)), 1); });
    }
  }
}

// ---------------------------------------------------------------------- panels: the lanes are positions

// Neighbouring positions, In the storage type or that of a gathered tile.
template <class In>
struct Panel {
  const In* z;
  const In* u;
  In* out;
  int64_t z_class, u_class, out_class, u_vector, out_vector;
  int64_t id, positions;
  int64_t width;  // values of a line: as many as there are positions, or a whole vector in a tile
};

// A panel walks down the classes twice: once with running largest logits and sums, which are rescaled where a logit
// exceeds the largest so far, once to write. Panels are wide: what a narrow one would find in cache when it reads it
// again does not outweigh lines that lie a power of two apart, which push each other out, and a page for each class.
template <Softmax kind, class S, class T, class In, int G>
struct SoftmaxPanel {
  using V = typename Simd<T>::V;
  using Index = typename Simd<T>::Mask;
  using I = typename Simd<T>::Index;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int kMost = kSoftmaxPanelBytes / int(sizeof(S)) / lanes;
  static constexpr int kHalf = lanes / kHalves<T>;

  const SoftmaxProblem<S, T>& p;
  const Panel<In>& at;
  const int vectors = int((at.width + lanes - 1) / lanes);
  V top[kMost], rest[kMost], group[kMost], sum[kMost], scale[kMost], silent[kMost];
  Index best[kMost];
  V r[kMost][G], dot[kMost][G], group_dot[kMost][G], mean[kMost][G];
  Counters state[kMost][kHalves<T>];
  Doubles score[kMost][kHalves<T>];
  Longs label[kMost][kHalves<T>];

  SoftmaxPanel(const SoftmaxProblem<S, T>& problem, const Panel<In>& panel) : p(problem), at(panel) {}

  template <bool Full>
  CURVEXT_INLINE V get(const In* x, int64_t n) {
    if (Full) return V(load(x));
    return V(load_part(x, n));
  }

  // Each class may stand on another page, where the hardware does not look ahead.
  CURVEXT_INLINE void ask(const In* x, int64_t stride, bool write) {
    if constexpr (std::is_same_v<In, S>) {
      if (write) __builtin_prefetch(x + kAhead * stride, 1, 2);
      else __builtin_prefetch(x + kAhead * stride, 0, 2);
    }
  }

  // Calls take(begin, count, j, whether vector j is full) for every run of classes and every vector.
  template <class Take>
  CURVEXT_INLINE void each(int64_t classes, int vectors, int64_t width, Take take) {
    for (int64_t begin = 0; begin < classes; begin += kRun) {
      const int64_t count = classes - begin < kRun ? classes - begin : kRun;
      for (int j = 0; j < vectors; ++j) {
        if (width - j * lanes >= lanes) take(begin, count, j, std::true_type{});
        else take(begin, count, j, std::false_type{});
      }
    }
  }

  template <bool Full>
  CURVEXT_INLINE_MEMBER void add(int64_t begin, int64_t count, int j) {
    if (Full && count == kRun) {
      if constexpr (Full) add_run<Full, kRun>(begin, j);
    } else {
      for (int64_t c = begin; c < begin + count; ++c) add_run<Full, 1>(c, j);
    }
    if ((begin / kRun) % 32 == 31) fold(j);
  }

  // A run's logits stay in registers between the look for the largest and their exponentials.
  template <bool Full, int64_t Count>
  CURVEXT_INLINE_MEMBER void add_run(int64_t begin, int j) {
    const int64_t n = at.width - j * lanes;
    const In* z = at.z + begin * at.z_class + j * lanes;
    V x[Count], high = broadcast<T>(std::numeric_limits<T>::lowest());
#pragma GCC unroll 8
    for (int64_t c = 0; c < Count; ++c) {
      x[c] = get<Full>(z + c * at.z_class, n);
      high = x[c] > high ? x[c] : high;
      ask(z + c * at.z_class, at.z_class, false);
    }
    const Index above = high > top[j];
    const bool raised = any(above);
    if (raised) raise<Full>(begin, Count, j, above, high);
    if (Count == 1 || raised) add_terms<Full, true, Count>(begin, j, x);
    else if constexpr (Count > 1) add_terms<Full, false, Count>(begin, j, x);
  }

  // Sums of 8 classes, of 256 and of all: each level adds few terms.
  void fold(int j) {
    rest[j] += group[j];
    group[j] = V{};
    for (int g = 0; g < G; ++g) {
      dot[j][g] += group_dot[j][g];
      group_dot[j][g] = V{};
    }
  }

  // Lanes `above` have a new largest logit, `high`, in this run: the old one joins the sums, which shrink. The other
  // lanes keep their sums to the bit, so that a position does not depend on its neighbours.
  template <bool Full>
  __attribute__((noinline)) void raise(int64_t begin, int64_t count, int j, Index above, V high) {
    const int64_t n = at.width - j * lanes;
    const V had = best[j] >= 0 ? broadcast<T>(1) : V{};
    const V shrink = exp_nonpositive(above ? top[j] - high : V{});
    const V below = rest[j] + group[j] + had;
    Index first = best[j];
    for (int64_t c = count - 1; c >= 0; --c) {
      const V x = get<Full>(at.z + (begin + c) * at.z_class + j * lanes, n);
      first = (above & (x == high)) ? Index{} + I(begin + c) : first;
    }
    if constexpr (kDots<kind>)
      for (int g = 0; g < G; ++g) {
        V fresh = r[j][g];
        for (int64_t c = 0; c < count; ++c) {
          const V y = get<Full>(at.u + g * at.u_vector + (begin + c) * at.u_class + j * lanes, n);
          fresh = (above & (first == I(begin + c))) ? y : fresh;
        }
        V moved = dot[j][g] + group_dot[j][g];
        if constexpr (kRelative<kind>) moved = (moved + below * (r[j][g] - fresh)) * shrink;
        else moved = (moved + had * r[j][g]) * square_root(shrink);
        dot[j][g] = above ? moved : dot[j][g];
        group_dot[j][g] = above ? V{} : group_dot[j][g];
        r[j][g] = fresh;
      }
    rest[j] = above ? below * shrink : rest[j];
    group[j] = above ? V{} : group[j];
    top[j] = above ? high : top[j];
    best[j] = first;
  }

  template <bool Full, bool Raised, int64_t Count>
  CURVEXT_INLINE_MEMBER void add_terms(int64_t begin, int j, const V (&x)[Count]) {
    const int64_t n = at.width - j * lanes;
    const V highest = top[j];
    V part{}, part_dot[G] = {};
    V from[G];
    for (int g = 0; g < G; ++g) from[g] = r[j][g];
#pragma GCC unroll 8
    for (int64_t c = 0; c < Count; ++c) {
      V e = exp_nonpositive(x[c] - highest);
      if (Raised) e -= best[j] == I(begin + c) ? broadcast<T>(1) : V{};  // a NaN stays one
      part += e;
      if constexpr (kDots<kind>) {
        const V q = weighed<kind>(e);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const In* u = at.u + g * at.u_vector + (begin + c) * at.u_class + j * lanes;
          ask(u, at.u_class, false);
          const V y = get<Full>(u, n);
          part_dot[g] += kRelative<kind> ? q * (y - from[g]) : q * y;
        }
      }
    }
    group[j] += part;
    for (int g = 0; g < G; ++g) group_dot[j][g] += part_dot[g];
  }

  template <bool Full>
  void write(int64_t begin, int64_t count, int j) {
    const int64_t n = at.width - j * lanes;
    const V highest = top[j], factor = scale[j];
    const auto silenced = silent[j] != 0;
    V from[G], middle[G];
    for (int g = 0; g < G; ++g) {
      from[g] = r[j][g];
      middle[g] = mean[j][g];
    }
    for (int64_t c = begin; c < begin + count; ++c) {
      const In* z = at.z + c * at.z_class + j * lanes;
      ask(z, at.z_class, false);
      const V e = exp_nonpositive(get<Full>(z, n) - highest);
      if constexpr (kind == Softmax::sample) draw(e, c, j, n);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        V u{};
        if constexpr (kReads<kind>) {
          const In* from = at.u + g * at.u_vector + c * at.u_class + j * lanes;
          ask(from, at.u_class, false);
          u = get<Full>(from, n);
        } else if constexpr (kind == Softmax::residual) {
          if (p.spread) u = broadcast<T>(p.spread[c]);
        }
        V x = value<kind, V>(e, u, from[g], middle[g], factor);
        x = silenced ? V{} : x;  // a weight of zero silences the position whatever stands there
        In* to = at.out + g * at.out_vector + c * at.out_class + j * lanes;
        ask(to, at.out_class, true);
        if (Full) store(to, x);
        else store_part(to, x, n);
      }
    }
  }

  CURVEXT_INLINE_MEMBER void draw(V e, int64_t c, int j, int64_t n) {
    for (int h = 0; h < kHalves<T>; ++h) {
      const Counters bits = mixed(state[j][h] ^ (uint64_t(c) * kGolden));
      const Longs close = half<T>(e, h) * kDoubt >= uniform(bits) * score[j][h];
      if (any(close)) ring(bits, close, c, j, h, n);
    }
  }

  __attribute__((noinline)) void ring(Counters bits, Longs close, int64_t c, int j, int h, int64_t n) {
    for (int l = 0; l < kHalf && h * kHalf + l < n; ++l)
      if (close[l]) {
        const int lane = h * kHalf + l;
        double best_score = score[j][h][l];
        int64_t drawn = label[j][h][l];
        race<T>(bits[l], T(scalar(at.z + c * at.z_class + j * lanes + lane)), top[j][lane], c, best_score, drawn);
        score[j][h][l] = best_score;
        label[j][h][l] = drawn;
      }
  }

  void start() {
    for (int j = 0; j < vectors; ++j) {
      top[j] = broadcast<T>(std::numeric_limits<T>::lowest());
      rest[j] = group[j] = V{};
      best[j] = Index{} - 1;
      for (int g = 0; g < G; ++g) r[j][g] = dot[j][g] = group_dot[j][g] = mean[j][g] = V{};
      for (int h = 0; h < kHalves<T>; ++h) {
        score[j][h] = Doubles{};
        label[j][h] = Longs{};
        if constexpr (kind == Softmax::sample)
          for (int l = 0; l < kHalf; ++l) {
            const int64_t i = j * lanes + h * kHalf + l;
            state[j][h][l] = i < at.positions ? p.draw.state(at.id + i) : 0;
          }
      }
    }
  }

  void finish_sums() {
    for (int j = 0; j < vectors; ++j) {
      fold(j);
      const int64_t n = at.positions - j * lanes;
      const T* weights = p.w + at.id + j * lanes;
      const V w = n >= lanes ? load(weights) : V(load_part(weights, n));
      const V had = best[j] >= 0 ? broadcast<T>(1) : V{};
      silent[j] = w == 0 ? broadcast<T>(1) : V{};
      sum[j] = rest[j] + had;
      for (int g = 0; g < G; ++g) finish<kind, V>(sum[j], had, dot[j][g], r[j][g], w, scale[j], mean[j][g]);
    }
  }

  void amend_positions() {
    for (int64_t i = 0; i < at.positions; ++i) {
      const int j = int(i / lanes), l = int(i % lanes);
      if (silent[j][l] != 0) continue;
      for (int g = 0; g < G; ++g) {
        Position here{at.id + i,
                      best[j][l],
                      0,
                      double(p.w[at.id + i]),
                      double(rest[j][l]),
                      double(sum[j][l]),
                      double(dot[j][g][l]),
                      double(r[j][g][l]),
                      double(scale[j][l])};
        if constexpr (kind == Softmax::residual) here.label = p.label[here.id];
        if constexpr (kind == Softmax::sample) here.label = label[j][l / kHalf][l % kHalf];
        amend<kind>(
            p, here, top[j][l], [&](int64_t c) { return T(scalar(at.z + c * at.z_class + i)); },
            [&](int64_t c) { return T(scalar(at.u + g * at.u_vector + c * at.u_class + i)); },
            [&](int64_t c, double x) {
              store_part(at.out + g * at.out_vector + c * at.out_class + i, broadcast<T>(T(x)), 1);
            });
      }
    }
  }

  void run() {
    start();
    each(p.classes, vectors, at.width,
         [&](int64_t begin, int64_t count, int j, auto full) { add<decltype(full)::value>(begin, count, j); });
    finish_sums();
    each(p.classes, vectors, at.width,
         [&](int64_t begin, int64_t count, int j, auto full) { write<decltype(full)::value>(begin, count, j); });
    if constexpr (!kRelative<kind>) amend_positions();
  }
};

// Takes `Take::of<G>(k)` for vectors k, ..., k + G - 1.
template <Softmax kind, class Take>
CURVEXT_INLINE void by_vectors(int64_t vectors, Take take) {
  int64_t k = 0;
  if constexpr (kDots<kind>)
    for (; k + kSoftmaxVectors <= vectors; k += kSoftmaxVectors)
      take(k, std::integral_constant<int, int(kSoftmaxVectors)>{});
  for (; k < vectors; ++k) take(k, std::integral_constant<int, 1>{});
}

template <Softmax kind, class S, class T>
static void softmax_columns(const SoftmaxProblem<S, T>& p, int64_t begin, int64_t end, T*) {
  const int64_t panels = (p.inner + p.panel - 1) / p.panel;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t m = task / panels, i = task % panels * p.panel;
    const int64_t width = p.inner - i < p.panel ? p.inner - i : p.panel;
    by_vectors<kind>(p.vectors, [&](int64_t k, auto count) {
      const Panel<S> at{p.z + m * p.z_outer + i,
                        kReads<kind> ? p.u + k * p.u_vector + m * p.u_outer + i : nullptr,
                        p.out + k * p.out_vector + m * p.out_outer + i,
                        p.z_class,
                        p.u_class,
                        p.out_class,
                        p.u_vector,
                        p.out_vector,
                        m * p.inner + i,
                        width,
                        width};
      SoftmaxPanel<kind, S, T, S, decltype(count)::value>(p, at).run();
    });
  }
}

// Few classes, or few neighbours: `lanes` positions are gathered to stand side by side.
template <Softmax kind, class S, class T>
static void softmax_tiles(const SoftmaxProblem<S, T>& p, int64_t begin, int64_t end, T* scratch) {
  using V = typename Simd<T>::V;
  constexpr int lanes = Simd<T>::lanes;
  const int64_t positions = p.outer * p.inner, tile = p.classes * lanes;
  T *z = scratch, *u = z + tile;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t id = task * lanes, width = positions - id < lanes ? positions - id : lanes;
    int64_t outer[lanes], inner[lanes];
    for (int64_t l = 0; l < lanes; ++l) {  // lanes beyond the end repeat the last position
      const int64_t from = id + (l < width ? l : width - 1);
      outer[l] = from / p.inner;
      inner[l] = from % p.inner;
    }
    const auto gather = [&](const S* from, int64_t outer_stride, int64_t class_stride, T* to) {
      const S* at[lanes];
      for (int64_t l = 0; l < lanes; ++l) at[l] = from + outer[l] * outer_stride + inner[l];
      for (int64_t c = 0; c < p.classes; ++c) {
        S line[lanes];
        for (int64_t l = 0; l < lanes; ++l) line[l] = at[l][c * class_stride];
        store(to + c * lanes, V(load(line)));
      }
    };
    gather(p.z, p.z_outer, p.z_class, z);
    by_vectors<kind>(p.vectors, [&](int64_t k, auto count) {
      constexpr int G = decltype(count)::value;
      T* out = u + G * tile;
      if constexpr (kReads<kind>)
        for (int g = 0; g < G; ++g) gather(p.u + (k + g) * p.u_vector, p.u_outer, p.u_class, u + g * tile);
      const Panel<T> at{z, u, out, lanes, lanes, lanes, tile, tile, id, width, lanes};
      SoftmaxPanel<kind, S, T, T, G>(p, at).run();
      for (int g = 0; g < G; ++g) {
        S* to = p.out + (k + g) * p.out_vector;
        for (int64_t c = 0; c < p.classes; ++c) {
          S line[lanes];
          store(line, V(load(out + g * tile + c * lanes)));
          for (int64_t l = 0; l < width; ++l) to[outer[l] * p.out_outer + c * p.out_class + inner[l]] = line[l];
        }
      }
    });
  }
}

}  // namespace curvext::cpu::CURVEXT_ISA
