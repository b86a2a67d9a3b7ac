// What the backward passes of both layouts share: where dz comes from, and what its sums become.
#pragma once

#include "rows.h"

namespace livella {
namespace LIVELLA_ISA {

// What the derivative of the activation is told by: nothing, x, the saved y; or what was saved, be it
// y or, with x, the residual, which is asked inside of the loop, where its arithmetic hides that.
enum class Source { none, input, output, saved };

// x − mean and dz from the element `at` onwards, of one channel or of neighbouring ones.
template <class T, Activation fixed, Source source>
struct Derivative {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;

  static constexpr bool reads_saved = source == Source::output || source == Source::saved;
  static constexpr bool told = source != Source::none;  // by anything: there is an activation
  static constexpr bool reads_input = source == Source::input || source == Source::saved;

  const T *x, *dy, *saved;
  Activation activation;
  bool saved_output;
  V mean, scale, shift;

  Derivative(const Backward& job, int64_t at)
      : x(static_cast<const T*>(job.x) + at),
        dy(static_cast<const T*>(job.dy) + at),
        saved(reads_saved ? static_cast<const T*>(job.saved) + at : nullptr),
        activation(job.activation),
        saved_output(told_by_output(job.activation)) {}

  Derivative(const Backward& job, int64_t at, const Affine<A>& affine) : Derivative(job, at) {
    mean = splat(affine.mean), scale = splat(affine.scale), shift = splat(affine.shift);
  }

  void fetch_ahead(int64_t i) const {
    fetch(x + i);
    fetch(dy + i);
    if constexpr (reads_saved) fetch(saved + i);
  }

  template <class Extent>
  V centred(int64_t i, Extent extent) const {
    return L::load(x + i, extent) - mean;
  }

  template <class Extent>
  V dz(int64_t i, V centred, Extent extent) const {
    const V grad = L::load(dy + i, extent);
    if constexpr (source == Source::none) return grad;
    V z;
    if (source == Source::output || (source == Source::saved && saved_output)) {
      z = L::load(saved + i, extent);
    } else {
      z = centred * scale + shift;
      if constexpr (source == Source::saved) z += L::load(saved + i, extent);
    }
    return differentiate<fixed, A>(activation, z, grad);
  }
};

// Writes dx, and dz where it is wanted, from the element `at` onwards. value(i, extent) gives both.
template <class T, class Derivative, bool in_order, class F>
LIVELLA_INLINE void write_gradients(const Backward& job, int64_t at, int64_t size, F&& value) {
  T* dx = static_cast<T*>(job.dx) + at;
  if constexpr (Derivative::told) {
    if (job.dresidual)
      return map<T, in_order, 2>({dx, static_cast<T*>(job.dresidual) + at}, size, job.stream, value);
  }
  map<T, in_order>(dx, size, job.stream, [=](int64_t i, auto extent) LIVELLA_INLINED {
    return value(i, extent).of[0];
  });
}

struct PairOfSums {
  double dz = 0, dzx = 0;  // Σdz and Σdz·(x − mean), the mean as rounded to the type computed in
};

// Writes dγ and dβ of a channel, and gives what dx is made of.
template <class A>
inline Gradient<A> finish_gradient(const Backward& job, int64_t c, PairOfSums sums) {
  const double mean = job.mean[c], inverse = job.inverse[c];
  const double dzx = sums.dzx - (mean - static_cast<double>(static_cast<A>(mean))) * sums.dz;
  if (job.dweight) {
    job.dweight[c] = dzx * inverse;
    job.dbias[c] = sums.dz;
  }
  if (!job.from_batch) return Gradient<A>(inverse, job.weight[c]);
  const double count = static_cast<double>(job.layout.count());
  return Gradient<A>(inverse, job.weight[c], mean, count, sums.dz, dzx);
}

}  // namespace LIVELLA_ISA
}  // namespace livella
