// The activations on vectors: act(z), and act′(z)·dy. Their definitions are those of reference.py.
#pragma once

#include <limits>

#include "kernels.h"
#include "simd.h"

namespace livella {
namespace LIVELLA_ISA {

template <class A>
struct Ints;  // integers of the same width, and the layout of a floating point number
template <>
struct Ints<float> {
  typedef int32_t V __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 23, bias = 127, terms = 7;
  static constexpr float lowest = -87.0f, highest = 88.0f, ln2_high = 0.693359375f,
                         ln2_low = -2.12194440e-4f;
};
template <>
struct Ints<double> {
  typedef int64_t V __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double lowest = -708.0, highest = 709.0, ln2_high = 0.69314718036912381649,
                          ln2_low = 1.90821492927058770002e-10;
};

// eᶻ = 2ⁿ·eʳ with |r| ≤ ln(2)/2, eʳ by its Taylor series: the first term left out is below half a
// unit in the last place. z is kept where the result is a normal number.
template <class A>
inline Vec<A> exp(Vec<A> z) {
  using I = Ints<A>;
  constexpr A log2e = A(1.4426950408889634), round = A(1.5) * (int64_t(1) << I::mantissa);
  z = at_least(at_most(z, I::highest), I::lowest);
  const Vec<A> shifted = z * log2e + round;
  const Vec<A> n = shifted - round;
  const Vec<A> r = (z - n * I::ln2_high) - n * I::ln2_low;
  Vec<A> series = splat(A(1));
  for (int k = I::terms; k > 0; k--) series = series * r * (A(1) / A(k)) + A(1);
  const auto power = (__builtin_convertvector(n, typename I::V) + I::bias) << I::mantissa;
  return series * Vec<A>(power);
}

template <class A>
inline Vec<A> sigmoid(Vec<A> z) {
  return z < -Ints<A>::highest ? Vec<A>{} : A(1) / (A(1) + exp<A>(-z));
}

constexpr double kLeakySlope = 0.01;

// Where the unit saturates: relu6 at 6, relu nowhere, which NaN stands for, as no number reaches it.
template <class A>
inline A ceiling(Activation which) {
  return which == Activation::relu6 ? A(6) : std::numeric_limits<A>::quiet_NaN();
}

// `fixed` is known when compiled: none, relu (for relu and relu6), or another for any other.
template <Activation fixed, class A>
inline Vec<A> activate(Activation which, Vec<A> z) {
  if constexpr (fixed == Activation::none) return z;
  if constexpr (fixed == Activation::relu) return at_most(at_least(z, A(0)), ceiling<A>(which));
  switch (which) {
    case Activation::leaky_relu:
      return z > A(0) ? z : z * A(kLeakySlope);
    case Activation::silu:
      return z * sigmoid<A>(z);
    case Activation::hardswish:
      return z * at_most(at_least(z + A(3), A(0)), A(6)) / A(6);
    default:
      return z;
  }
}

// For relu, relu6 and leaky_relu, y in place of z gives the same.
template <Activation fixed, class A>
inline Vec<A> differentiate(Activation which, Vec<A> z, Vec<A> dy) {
  const Vec<A> zero{};
  if constexpr (fixed == Activation::none) return dy;
  if constexpr (fixed == Activation::relu)
    return (z <= A(0)) | (z >= ceiling<A>(which)) ? zero : dy;
  switch (which) {
    case Activation::leaky_relu:
      return z > A(0) ? dy : dy * A(kLeakySlope);
    case Activation::silu: {
      const Vec<A> s = sigmoid<A>(z);
      return dy * s * (A(1) + z * (A(1) - s));
    }
    case Activation::hardswish: {
      const Vec<A> above = z >= A(3) ? splat(A(1)) : z / A(3) + A(0.5);
      return dy * (z <= A(-3) ? zero : above);
    }
    default:
      return dy;
  }
}

// Whether z can be told from y alone, as far as the derivative needs it.
inline bool told_by_output(Activation which) {
  return which == Activation::relu || which == Activation::relu6 ||
         which == Activation::leaky_relu;
}

}  // namespace LIVELLA_ISA
}  // namespace livella
