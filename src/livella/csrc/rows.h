// Loops over a stretch of memory, and over the work of all threads.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "moments.h"

namespace livella {
namespace LIVELLA_ISA {

// Loops must be inlined, or their lambdas' values would be read from memory again for each vector.
#define LIVELLA_INLINED __attribute__((always_inline))
#define LIVELLA_INLINE inline LIVELLA_INLINED

template <class T, int n>
struct Values {
  Vec<typename Lanes<T>::Acc> of[n];
};

// Writes value(i, extent), one of each, to y[0][i …], y[1][i …] … for every i: whole vectors, and
// parts of one at the ends. In order, unless the lanes do not matter to `value`.
template <class T, bool in_order, int n, class F>
LIVELLA_INLINE void map(const std::array<T*, n>& y, int64_t size, bool stream, F&& value) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  constexpr int W = kWidth<A>, step = L::paired ? 2 * W : W;
  constexpr Whole<A> whole;
  int64_t i = 0;
  const auto store = [&](auto extent) LIVELLA_INLINED {
    const Values<T, n> values = value(i, extent);
    for (int k = 0; k < n; k++) L::store(y[k] + i, values.of[k], extent);
  };
  const auto next = [&]() LIVELLA_INLINED {
    if constexpr (!L::paired) return value(i, whole);
    else {
      Values<T, n> a, b;
      if constexpr (in_order) a = value(i, whole), b = value(i + W, whole);
      else a = value(i, Even{}), b = value(i, Odd{});
      for (int k = 0; k < n; k++)
        a.of[k] = in_order ? L::join(a.of[k], b.of[k]) : L::mix(a.of[k], b.of[k]);
      return a;
    }
  };
  const int64_t head = to_alignment(y[0], step);
  for (int k = 1; k < n; k++) stream = stream && to_alignment(y[k], step) == head;
  // Both ends go through one piece of code: where there is a head it takes a round of its own.
  for (bool at_head = stream && head > 0;; at_head = false) {
    if (!at_head && stream) {
      for (; i + step <= size; i += step) {
        const Values<T, n> values = next();
        for (int k = 0; k < n; k++) L::stream(y[k] + i, values.of[k]);
      }
    } else if (!at_head) {
      for (; i + step <= size; i += step) {
        const Values<T, n> values = next();
        for (int k = 0; k < n; k++) L::put(y[k] + i, values.of[k]);
      }
    }
    const int64_t end = at_head ? std::min(head, size) : size;
    for (; i + W <= end; i += W) store(whole);
    if (i < end) store(Part{static_cast<int>(end - i)});
    i = end;
    if (i == size) return;
  }
}

template <class T, bool in_order = false, class F>
LIVELLA_INLINE void map(T* y, int64_t size, bool stream, F&& value) {
  map<T, in_order, 1>({y}, size, stream, [=](int64_t i, auto extent) LIVELLA_INLINED {
    return Values<T, 1>{{value(i, extent)}};
  });
}

// Calls add(lane, i, extent) for every i, on two sets of sums in turn: two chains of additions.
template <class T, class F>
inline void each(int64_t size, F&& add) {
  using A = typename Lanes<T>::Acc;
  constexpr int W = kWidth<A>;
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    if constexpr (Lanes<T>::paired) {
      add(0, i, Even{});
      add(1, i, Odd{});
    } else {
      add(0, i, Whole<A>{});
      add(1, i + W, Whole<A>{});
    }
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
