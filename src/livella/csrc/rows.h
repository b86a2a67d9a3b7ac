// Loops over a stretch of memory, and over the work of all threads.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "moments.h"

namespace livella {
namespace LIVELLA_ISA {

// Writes value(i, extent) to y[i …] for every i: whole vectors, and parts of one at the ends.
template <class T, class F>
inline void map(T* y, int64_t size, bool stream, F&& value) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  constexpr int W = kWidth<A>;
  int64_t i = 0;
  if (stream) {
    if (const int head = to_alignment<T, A>(y, size)) {
      L::store(y, value(0, Part{head}), Part{head});
      i = head;
    }
    for (; i + W <= size; i += W) L::stream(y + i, value(i, Whole<A>{}));
  } else {
    for (; i + W <= size; i += W) L::store(y + i, value(i, Whole<A>{}), Whole<A>{});
  }
  if (i < size) {
    const Part part{static_cast<int>(size - i)};
    L::store(y + i, value(i, part), part);
  }
}

// Calls add(lane, i, extent) for every i, on two sets of sums in turn: two chains of additions.
template <class A, class F>
inline void each(int64_t size, F&& add) {
  constexpr int W = kWidth<A>;
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    add(0, i, Whole<A>{});
    add(1, i + W, Whole<A>{});
  }
  if (i + W <= size) {
    add(0, i, Whole<A>{});
    i += W;
  }
  if (i < size) add(1, i, Part{static_cast<int>(size - i)});
}

// Fetches into the second cache what is read soon, where no processor foresees the jump to it.
template <class T>
inline void fetch(const T* next) {
  __builtin_prefetch(next, 0, 2);
}

constexpr int64_t kWorthThreads = 1 << 14;  // elements, below which one thread is faster

template <class F>
inline void parallel(const Threads& threads, int64_t elements, int64_t size, F&& body) {
  if (elements < kWorthThreads || size < 2 || threads.count < 2) {
    body(int64_t(0), size);
    return;
  }
  auto call = [](void* context, int64_t begin, int64_t end) {
    (*static_cast<F*>(context))(begin, end);
  };
  threads.run(size, call, &body);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace LIVELLA_ISA
}  // namespace livella
