#include "contents.h"

#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace curvext {
namespace {

constexpr int64_t kWords = 512;         // of a block, whose keys stay in L1
constexpr int64_t kBlocksOfATask = 64;  // 256 KB: less is not worth a thread
constexpr int64_t kBytesOfATask = 1 << 18;

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
constexpr uint64_t split_mix(uint64_t n) {
  uint64_t x = (n + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

constexpr std::array<uint64_t, kWords> make_keys() {
  std::array<uint64_t, kWords> keys{};
  for (int64_t i = 0; i < kWords; ++i) keys[size_t(i)] = split_mix(uint64_t(i));
  return keys;
}

constexpr std::array<uint64_t, kWords> kKeys = make_keys();

// The words of one block, of which the last may be part of one.
Contents of_block(const char* bytes, int64_t size, int64_t block) {
  uint64_t sum = 0, mixed = 0;
  int64_t at = 0;
#ifdef __SSE2__  // compilers take three multiplications for one of 32 bits by 32
  __m128i sums = _mm_setzero_si128(), products = _mm_setzero_si128();
  for (; at + 16 <= size; at += 16) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + at));
    const __m128i keys = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kKeys.data() + at / 8));
    const __m128i keyed = _mm_xor_si128(words, keys);
    sums = _mm_add_epi64(sums, words);
    products = _mm_add_epi64(products, _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32)));
  }
  std::array<uint64_t, 4> lanes;
  std::memcpy(lanes.data(), &sums, 16);
  std::memcpy(lanes.data() + 2, &products, 16);
  sum = lanes[0] + lanes[1];
  mixed = lanes[2] + lanes[3];
#endif
  for (; at < size; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, size_t(std::min<int64_t>(8, size - at)));
    const uint64_t keyed = word ^ kKeys[size_t(at / 8)];
    sum += word;
    mixed += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
  }
  mixed ^= sum;
  return {sum, (mixed ^ (mixed >> 32)) * (split_mix(uint64_t(block)) | 1)};
}

template <class Word>
bool has_ones(const char* bytes, int64_t begin, int64_t end, Word exponent) {
  Word found = 0;
  for (int64_t i = begin; i < end; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * int64_t(sizeof(Word)), sizeof(Word));
    found |= Word((word & exponent) == exponent);
  }
  return found != 0;
}

template <class Word>
bool all_finite(const at::Tensor& tensor, Word exponent) {
  const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
  std::atomic<bool> found{false};
  at::parallel_for(0, tensor.numel(), kBytesOfATask / int64_t(sizeof(Word)), [&](int64_t begin, int64_t end) {
    if (has_ones<Word>(bytes, begin, end, exponent)) found.store(true, std::memory_order_relaxed);
  });
  return !found.load();
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.is_cpu() && !tensor.is_quantized() &&
         !at::isTensorSubclassLike(tensor) && !tensor.is_neg() && !tensor.is_conj() && !tensor._is_zerotensor();
}

Contents contents(const at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) {
    const at::NoGradGuard no_graph;
    return contents(tensor.contiguous());
  }
  const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
  const int64_t size = int64_t(tensor.nbytes()), block = 8 * kWords, blocks = (size + block - 1) / block;
  std::atomic<uint64_t> sum{0}, mixed{0};  // addition modulo 2^64 has no order
  at::parallel_for(0, blocks, kBlocksOfATask, [&](int64_t begin, int64_t end) {
    Contents found;
    for (int64_t b = begin; b < end; ++b) {
      const Contents here = of_block(bytes + b * block, std::min(block, size - b * block), b);
      found.sum += here.sum;
      found.mixed += here.mixed;
    }
    sum += found.sum;
    mixed += found.mixed;
  });
  return {sum.load(), mixed.load()};
}

bool tells_finite(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return is_plain(tensor) &&
         (type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf) &&
         tensor.is_non_overlapping_and_dense();
}

bool is_finite(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return all_finite<uint64_t>(tensor, 0x7FF0000000000000u);
    case at::kFloat: return all_finite<uint32_t>(tensor, 0x7F800000u);
    case at::kBFloat16: return all_finite<uint16_t>(tensor, 0x7F80u);
    default: return all_finite<uint16_t>(tensor, 0x7C00u);
  }
}

}  // namespace curvext
