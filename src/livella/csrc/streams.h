// What memory allows: a copy, and two arrays read for one written, past the caches.
#pragma once

#include "rows.h"

namespace livella {
namespace LIVELLA_ISA {

inline void stream(const Stream& job) {
  using L = Lanes<float>;
  constexpr int64_t kChunk = 1 << 14;
  parallel(job.threads, job.size, ceil_div(job.size, kChunk), [&](int64_t first, int64_t last) {
    const int64_t from = first * kChunk, to = last * kChunk < job.size ? last * kChunk : job.size;
    const float *a = job.a + from, *b = job.b ? job.b + from : nullptr;
    map(job.out + from, to - from, true, [&](int64_t i, auto extent) {
      const Vec<float> v = L::load(a + i, extent);
      return b ? v + L::load(b + i, extent) : v;
    });
    end_stream();
  });
}

}  // namespace LIVELLA_ISA
}  // namespace livella
