// out = w p (u - <p,u>), p = softmax(z); included once for each level.
//
// Differences are taken to the u of the largest logit, r = u[argmax z], which cancels nothing when p -> 1: with d = u -
// r, u - <p,u> = d - <p,d>, and both terms are sums over the other classes only.
namespace curvext::cpu::CURVEXT_ISA {

// Float sums run over at most this many classes before they go to double.
constexpr int64_t kChunk = 2048;

template <class S, class T>
struct SoftmaxRow {
  using V = typename Simd<T>::V;
  using Index = typename Simd<T>::Mask;
  static constexpr int lanes = Simd<T>::lanes;

  // Lanes from n on hold -inf, whose exponential is zero.
  CURVEXT_INLINE V logits_part(const S* z, int64_t n) {
    return first_lanes<T>(n) ? V(load_part(z, n)) : broadcast<T>(-__builtin_huge_val());
  }

  // The largest logit and a class that holds it; class 0 and -inf when every logit is NaN, which compares as not
  // larger.
  static int64_t argmax(const S* z, int64_t classes, T& top) {
    V m[2] = {broadcast<T>(-__builtin_huge_val()), broadcast<T>(-__builtin_huge_val())};
    Index best[2] = {}, at = lane_index<T>();
    int64_t c = 0;
    for (; c + 2 * lanes <= classes; c += 2 * lanes)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) keep_larger(load(z + c + j * lanes), at, m[j], best[j]);
    for (; c < classes; c += lanes)
      keep_larger(classes - c < lanes ? logits_part(z + c, classes - c) : V(load(z + c)), at, m[0], best[0]);
    top = -__builtin_huge_val();
    int64_t winner = 0;
    for (int j = 0; j < 2; ++j)
      for (int l = 0; l < lanes; ++l)
        if (m[j][l] > top) {
          top = m[j][l];
          winner = best[j][l];
        }
    return winner;
  }

  CURVEXT_INLINE void keep_larger(V x, Index& at, V& m, Index& best) {
    const auto above = x > m;
    m = above ? x : m;
    best = above ? at : best;
    at += lanes;
  }

  // e = exp(z - top); returns its sum and adds that of e (u - r) to dot
  static double exponentials(const S* z, const S* u, int64_t classes, T top, T r, T* e, double& dot) {
    double sum = 0;
    for (int64_t begin = 0; begin < classes; begin += kChunk) {
      const int64_t end = classes - begin < kChunk ? classes : begin + kChunk;
      V sums[2] = {}, dots[2] = {};
      int64_t c = begin;
      for (; c + 2 * lanes <= end; c += 2 * lanes)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          const V x = exp_nonpositive(V(load(z + c + j * lanes)) - top);
          store(e + c + j * lanes, x);
          sums[j] += x;
          dots[j] += x * (V(load(u + c + j * lanes)) - r);
        }
      for (; c < end; c += lanes) {
        const int64_t n = end - c < lanes ? end - c : lanes;
        const V x = exp_nonpositive(logits_part(z + c, n) - top);
        store_part(e + c, x, n);
        sums[0] += x;
        dots[0] += first_lanes<T>(n) ? x * (V(load_part(u + c, n)) - r) : V{};
      }
      sum += total(sums[0] + sums[1]);
      dot += total(dots[0] + dots[1]);
    }
    return sum;
  }

  static double product(const T* e, const S* u, int64_t classes, T r) {
    double dot = 0;
    for (int64_t begin = 0; begin < classes; begin += kChunk) {
      const int64_t end = classes - begin < kChunk ? classes : begin + kChunk;
      V dots[2] = {};
      int64_t c = begin;
      for (; c + 2 * lanes <= end; c += 2 * lanes)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) dots[j] += load(e + c + j * lanes) * (V(load(u + c + j * lanes)) - r);
      for (; c < end; c += lanes) {
        const int64_t n = end - c < lanes ? end - c : lanes;
        dots[0] += first_lanes<T>(n) ? V(load_part(e + c, n)) * (V(load_part(u + c, n)) - r) : V{};
      }
      dot += total(dots[0] + dots[1]);
    }
    return dot;
  }

  static void write(const T* e, const S* u, int64_t classes, T r, T mean, T scale, S* out) {
    int64_t c = 0;
    for (; c + lanes <= classes; c += lanes) store(out + c, (load(e + c) * scale) * ((V(load(u + c)) - r) - mean));
    if (c < classes) {
      const int64_t n = classes - c;
      store_part(out + c, (V(load_part(e + c, n)) * scale) * ((V(load_part(u + c, n)) - r) - mean), n);
    }
  }
};

template <class S>
static void write_zeros(S* out, int64_t count) {
  __builtin_memset((void*)out, 0, size_t(count) * sizeof(S));
}

template <class S, class T>
static void softmax_rows(const SoftmaxProblem<S, T>& p, int64_t begin, int64_t end, T* e) {
  using Row = SoftmaxRow<S, T>;
  for (int64_t m = begin; m < end; ++m) {
    const S* z = p.z + m * p.z_outer;
    const S* u = p.u + m * p.u_outer;
    S* out = p.out + m * p.out_outer;
    if (p.w[m] == 0) {
      for (int64_t k = 0; k < p.vectors; ++k) write_zeros(out + k * p.out_vector, p.classes);
      continue;
    }
    T top;
    const int64_t best = Row::argmax(z, p.classes, top);
    double sum = 0;
    for (int64_t k = 0; k < p.vectors; ++k) {
      const S* uk = u + k * p.u_vector;
      const T r = scalar(uk + best);
      double dot = 0;
      if (k == 0) sum = Row::exponentials(z, uk, p.classes, top, r, e, dot);
      else dot = Row::product(e, uk, p.classes, r);
      Row::write(e, uk, p.classes, r, T(dot / sum), T(p.w[m] / sum), out + k * p.out_vector);
    }
  }
}

// Positions side by side in the lanes: a block of them walks down the classes together. What is read twice is copied to
// scratch [C][block], because rows that lie a power of two apart share a few cache sets and would evict each other.
template <class S, class T>
struct SoftmaxColumns {
  using V = typename Simd<T>::V;
  using Index = typename Simd<T>::Mask;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int kWidth = CURVEXT_COLUMN_BYTES / kBytes;
  static constexpr int block = kWidth * lanes;

  // Each class may stand on another page, where the hardware does not look ahead: ask for the rows to come.
  static constexpr int64_t kAhead = 16;

  // Of the block, `width` positions lie inside the tensor; n of the lanes of vector j.
  template <bool Full>
  CURVEXT_INLINE int64_t inside([[maybe_unused]] int64_t width, [[maybe_unused]] int j) {
    if (Full) return lanes;
    const int64_t n = width - j * lanes;
    return n < 0 ? 0 : n < lanes ? n : lanes;
  }

  CURVEXT_INLINE V load_some(const S* p, int64_t n) { return n >= lanes ? V(load(p)) : V(load_part(p, n)); }
  CURVEXT_INLINE void store_some(S* p, V v, int64_t n) {
    if (n >= lanes) store(p, v);
    else store_part(p, v, n);
  }

  struct Block {
    int64_t classes, width;
    T* logits;   // [C][block], z and then its exponentials
    T* vectors;  // [C][block], u
    V top[kWidth], sum[kWidth], mean[kWidth], r[kWidth], scale[kWidth];
    Index best[kWidth];
  };

  template <bool Full>
  static void read_logits(const S* z, int64_t stride, Block& b) {
    V top[kWidth];
    Index best[kWidth] = {}, index{};
    for (V& x : top) x = broadcast<T>(-__builtin_huge_val());
    for (int64_t c = 0; c < b.classes; ++c, index += 1)
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) {
        __builtin_prefetch(z + (c + kAhead) * stride + j * lanes, 0, 2);
        const V x = load_some(z + c * stride + j * lanes, inside<Full>(b.width, j));
        store(b.logits + c * block + j * lanes, x);
        const auto above = x > top[j];
        top[j] = above ? x : top[j];
        best[j] = above ? index : best[j];
      }
    for (int j = 0; j < kWidth; ++j) {
      b.top[j] = top[j];
      b.best[j] = best[j];
    }
  }

  // r = u at the class of the largest logit
  static void read_reference(const S* u, int64_t stride, Block& b) {
    for (int j = 0; j < kWidth; ++j) {
      b.r[j] = V{};
      for (int l = 0; l < lanes && j * lanes + l < b.width; ++l)
        b.r[j][l] = scalar(u + b.best[j][l] * stride + j * lanes + l);
    }
  }

  // <p, u - r>; the first vector also turns the logits into exponentials and sums them. Float sums go to a second level
  // every 256 classes, so that their error stays that of 256 additions.
  template <bool Full, bool First>
  static void read_vector(const S* u, int64_t stride, Block& b) {
    V sum[kWidth] = {}, dot[kWidth] = {};
    for (int64_t begin = 0; begin < b.classes; begin += 256) {
      const int64_t end = b.classes - begin < 256 ? b.classes : begin + 256;
      V part[kWidth] = {}, part_dot[kWidth] = {};
      for (int64_t c = begin; c < end; ++c)
#pragma GCC unroll 8
        for (int j = 0; j < kWidth; ++j) {
          __builtin_prefetch(u + (c + kAhead) * stride + j * lanes, 0, 2);
          T* at = b.logits + c * block + j * lanes;
          V e = load(at);
          if (First) {
            e = exp_nonpositive(e - b.top[j]);
            store(at, e);
            part[j] += e;
          }
          const V d = load_some(u + c * stride + j * lanes, inside<Full>(b.width, j)) - b.r[j];
          store(b.vectors + c * block + j * lanes, d);
          part_dot[j] += e * d;
        }
      for (int j = 0; j < kWidth; ++j) {
        sum[j] += part[j];
        dot[j] += part_dot[j];
      }
    }
    for (int j = 0; j < kWidth; ++j) {
      if (First) b.sum[j] = sum[j];
      b.mean[j] = dot[j] / b.sum[j];
    }
  }

  template <bool Full>
  static void write(S* out, int64_t stride, const Block& b) {
    for (int64_t c = 0; c < b.classes; ++c)
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) {
        __builtin_prefetch(out + (c + kAhead) * stride + j * lanes, 1, 2);
        const int64_t at = c * block + j * lanes;
        const V x = (load(b.logits + at) * b.scale[j]) * (load(b.vectors + at) - b.mean[j]);
        // A weight of zero silences the position whatever stands there.
        store_some(out + c * stride + j * lanes, b.scale[j] == 0 ? V{} : x, inside<Full>(b.width, j));
      }
  }

  // Positions [at, at + width) of outer index m.
  template <bool Full>
  static void run(const SoftmaxProblem<S, T>& p, int64_t m, int64_t at, int64_t width, T* scratch) {
    Block b;
    b.classes = p.classes;
    b.width = width;
    b.logits = scratch;
    b.vectors = scratch + p.classes * block;
    const T* w = p.w + m * p.inner + at;
    read_logits<Full>(p.z + m * p.z_outer + at, p.z_class, b);
    for (int64_t k = 0; k < p.vectors; ++k) {
      const S* u = p.u + k * p.u_vector + m * p.u_outer + at;
      read_reference(u, p.u_class, b);
      if (k == 0) read_vector<Full, true>(u, p.u_class, b);
      else read_vector<Full, false>(u, p.u_class, b);
      for (int j = 0; j < kWidth; ++j) {
        const int64_t n = inside<Full>(width, j);
        const V weight = n >= lanes ? load(w + j * lanes) : V(load_part(w + j * lanes, n));
        b.scale[j] = weight == 0 ? V{} : weight / b.sum[j];
      }
      write<Full>(p.out + k * p.out_vector + m * p.out_outer + at, p.out_class, b);
    }
  }
};

template <class S, class T>
static void softmax_columns(const SoftmaxProblem<S, T>& p, int64_t begin, int64_t end, T* scratch) {
  using Columns = SoftmaxColumns<S, T>;
  const int64_t blocks = (p.inner + Columns::block - 1) / Columns::block;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t m = task / blocks, at = task % blocks * Columns::block;
    const int64_t width = p.inner - at < Columns::block ? p.inner - at : Columns::block;
    if (width == Columns::block) Columns::template run<true>(p, m, at, width, scratch);
    else Columns::template run<false>(p, m, at, width, scratch);
  }
}

}  // namespace curvext::cpu::CURVEXT_ISA
