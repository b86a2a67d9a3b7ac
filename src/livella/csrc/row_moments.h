// Each row of a matrix by itself: read once, in pieces of some thousand values with a pivot each.
#pragma once

#include "channels_first.h"

namespace livella {
namespace LIVELLA_ISA {
namespace channels_first {

template <class T>
inline Moments moments_of(const T* x, int64_t size) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;
  const A near = pivot(x, size);
  const V k = splat(near);
  Sums<A> sums;
  each<T>(size, [&](int lane, int64_t i, auto extent) {
    const V deviation = L::load(x + i, extent, k) - k;
    sums.first[lane] += deviation;
    sums.second[lane] += deviation * deviation;
  });
  return from_sums(static_cast<double>(size), near, sum<A>(sums.first[0] + sums.first[1]),
                   sum<A>(sums.second[0] + sums.second[1]));
}

template <class T>
void row_moments(const RowMoments& job) {
  parallel(job.threads, job.rows * job.length, job.rows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const T* x = static_cast<const T*>(job.x) + row * job.length;
      Moments whole;
      for (int64_t at = 0; at < job.length; at += kUnit)
        whole.merge(moments_of(x + at, std::min(kUnit, job.length - at)));
      job.mean[row] = whole.mean;
      job.m2[row] = whole.m2;
    }
  });
}

}  // namespace channels_first
}  // namespace LIVELLA_ISA
}  // namespace livella
