// Vectors of one instruction set through the compiler's vector extensions; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

#define CURVEXT_INLINE static inline __attribute__((always_inline))
#define CURVEXT_INLINE_MEMBER inline __attribute__((always_inline))
#define CURVEXT_LAMBDA __attribute__((always_inline))

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};

constexpr int kBytes = CURVEXT_VECTOR_BYTES;
using Floats = typename VectorOf<float, kBytes>::type;
using Doubles = typename VectorOf<double, kBytes>::type;
using Ints = typename VectorOf<int32_t, kBytes>::type;
using Words = typename VectorOf<uint32_t, kBytes>::type;
using Longs = typename VectorOf<int64_t, kBytes>::type;
using Counters = typename VectorOf<uint64_t, kBytes>::type;
using HalfFloats = typename VectorOf<float, kBytes / 2>::type;
using HalfInts = typename VectorOf<int32_t, kBytes / 2>::type;
using HalfWords = typename VectorOf<uint32_t, kBytes / 2>::type;
using Halves = typename VectorOf<uint16_t, kBytes / 2>::type;

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = Floats;
  using Mask = Ints;
  using Index = int32_t;
  static constexpr int lanes = kBytes / 4;
};
template <>
struct Simd<double> {
  using V = Doubles;
  using Mask = Longs;
  using Index = int64_t;
  static constexpr int lanes = kBytes / 8;
};

// Unaligned access: memcpy of a known size is one move.
template <class V, class T>
CURVEXT_INLINE V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

CURVEXT_INLINE Floats load(const float* p) { return load_as<Floats>(p); }
CURVEXT_INLINE Doubles load(const double* p) { return load_as<Doubles>(p); }

CURVEXT_INLINE Floats load(const BFloat16* p) {
  return (Floats)(__builtin_convertvector(load_as<Halves>(p), Words) << 16);
}

CURVEXT_INLINE Floats load(const Float16* p) {
  const Words h = __builtin_convertvector(load_as<Halves>(p), Words);
  const Words magnitude = (h & 0x7fff) << 13;
  const Words exponent = h & 0x7c00;
  const Words sign = (h & 0x8000) << 16;
  // 2^112 moves the exponent bias from 15 to 127 and normalises subnormals exactly.
  const Floats scaled = (Floats)magnitude * 0x1p112f;
  const Words special = magnitude | 0x7f800000u;
  return (Floats)(sign | (exponent == 0x7c00 ? special : (Words)scaled));
}

CURVEXT_INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
CURVEXT_INLINE void store(double* p, Doubles v) { __builtin_memcpy(p, &v, sizeof v); }

CURVEXT_INLINE void store_halves(uint16_t* p, Words w) {
  const Halves h = __builtin_convertvector(w, Halves);
  __builtin_memcpy(p, &h, sizeof h);
}

// Round to nearest even; a NaN stays one.
CURVEXT_INLINE void store(BFloat16* p, Floats v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_halves(&p->bits, v == v ? rounded : (bits >> 16) | 0x40);
}

CURVEXT_INLINE void store(Float16* p, Floats v) {
  const Words bits = (Words)v;
  const Words sign = (bits >> 16) & 0x8000;
  const Words x = bits & 0x7fffffff;
  const Words normal = (x + 0xfff + ((x >> 13) & 1) - (112u << 23)) >> 13;
  // Below 2^-14 the addition of 1/2 rounds to a multiple of 2^-24, the spacing of subnormals.
  const Words subnormal = (Words)((Floats)x + 0.5f) - 0x3f000000u;
  Words h = x < (113u << 23) ? subnormal : normal;
  h = x >= 0x477ff000u ? (x & 0) + 0x7c00 : h;  // from 65520 on: infinity
  h = x > 0x7f800000u ? (x & 0) + 0x7e00 : h;
  store_halves(&p->bits, h | sign);
}

// Whether a comparison holds in any lane, and square roots: the two that the vector extensions lack.
#if defined(__x86_64__) && CURVEXT_VECTOR_BYTES == 64
CURVEXT_INLINE bool any(Ints m) { return _mm512_movepi32_mask((__m512i)m) != 0; }
CURVEXT_INLINE bool any(Longs m) { return _mm512_movepi64_mask((__m512i)m) != 0; }
CURVEXT_INLINE Floats square_root(Floats x) { return (Floats)_mm512_maskz_sqrt_ps(__mmask16(-1), (__m512)x); }
CURVEXT_INLINE Doubles square_root(Doubles x) { return (Doubles)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)x); }
#elif defined(__x86_64__) && CURVEXT_VECTOR_BYTES == 32
CURVEXT_INLINE bool any(Ints m) { return _mm256_movemask_ps((__m256)m) != 0; }
CURVEXT_INLINE bool any(Longs m) { return _mm256_movemask_pd((__m256d)m) != 0; }
CURVEXT_INLINE Floats square_root(Floats x) { return (Floats)_mm256_sqrt_ps((__m256)x); }
CURVEXT_INLINE Doubles square_root(Doubles x) { return (Doubles)_mm256_sqrt_pd((__m256d)x); }
#elif defined(__x86_64__)
CURVEXT_INLINE bool any(Ints m) { return _mm_movemask_ps((__m128)m) != 0; }
CURVEXT_INLINE bool any(Longs m) { return _mm_movemask_pd((__m128d)m) != 0; }
CURVEXT_INLINE Floats square_root(Floats x) { return (Floats)_mm_sqrt_ps((__m128)x); }
CURVEXT_INLINE Doubles square_root(Doubles x) { return (Doubles)_mm_sqrt_pd((__m128d)x); }
#else
template <class Mask>
CURVEXT_INLINE bool any(Mask m) {
  int64_t bits = 0;
  for (int i = 0; i < int(sizeof(Mask) / sizeof(m[0])); ++i) bits |= m[i];
  return bits != 0;
}
template <class V>
CURVEXT_INLINE V square_root(V x) {
  for (int i = 0; i < int(sizeof(V) / sizeof(x[0])); ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}
#endif
CURVEXT_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// The first n lanes from memory, the others zero.
template <class S>
CURVEXT_INLINE auto load_part(const S* p, int64_t n) {
  S lanes[kBytes / 4] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class S, class V>
CURVEXT_INLINE void store_part(S* p, V v, int64_t n) {
  S lanes[kBytes / 4];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// By masks where there are some: a vector put together from single stores waits for all of them.
#if defined(__x86_64__) && CURVEXT_VECTOR_BYTES == 64
CURVEXT_INLINE Floats load_part(const float* p, int64_t n) {
  return (Floats)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
CURVEXT_INLINE Doubles load_part(const double* p, int64_t n) {
  return (Doubles)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
CURVEXT_INLINE void store_part(float* p, Floats v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
CURVEXT_INLINE void store_part(double* p, Doubles v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
#endif

template <class T>
CURVEXT_INLINE typename Simd<T>::V broadcast(T x) {
  return x - typename Simd<T>::V{};  // x - 0 is x for every x, so this is one broadcast; 0 + x is not: -0
}

// 0, 1, 2, ... in the lanes
template <class T>
CURVEXT_INLINE typename Simd<T>::Mask lane_index() {
  alignas(64) static constexpr
      typename Simd<T>::Index indices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_as<typename Simd<T>::Mask>(indices);
}

// True in the first n lanes.
template <class T>
CURVEXT_INLINE typename Simd<T>::Mask first_lanes(int64_t n) {
  return lane_index<T>() < static_cast<typename Simd<T>::Index>(n);
}

CURVEXT_INLINE float scalar(const float* p) { return *p; }
CURVEXT_INLINE double scalar(const double* p) { return *p; }
CURVEXT_INLINE float scalar(const BFloat16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
CURVEXT_INLINE float scalar(const Float16* p) {
  const uint32_t h = p->bits, magnitude = (h & 0x7fff) << 13;
  float x;
  __builtin_memcpy(&x, &magnitude, sizeof x);
  x *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits = ((h & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000u : bits) | (h & 0x8000) << 16;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// Joins all lanes, a half with the other half at a time.
template <class V, class Join>
CURVEXT_INLINE auto joined(V v, Join join) {
  constexpr int lanes = int(sizeof(V) / sizeof(v[0]));
  std::remove_reference_t<decltype(v[0])> lane[lanes];
  __builtin_memcpy(lane, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lane[i] = join(lane[i], lane[i + half]);
  return lane[0];
}

template <class T>
constexpr int kHalves = sizeof(T) == 4 ? 2 : 1;  // vectors of double that hold one vector of T

template <class T>
CURVEXT_INLINE Doubles half(typename Simd<T>::V x, [[maybe_unused]] int h) {
  if constexpr (sizeof(T) == 8) {
    return x;
  } else {
    HalfFloats part;
    __builtin_memcpy(&part, reinterpret_cast<const char*>(&x) + h * sizeof part, sizeof part);
    return __builtin_convertvector(part, Doubles);
  }
}

// The numbers of both in turn: first[0], second[0], first[1], ...
CURVEXT_INLINE void store_in_turn(double* p, Doubles first, Doubles second) {
  for (int l = 0; l < Simd<double>::lanes; ++l) {
    p[2 * l] = first[l];
    p[2 * l + 1] = second[l];
  }
}
CURVEXT_INLINE void store_in_turn(float* p, Doubles first, Doubles second) {
  const auto bits = [](Doubles x) CURVEXT_LAMBDA {
    return __builtin_convertvector((HalfWords) __builtin_convertvector(x, HalfFloats), Counters);
  };
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  const Counters pairs = bits(first) | bits(second) << 32;
#else
  const Counters pairs = bits(second) | bits(first) << 32;
#endif
  __builtin_memcpy(p, &pairs, sizeof pairs);
}

// Masks of the lanes of T from those of its halves.
template <class T>
CURVEXT_INLINE typename Simd<T>::Mask joined_masks(const Longs (&halves)[kHalves<T>]) {
  if constexpr (sizeof(T) == 8) {
    return halves[0];
  } else {
    HalfInts narrow[2];
    for (int h = 0; h < 2; ++h) narrow[h] = __builtin_convertvector(halves[h], HalfInts);
    return load_as<Ints>(narrow);
  }
}

CURVEXT_INLINE double total(Doubles v) {
  return joined(v, [](double x, double y) CURVEXT_LAMBDA { return x + y; });
}
CURVEXT_INLINE double total(Floats v) { return total(half<float>(v, 0) + half<float>(v, 1)); }

// exp(x) for x <= 0 within 1.5 ulp, by x = n ln 2 + r with ln 2 in two parts. Zero where the result would be
// subnormal; NaN stays NaN.
CURVEXT_INLINE Floats exp_nonpositive(Floats x) {
  const Floats clamped = x < -87.3365f ? (Floats{} - 87.3365f) : x;
  const Floats magic = Floats{} + 0x1.8p23f;  // adding it rounds to an integer that stands in the low bits
  const Floats shifted = clamped * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440055e-4f;
  // Chebyshev fit of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2: relative error 1.0e-8
  Floats q = r * 1.39262508e-3f + 8.36323288e-3f;
  q = q * r + 4.16665542e-2f;
  q = q * r + 1.66665767e-1f;
  q = q * r + 0.5f;
  const Floats e = (q * (r * r) + r) + 1.0f;
  const Ints power = ((Ints)shifted - (Ints)magic + 127) << 23;
  return x < -87.3365f ? Floats{} : e * (Floats)power;
}

CURVEXT_INLINE Doubles exp_nonpositive(Doubles x) {
  const Doubles clamped = x < -708.396 ? (Doubles{} - 708.396) : x;
  const Doubles magic = Doubles{} + 0x1.8p52;
  const Doubles shifted = clamped * 1.4426950408889634 + magic;
  const Doubles n = shifted - magic;
  const Doubles r = (clamped - n * 0x1.62e42fefap-1) - n * 1.6465949582897081e-12;
  Doubles q = Doubles{} + 1.0 / 6227020800.0;  // Taylor to r^13/13!: truncation 4e-18
  q = q * r + 1.0 / 479001600.0;
  q = q * r + 1.0 / 39916800.0;
  q = q * r + 1.0 / 3628800.0;
  q = q * r + 1.0 / 362880.0;
  q = q * r + 1.0 / 40320.0;
  q = q * r + 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 0.5;
  const Doubles e = (q * (r * r) + r) + 1.0;
  const Longs power = ((Longs)shifted - (Longs)magic + 1023) << 52;
  return x < -708.396 ? Doubles{} : e * (Doubles)power;
}

}  // namespace curvext::cpu::CURVEXT_ISA
