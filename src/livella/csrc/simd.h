// Vectors of one instruction set, of float or double, and how each element type gets in and out.
//
// GCC's and Clang's vector extensions give one source for all instruction sets; intrinsics stand only
// where the extensions have no word: masked tails, half precision, stores past the caches.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace livella {
namespace LIVELLA_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class A>
struct Vector {
  typedef A V __attribute__((vector_size(kBytes)));
};
template <class A>
using Vec = typename Vector<A>::V;
template <class A>
constexpr int kWidth = kBytes / sizeof(A);

template <class A>
struct Whole {
  static constexpr int size = kWidth<A>;
};
struct Part {
  int size;
};

template <class A>
inline Vec<A> splat(A a) {
  return a - Vec<A>{};
}

template <class A>
inline A sum(Vec<A> v) {
  A lanes[kWidth<A>];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = kWidth<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class A>
inline Vec<A> at_least(Vec<A> v, A low) {  // NaN stays NaN
  return v < low ? splat(low) : v;
}
template <class A>
inline Vec<A> at_most(Vec<A> v, A high) {
  return v > high ? splat(high) : v;
}

// How many elements to write before `to` is aligned to a whole vector of T.
template <class T, class A>
inline int to_alignment(const T* to, int64_t at_most_this) {
  const auto past = reinterpret_cast<uintptr_t>(to) % (kWidth<A> * sizeof(T));
  const int64_t left = past ? (kWidth<A> * sizeof(T) - past) / sizeof(T) : 0;
  return static_cast<int>(left < at_most_this ? left : at_most_this);
}

// Lanes<T>: loads T into vectors of the type it is computed in, and stores them back.
// A part of a vector is loaded over `rest`, whose lanes stay where there is nothing to load.
template <class T>
struct Lanes;

template <class T, class A>
struct Plain {
  using Acc = A;
  using V = Vec<A>;

  static V load(const T* p, Whole<A>, V = V{}) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, V v, Whole<A>) { std::memcpy(p, &v, sizeof v); }
  static V load_lanes(const T* p, Part part, V rest) {
    for (int i = 0; i < part.size; i++) rest[i] = p[i];
    return rest;
  }
  static void store_lanes(T* p, V v, Part part) {
    for (int i = 0; i < part.size; i++) p[i] = v[i];
  }
};

template <>
struct Lanes<float> : Plain<float, float> {
  using Plain::load;
  using Plain::store;
#if defined(__AVX512F__)
  static __mmask16 mask(Part part) { return static_cast<__mmask16>((1u << part.size) - 1); }
  static V load(const float* p, Part part, V rest = V{}) {
    return V(_mm512_mask_loadu_ps(__m512(rest), mask(part), p));
  }
  static void store(float* p, V v, Part part) { _mm512_mask_storeu_ps(p, mask(part), __m512(v)); }
  static void stream(float* p, V v) { _mm512_stream_ps(p, __m512(v)); }
#elif defined(__AVX2__)
  static __m256i mask(Part part) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(part.size),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static V load(const float* p, Part part, V rest = V{}) {
    const __m256i m = mask(part);
    return V(_mm256_blendv_ps(__m256(rest), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m)));
  }
  static void store(float* p, V v, Part part) { _mm256_maskstore_ps(p, mask(part), __m256(v)); }
  static void stream(float* p, V v) { _mm256_stream_ps(p, __m256(v)); }
#else
  static V load(const float* p, Part part, V rest = V{}) { return load_lanes(p, part, rest); }
  static void store(float* p, V v, Part part) { store_lanes(p, v, part); }
  static void stream(float* p, V v) { store(p, v, Whole<float>{}); }
#endif
};

template <>
struct Lanes<double> : Plain<double, double> {
  using Plain::load;
  using Plain::store;
#if defined(__AVX512F__)
  static __mmask8 mask(Part part) { return static_cast<__mmask8>((1u << part.size) - 1); }
  static V load(const double* p, Part part, V rest = V{}) {
    return V(_mm512_mask_loadu_pd(__m512d(rest), mask(part), p));
  }
  static void store(double* p, V v, Part part) { _mm512_mask_storeu_pd(p, mask(part), __m512d(v)); }
  static void stream(double* p, V v) { _mm512_stream_pd(p, __m512d(v)); }
#else
  static V load(const double* p, Part part, V rest = V{}) { return load_lanes(p, part, rest); }
  static void store(double* p, V v, Part part) { store_lanes(p, v, part); }
#if defined(__AVX2__)
  static void stream(double* p, V v) { _mm256_stream_pd(p, __m256d(v)); }
#else
  static void stream(double* p, V v) { store(p, v, Whole<double>{}); }
#endif
#endif
};

// Sixteen bits: widened to float by `T`'s own rule, half a vector's bytes wide in memory.
typedef uint16_t Bits16 __attribute__((vector_size(kBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kBytes)));

template <class T, class Rule>
struct Narrow {
  using Acc = float;
  using V = Vec<float>;

  static V load(const T* p, Whole<float>, V = V{}) {
    Bits16 bits;
    std::memcpy(&bits, p, sizeof bits);
    return Rule::widen(bits);
  }
  static V load(const T* p, Part part, V rest = V{}) {
    Bits16 bits{};
    for (int i = 0; i < part.size; i++) bits[i] = p[i].bits;
    const V all = Rule::widen(bits);
    for (int i = 0; i < part.size; i++) rest[i] = all[i];
    return rest;
  }
  static void store(T* p, V v, Whole<float>) {
    const Bits16 bits = Rule::narrow(v);
    std::memcpy(p, &bits, sizeof bits);
  }
  static void store(T* p, V v, Part part) {
    const Bits16 bits = Rule::narrow(v);
    for (int i = 0; i < part.size; i++) p[i].bits = bits[i];
  }
  static void stream(T* p, V v) {
    const Bits16 bits = Rule::narrow(v);
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __m256i(bits));
#elif defined(__AVX2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), __m128i(bits));
#else
    std::memcpy(p, &bits, sizeof bits);
#endif
  }
};

// bfloat16 is the upper half of a float; rounded to nearest, ties to even, NaN kept quiet.
struct UpperHalf {
  static Vec<float> widen(Bits16 bits) {
    return Vec<float>(__builtin_convertvector(bits, Bits32) << 16);
  }
  static Bits16 narrow(Vec<float> v) {
    const Bits32 bits = Bits32(v);
    const Bits32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits32 nan = (bits >> 16) | 0x40u;
    return __builtin_convertvector(v != v ? nan : rounded, Bits16);
  }
};

// IEEE half precision.
struct Half {
#if defined(__AVX512F__)
  static Vec<float> widen(Bits16 bits) { return Vec<float>(_mm512_cvtph_ps(__m256i(bits))); }
  static Bits16 narrow(Vec<float> v) {
    return Bits16(_mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__)
  static Vec<float> widen(Bits16 bits) { return Vec<float>(_mm256_cvtph_ps(__m128i(bits))); }
  static Bits16 narrow(Vec<float> v) {
    return Bits16(_mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
  }
#else
  // Without instructions for it: the exponents are shifted by a product with a power of two, which
  // makes subnormal numbers right too; what lies beyond 65504 is infinite or NaN.
  static Vec<float> widen(Bits16 half) {
    const Bits32 bits = __builtin_convertvector(half, Bits32);
    const Bits32 sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
    const Vec<float> scaled = Vec<float>(magnitude) * 0x1p112f;
    const Bits32 special = magnitude | 0x7f800000u;
    return Vec<float>((magnitude >= 0x0f800000u ? special : Bits32(scaled)) | sign);
  }
  static Bits16 narrow(Vec<float> v) {
    const Bits32 bits = Bits32(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Vec<float> size = Vec<float>(magnitude);
    // Below 2⁻¹⁴ the last place is worth 2⁻²⁴: adding 0.5 leaves the rounded number in the low bits.
    const Bits32 subnormal = Bits32(size + 0.5f) - 0x3f000000u;
    const Bits32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    Bits32 half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? Bits32{} + 0x7c00u : half;  // 65520 and more
    half = size != size ? Bits32{} + 0x7e00u : half;
    return __builtin_convertvector(half | sign, Bits16);
  }
#endif
};

template <>
struct Lanes<bf16> : Narrow<bf16, UpperHalf> {};
template <>
struct Lanes<f16> : Narrow<f16, Half> {};

// Stores past the caches become visible to other threads only after this.
inline void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace LIVELLA_ISA
}  // namespace livella
