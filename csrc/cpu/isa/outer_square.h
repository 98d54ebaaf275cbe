// Register tiles of the outer-product family and the packing of their panels; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

constexpr int kRows = CURVEXT_TILE_ROWS;
constexpr int kVectors = CURVEXT_TILE_VECTORS;

template <class T>
struct Tile {
  using V = typename Simd<T>::V;
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int columns = kVectors * lanes;

  V value[kRows][kVectors];

  // value = sum over k of left[k][row] right[k][column]; all of it stays in registers
  CURVEXT_INLINE void contract(Tile& tile, int64_t k, const T* left, const T* right) {
    V sum[kRows][kVectors] = {};
    for (int64_t s = 0; s < k; ++s) {
      V b[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) b[j] = load(right + s * columns + j * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const V x = broadcast<T>(left[s * kRows + i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] += x * b[j];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) tile.value[i][j] = sum[i][j];
  }
};

// The squares of one sample overlap with the products of the next: nothing but the tile in L1 links them.
template <class T>
static void add_square(int64_t samples, int64_t k, const T* left, const T* right, T* tile) {
  constexpr int lanes = Tile<T>::lanes, columns = Tile<T>::columns;
  for (int64_t n = 0; n < samples; ++n) {
    Tile<T> product;
    Tile<T>::contract(product, k, left + n * k * kRows, right + n * k * columns);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        T* at = tile + i * columns + j * lanes;
        store(at, load(at) + product.value[i][j] * product.value[i][j]);
      }
  }
}

template <class T>
static void add_product(int64_t k, const T* left, const T* right, T* tile) {
  constexpr int lanes = Tile<T>::lanes, columns = Tile<T>::columns;
  Tile<T> product;
  Tile<T>::contract(product, k, left, right);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* at = tile + i * columns + j * lanes;
      store(at, load(at) + product.value[i][j]);
    }
}

template <class T>
static void add_squared(int64_t count, const T* tmp, T* tile) {
  for (int64_t i = 0; i < count; i += Simd<T>::lanes) {
    const auto x = load(tmp + i);
    store(tile + i, load(tile + i) + x * x);
  }
}

template <class T>
static void square(int64_t count, T* values) {
  constexpr int lanes = Simd<T>::lanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = load(values + i);
    store(values + i, x * x);
  }
  for (; i < count; ++i) values[i] *= values[i];
}

template <class T>
static void add_norm(int64_t samples, int64_t k, const T* left, const T* right, double* norms) {
  constexpr int columns = Tile<T>::columns;
  for (int64_t n = 0; n < samples; ++n) {
    Tile<T> product;
    Tile<T>::contract(product, k, left + n * k * kRows, right + n * k * columns);
    typename Tile<T>::V sum = {};
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum += product.value[i][j] * product.value[i][j];
    norms[n] += double(total(sum));
  }
}

// One row of a block into its panels; whole panels have a width known here, so that they are a few vector moves.
template <int Width, class S, class T>
CURVEXT_INLINE void pack_row(int64_t extent, const S* source, int64_t panel_stride, T* panel) {
  for (; extent >= Width; extent -= Width, source += Width, panel += panel_stride)
    for (int c = 0; c < Width; ++c) panel[c] = T(scalar(source + c));
  if (extent == 0) return;
  for (int c = 0; c < extent; ++c) panel[c] = T(scalar(source + c));
  for (int c = int(extent); c < Width; ++c) panel[c] = 0;
}

// Row by row, because the rows of a large layer stand on pages of their own.
template <int Width, class S, class T>
static void pack(int64_t count, int64_t extent, const S* source, int64_t row_stride, int64_t panel_stride, T* panels) {
  for (int64_t k = 0; k < count; ++k)
    pack_row<Width>(extent, source + k * row_stride, panel_stride, panels + k * Width);
}

template <int Count, class S, class T>
CURVEXT_INLINE void copy(const S* source, T* to) {
  if constexpr (std::is_same_v<S, T>) __builtin_memcpy(to, source, Count * sizeof(T));
  else
    for (int i = 0; i < Count; ++i) to[i] = T(scalar(source + i));
}

// A few values by two moves that overlap, as many as the largest power of two in them each.
template <int Most, class S, class T>
CURVEXT_INLINE void copy_few(int64_t count, const S* source, T* to) {
  if constexpr (Most > 0) {
    if (count < Most) return copy_few<Most / 2>(count, source, to);
    copy<Most>(source, to);
    copy<Most>(source + count - Most, to + count - Most);
  }
}

template <int Width, class S, class T>
static void pack_runs(int64_t count, const Run* runs, int64_t run_count, const S* source, int64_t stride, T* panels) {
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t k = 0; k < count; ++k, source += stride, panels += Width)
    for (int64_t r = 0; r < run_count; ++r) {
      const S* from = source + runs[r].from;
      T* to = panels + runs[r].to;
      int64_t left = runs[r].count;
      for (; left >= lanes; left -= lanes, from += lanes, to += lanes) copy<lanes>(from, to);
      copy_few<lanes / 2>(left, from, to);
    }
}

// Four rows of four columns, whose rows are neighbours, into a panel, where columns are.
template <int Width, class S, class T>
CURVEXT_INLINE void transpose_four(const S* source, int64_t column_stride, T* to) {
  using Four = typename VectorOf<T, 4 * sizeof(T)>::type;
  using Order = typename VectorOf<typename Simd<T>::Index, 4 * sizeof(T)>::type;
  Four x[4];
  for (int c = 0; c < 4; ++c) {
    T column[4];
    for (int k = 0; k < 4; ++k) column[k] = T(scalar(source + c * column_stride + k));
    x[c] = load_as<Four>(column);
  }
  const Order low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  const Four a = __builtin_shuffle(x[0], x[1], low), b = __builtin_shuffle(x[2], x[3], low);
  const Four c = __builtin_shuffle(x[0], x[1], high), d = __builtin_shuffle(x[2], x[3], high);
  const Four rows[4] = {__builtin_shuffle(a, b, first), __builtin_shuffle(a, b, second), __builtin_shuffle(c, d, first),
                        __builtin_shuffle(c, d, second)};
  for (int k = 0; k < 4; ++k) __builtin_memcpy(to + k * Width, &rows[k], sizeof(Four));
}

// Column by column, whose rows are neighbours: a panel's piece stays in L1 while it is filled across.
template <int Width, class S, class T>
static void pack_across(int64_t count, int64_t extent, const S* source, int64_t column_stride, int64_t panel_stride,
                        T* panels) {
  for (int64_t first = 0; first < extent; first += Width, panels += panel_stride) {
    const S* columns = source + first * column_stride;
    const int width = int(std::min<int64_t>(Width, extent - first));
    const int64_t whole = count / 4 * 4;
    int c = 0;
    for (; c + 4 <= width; c += 4)
      for (int64_t k = 0; k < whole; k += 4)
        transpose_four<Width>(columns + c * column_stride + k, column_stride, panels + k * Width + c);
    for (int i = 0; i < c; ++i)
      for (int64_t k = whole; k < count; ++k) panels[k * Width + i] = T(scalar(columns + i * column_stride + k));
    for (; c < width; ++c)
      for (int64_t k = 0; k < count; ++k) panels[k * Width + c] = T(scalar(columns + c * column_stride + k));
    for (; c < Width; ++c)
      for (int64_t k = 0; k < count; ++k) panels[k * Width + c] = 0;
  }
}

}  // namespace curvext::cpu::CURVEXT_ISA
