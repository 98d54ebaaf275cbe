// The sweeps where the lanes are positions: neighbours in memory, or gathered to stand side by side. Included once for
// each level.
namespace curvext::cpu::CURVEXT_ISA {

// Classes that a panel of positions takes between two looks at its largest logits.
constexpr int64_t kRun = 8;
// Classes ahead of which a panel asks for its lines.
constexpr int64_t kAhead = 16;

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

  const SoftmaxArgs<S, T>& p;
  const Panel<In>& at;
  const int vectors = int((at.width + lanes - 1) / lanes);
  V top[kMost], rest[kMost], group[kMost], sum[kMost], scale[kMost], silent[kMost];
  Index best[kMost];
  V r[kMost][G], dot[kMost][G], group_dot[kMost][G], mean[kMost][G];
  Counters state[kMost][kHalves<T>];
  Doubles score[kMost][kHalves<T>];
  Longs label[kMost][kHalves<T>];

  SoftmaxPanel(const SoftmaxArgs<S, T>& problem, const Panel<In>& panel) : p(problem), at(panel) {}

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

  void fix_positions() {
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
        fix<kind>(
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
    if constexpr (!kRelative<kind>) fix_positions();
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
static void softmax_columns(const SoftmaxArgs<S, T>& p, int64_t panel, int64_t begin, int64_t end) {
  const int64_t panels = (p.inner + panel - 1) / panel;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t m = task / panels, i = task % panels * panel;
    const int64_t width = p.inner - i < panel ? p.inner - i : panel;
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
static void softmax_tiles(const SoftmaxArgs<S, T>& p, int64_t begin, int64_t end, T* scratch) {
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
