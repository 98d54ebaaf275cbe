// Inner products and weighted sums of rows; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

template <class S, class T>
static T dot(int64_t count, const T* x, const S* y) {
  constexpr int lanes = Simd<T>::lanes, kSums = 4;
  typename Simd<T>::V sum[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * lanes <= count; i += kSums * lanes)
#pragma GCC unroll 4
    for (int j = 0; j < kSums; ++j) sum[j] += load(x + i + j * lanes) * load(y + i + j * lanes);
  for (; i + lanes <= count; i += lanes) sum[0] += load(x + i) * load(y + i);
  T rest = 0;
  for (; i < count; ++i) rest += x[i] * T(scalar(y + i));
  return T(total((sum[0] + sum[1]) + (sum[2] + sum[3]))) + rest;
}

template <bool Add, class S, class T>
CURVEXT_INLINE void scale_row(int64_t count, T c, const S* x, T* y) {
  constexpr int lanes = Simd<T>::lanes;
  const auto factor = broadcast<T>(c);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto product = factor * load(x + i);
    store(y + i, Add ? load(y + i) + product : product);
  }
  for (; i < count; ++i) y[i] = (Add ? y[i] : T(0)) + c * T(scalar(x + i));
}

template <class S, class T>
static void scale(bool add, int64_t count, T c, const S* x, T* y) {
  if (add) scale_row<true>(count, c, x, y);
  else scale_row<false>(count, c, x, y);
}

}  // namespace curvext::cpu::CURVEXT_ISA
