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

// The element types, by the names in `Type`.
using f32 = float;
using f64 = double;
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
// Of twice as many elements, those at even places and those at odd ones.
struct Even {};
struct Odd {};

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

// How many elements to write before `to` is aligned to `size` of them.
template <class T>
inline int64_t to_alignment(const T* to, int64_t size) {
  const int64_t past = reinterpret_cast<uintptr_t>(to) / sizeof(T) % size;
  return past ? size - past : 0;
}

// Lanes<T>: loads T into vectors of the type it is computed in, and stores them back.
// A part of a vector is loaded over `rest`, whose lanes stay where there is nothing to load.
template <class T>
struct Lanes;

//
// `paired` types are best taken two vectors at once, Even then Odd, where it does not matter which
// lane an element comes to lie in.
template <class T, class A>
struct Plain {
  using Acc = A;
  using V = Vec<A>;
  static constexpr bool paired = false;

  static V load(const T* p, Whole<A>, V = V{}) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, V v, Whole<A>) { std::memcpy(p, &v, sizeof v); }
  static void put(T* p, V v) { std::memcpy(p, &v, sizeof v); }
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

// The extension's own conversion comes out as twice as many instructions.
inline Bits32 zero_extended(Bits16 bits) {
#if defined(__AVX512F__)
  return Bits32(_mm512_cvtepu16_epi32(__m256i(bits)));
#elif defined(__AVX2__)
  return Bits32(_mm256_cvtepu16_epi32(__m128i(bits)));
#else
  return __builtin_convertvector(bits, Bits32);
#endif
}

template <class T, class Rule>
struct Narrow {
  using Acc = float;
  using V = Vec<float>;
  static constexpr bool paired = false;

  static V load(const T* p, Whole<float>, V = V{}) {
    Bits16 bits;
    std::memcpy(&bits, p, sizeof bits);
    return Rule::widen(bits);
  }
#if defined(__AVX512F__)
  static __mmask16 mask(Part part) { return static_cast<__mmask16>((1u << part.size) - 1); }
  static V load(const T* p, Part part, V rest = V{}) {
    const Bits16 bits = Bits16(_mm256_maskz_loadu_epi16(mask(part), p));
    return V(_mm512_mask_mov_ps(__m512(rest), mask(part), __m512(Rule::widen(bits))));
  }
  static void store(T* p, V v, Part part) {
    _mm256_mask_storeu_epi16(p, mask(part), __m256i(Rule::narrow(v)));
  }
#else
  static V load(const T* p, Part part, V rest = V{}) {
    Bits16 bits{};
    for (int i = 0; i < part.size; i++) bits[i] = p[i].bits;
    const V all = Rule::widen(bits);
    for (int i = 0; i < part.size; i++) rest[i] = all[i];
    return rest;
  }
  static void store(T* p, V v, Part part) {
    const Bits16 bits = Rule::narrow(v);
    for (int i = 0; i < part.size; i++) p[i].bits = bits[i];
  }
#endif
  static void store(T* p, V v, Whole<float>) {
    const Bits16 bits = Rule::narrow(v);
    std::memcpy(p, &bits, sizeof bits);
  }
  static void put(T* p, V v) { store(p, v, Whole<float>{}); }
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

#if defined(__AVX512F__)
// The place of the upper half of each 32 bits, in two vectors.
alignas(64) constexpr uint16_t kUpperPlaces[32] = {
    1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
#endif

// bfloat16 is the upper half of a float; rounded to nearest, ties to even. A NaN stays one, as none
// has ones in the lower half: each comes from bfloat16, from arithmetic, or from `number`s.
struct UpperHalf {
  static Vec<float> widen(Bits16 bits) {
    return Vec<float>(zero_extended(bits) << 16);
  }
  static Bits32 round(Vec<float> v) {  // to the upper half; what is left in the lower is rubbish
    const Bits32 bits = Bits32(v);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }
  static Bits16 narrow(Vec<float> v) { return __builtin_convertvector(round(v) >> 16, Bits16); }
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
struct Lanes<bf16> : Narrow<bf16, UpperHalf> {
  static constexpr bool paired = true;
  static constexpr uint32_t upper = 0xffff0000u;
  using Narrow::load;
  using Narrow::store;

  static Bits32 both(const bf16* p) {
    Bits32 bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static V load(const bf16* p, Even, V = V{}) { return V(both(p) << 16); }
  static V load(const bf16* p, Odd, V = V{}) { return V(both(p) & upper); }

  // Even comes first; Odd is written over it.
  static void store(bf16* p, V v, Even) {
    const Bits32 bits = UpperHalf::round(v) >> 16;
    std::memcpy(p, &bits, sizeof bits);
  }
  static void store(bf16* p, V v, Odd) {
    const Bits32 bits = (both(p) & ~upper) | (UpperHalf::round(v) & upper);
    std::memcpy(p, &bits, sizeof bits);
  }

  // Two vectors in one: of even and odd elements, or of those before and those behind.
  static V mix(V even, V odd) {
    return V((UpperHalf::round(even) >> 16) | (UpperHalf::round(odd) & upper));
  }
  static V join(V first, V second) {
    const Bits32 a = UpperHalf::round(first), b = UpperHalf::round(second);
#if defined(__AVX512F__)
    return V(_mm512_permutex2var_epi16(__m512i(a), _mm512_load_si512(kUpperPlaces), __m512i(b)));
#elif defined(__AVX2__)
    const __m256i halves = _mm256_packus_epi32(__m256i(a >> 16), __m256i(b >> 16));
    return V(_mm256_permute4x64_epi64(halves, 0xd8));
#else
    const Bits16 both[2] = {__builtin_convertvector(a >> 16, Bits16),
                            __builtin_convertvector(b >> 16, Bits16)};
    V joined;
    std::memcpy(&joined, both, sizeof joined);
    return joined;
#endif
  }
  static void put(bf16* p, V both) { std::memcpy(p, &both, sizeof both); }
  static void stream(bf16* p, V both) {
    Lanes<float>::stream(reinterpret_cast<float*>(p), both);
  }
};
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
