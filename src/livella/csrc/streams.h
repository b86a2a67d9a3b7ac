// What memory allows: a copy, and two arrays read for one written, past the caches.
#pragma once

#include "rows.h"

namespace livella {
namespace LIVELLA_ISA {

template <class T>
inline void stream(const Stream& job) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  constexpr int64_t kChunk = 1 << 14;
  parallel(job.threads, job.size, ceil_div(job.size, kChunk), [&](int64_t first, int64_t last) {
    const int64_t from = first * kChunk, to = last * kChunk < job.size ? last * kChunk : job.size;
    const T* a = static_cast<const T*>(job.a) + from;
    const T* b = job.b ? static_cast<const T*>(job.b) + from : nullptr;
    map(static_cast<T*>(job.out) + from, to - from, true, [&](int64_t i, auto extent) {
      const Vec<A> v = L::load(a + i, extent);
      return b ? v + L::load(b + i, extent) : v;
    });
    end_stream();
  });
}

}  // namespace LIVELLA_ISA
}  // namespace livella
