// Moments of parts, and what a channel's moments make of its parameters.
#pragma once

#include <algorithm>
#include <cmath>

#include "activation.h"

namespace livella {
namespace LIVELLA_ISA {

// A number of the type computed in; NaN as arithmetic makes it, whatever its bits were.
template <class A>
inline A number(double value) {
  return value == value ? static_cast<A>(value) : std::numeric_limits<A>::quiet_NaN();
}

// Where a mean is infinite the shift from it is not a number; the mean of the whole is infinite.
inline double shifted(double mean, double shift, double other) {
  const double whole = mean + shift;
  return whole == whole ? whole : mean + other;
}

// As livella.Moments: how many values, their mean, the sum of their squared deviations from it.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Exact in any grouping (Chan, Golub & LeVeque 1983).
  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count;
    const double delta = other.mean - mean, shift = delta * (other.count / total);
    m2 += other.m2 + delta * shift * count;
    mean = shifted(mean, shift, other.mean);
    count = total;
  }
};

// A pivot near the mean: the middle one of three means of a few values each, from the start, the
// middle and the end. So neither an outlier nor padding at one end leads it astray; zero where that
// is not finite.
template <class A>
inline A middle_of(A a, A b, A c) {
  const A pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
  return std::isfinite(pivot) ? pivot : A(0);
}

// Moments from sums of deviations from a pivot near the mean, and of their squares.
inline Moments from_sums(double count, double pivot, double sum, double squares) {
  const double shift = sum / count;
  const double m2 = squares - sum * shift;
  return {count, pivot + shift, m2 < 0 ? 0 : m2};  // NaN stays NaN
}

// z = (x − mean)·scale + shift: the mean in the type computed in, what that rounds away in the shift.
// So a large mean costs no accuracy, in double or in float.
template <class A>
struct Affine {
  A mean, scale, shift;

  Affine() = default;
  Affine(double mu, double inverse, double weight, double bias)
      : mean(number<A>(mu)), scale(number<A>(inverse * weight)) {
    const double lost = std::isfinite(mu) ? mu - static_cast<double>(mean) : 0;
    shift = number<A>(bias - lost * inverse * weight);
  }
};

// Writes σ⁻¹ of a channel whose moments are known, and its correction if it is to have one, and gives
// what z is made of.
template <class A>
inline Affine<A> finish_affine(const Forward& job, int64_t c) {
  const double deviation = std::sqrt(job.variance[c] + job.eps), inverse = 1 / deviation;
  job.inverse[c] = inverse;
  if (!job.correction) return Affine<A>(job.mean[c], inverse, job.weight[c], job.bias[c]);
  const Correction& by = *job.correction;
  const double running = std::sqrt(by.variance[c] + job.eps);
  const double r = std::clamp(deviation / running, 1 / by.r_max, by.r_max);  // NaN stays NaN
  const double d = std::clamp((job.mean[c] - by.mean[c]) / running, -by.d_max, by.d_max);
  by.r[c] = r, by.d[c] = d;
  return Affine<A>(job.mean[c], inverse, job.weight[c] * r, job.bias[c] + job.weight[c] * d);
}

// dx = dz·grad + (x − mean)·slope + shift, from the sums over the batch Σdz and Σdz·(x − μ).
template <class A>
struct Gradient {
  A grad, slope = 0, shift = 0;

  Gradient() = default;
  Gradient(double inverse, double weight) : grad(number<A>(inverse * weight)) {}
  Gradient(double inverse, double weight, double mu, double count, double dz, double dzx)
      : Gradient(inverse, weight) {
    const double full = inverse * weight, lost = mu - static_cast<double>(static_cast<A>(mu));
    const double incline = -full * inverse * inverse * dzx / count;
    slope = number<A>(incline);
    shift = number<A>(-full * dz / count - incline * lost);
  }
};

}  // namespace LIVELLA_ISA
}  // namespace livella
