// Passes over rows of many columns, where a column holds values of one channel only. Those of a
// fusion are given as functions to what goes through a batch, which is compiled once for a type.
//
// Sums run down the columns, in arrays that stay in the first cache; a few rows are taken together,
// so that each sum is fetched and put back once for all of them.
#pragma once

#include <algorithm>

#include "gradient.h"

namespace livella {
namespace LIVELLA_ISA {

constexpr int64_t kBlock = 128;  // rows summed in one go, before sums are merged in double
constexpr int kTogether = 4;     // rows taken together
constexpr int kAhead = 8;        // rows fetched ahead: with several rows at once no stream is foreseen

// Rows of `width` elements, `pitch` elements apart.
struct Rows {
  int64_t start, count, pitch, width;
};

// Three arrays over the columns. Loops take their `arrays()`, by value: a store to one of them might
// otherwise be a store to the pointers, which would have to be read again.
template <class A>
struct Arrays {
  A *a, *b, *c;
};

template <class A>
struct Triple {
  std::unique_ptr<A[]> memory;
  A *a, *b, *c;

  explicit Triple(int64_t width) : memory(new A[3 * width]()) {
    a = memory.get(), b = a + width, c = b + width;
  }
  Arrays<A> arrays() const { return {a, b, c}; }
  void clear(int64_t width) {  // the two that hold sums
    std::fill_n(b, width, A(0));
    std::fill_n(c, width, A(0));
  }
};

template <class A, class F>
inline void over_columns(int64_t width, F&& f) {
  constexpr int W = kWidth<A>;
  int64_t c = 0;
  for (; c + W <= width; c += W) f(c, Whole<A>{});
  if (c < width) f(c, Part{static_cast<int>(width - c)});
}

template <int rows>
struct Together {
  static constexpr int count = rows;
};

// Calls f(column, extent, first element, rows) for every column of rows taken together.
template <class A, class F>
inline void over_rows(const Rows rows, F&& f) {
  int64_t row = 0;
  for (; row + kTogether <= rows.count; row += kTogether)
    over_columns<A>(rows.width, [&](int64_t c, auto extent) {
      f(c, extent, rows.start + row * rows.pitch + c, Together<kTogether>{});
    });
  for (; row < rows.count; row++)
    over_columns<A>(rows.width, [&](int64_t c, auto extent) {
      f(c, extent, rows.start + row * rows.pitch + c, Together<1>{});
    });
}

// sums.b = Σ(x − pivot) and sums.c = Σ(x − pivot)², down each column; sums.a holds the pivots.
template <class T>
inline void sum_deviations(const T* x, const Rows& rows, Triple<typename Lanes<T>::Acc>& sums) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using P = Lanes<A>;
  sums.clear(rows.width);
  const Arrays<A> to = sums.arrays();
  const int64_t pitch = rows.pitch;
  over_rows<A>(rows, [=](int64_t c, auto extent, int64_t at, auto together) {
    const Vec<A> pivot = P::load(to.a + c, extent);
    Vec<A> sum = P::load(to.b + c, extent), squares = P::load(to.c + c, extent);
    for (int row = 0; row < together.count; row++) {
      fetch(x + at + (row + kAhead) * pitch);
      const Vec<A> deviation = L::load(x + at + row * pitch, extent) - pivot;
      sum += deviation;
      squares += deviation * deviation;
    }
    P::store(to.b + c, sum, extent);
    P::store(to.c + c, squares, extent);
  });
}

// What z and dx are made of, column by column.
template <class A>
struct Affines : Triple<A> {
  using Triple<A>::Triple;

  void set(int64_t column, const Affine<A>& affine) {
    this->a[column] = affine.mean, this->b[column] = affine.scale, this->c[column] = affine.shift;
  }
  void set(int64_t column, const Gradient<A>& gradient) {
    this->a[column] = gradient.grad, this->b[column] = gradient.slope,
    this->c[column] = gradient.shift;
  }
  // The first columns' once more, as often as they fit into the width.
  void repeat(int64_t columns, int64_t width) {
    for (A* array : {this->a, this->b, this->c})
      for (int64_t i = columns; i < width; i++) array[i] = array[i - columns];
  }
};

template <class A>
using ForwardRows = void (*)(const Forward&, const Rows&, const Affines<A>&);

template <class T, Activation fixed, bool residual>
void forward_rows(const Forward& job, const Rows& rows,
                  const Affines<typename Lanes<T>::Acc>& affines) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using P = Lanes<A>;
  const bool apart = !job.training && rows.pitch != rows.width;  // else they are in the cache
  const int64_t pitch = rows.pitch;
  const Arrays<A> by = affines.arrays();
  const Activation activation = job.activation;
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t at = rows.start + row * pitch;
    const T* x = static_cast<const T*>(job.x) + at;
    const T* r = static_cast<const T*>(job.residual) + (residual ? at : 0);
    map<T, true>(static_cast<T*>(job.y) + at, rows.width, job.stream, [=](int64_t c, auto extent) {
      if (apart) fetch(x + c + pitch);
      Vec<A> z = (L::load(x + c, extent) - P::load(by.a + c, extent)) * P::load(by.b + c, extent) +
                 P::load(by.c + c, extent);
      if constexpr (residual) z += L::load(r + c, extent);
      return activate<fixed, A>(activation, z);
    });
  }
}

template <class T, class Derivative>
inline void aim(Derivative& derivative, Arrays<typename Lanes<T>::Acc> affines, int64_t c,
                auto extent) {
  using P = Lanes<typename Lanes<T>::Acc>;
  derivative.mean = P::load(affines.a + c, extent);
  if constexpr (Derivative::reads_input) {
    derivative.scale = P::load(affines.b + c, extent);
    derivative.shift = P::load(affines.c + c, extent);
  }
}

template <class A>
struct BackwardRows {
  void (*sum)(const Backward&, const Rows&, const Affines<A>& affines, Triple<A>& sums);
  void (*write)(const Backward&, const Rows&, const Affines<A>& affines,
                const Affines<A>& gradients);
};

// sums.b = Σdz and sums.c = Σdz·(x − mean), down each column.
template <class T, class Derivative>
void sum_rows(const Backward& job, const Rows& rows, const Affines<typename Lanes<T>::Acc>& affines,
              Triple<typename Lanes<T>::Acc>& sums) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using P = Lanes<A>;
  sums.clear(rows.width);
  const Derivative at_start(job, 0);
  const Arrays<A> by = affines.arrays(), to = sums.arrays();
  const int64_t pitch = rows.pitch;
  over_rows<A>(rows, [=](int64_t c, auto extent, int64_t at, auto together) {
    Derivative derivative = at_start;
    aim<T>(derivative, by, c, extent);
    Vec<A> first = P::load(to.b + c, extent), second = P::load(to.c + c, extent);
    for (int row = 0; row < together.count; row++) {
      const int64_t i = at + row * pitch;
      derivative.fetch_ahead(i + kAhead * pitch);
      const Vec<A> centred = derivative.centred(i, extent);
      const Vec<A> dz = derivative.dz(i, centred, extent);
      first += dz;
      second += dz * centred;
    }
    P::store(to.b + c, first, extent);
    P::store(to.c + c, second, extent);
  });
}

template <class T, class Derivative>
void write_rows(const Backward& job, const Rows& rows,
                const Affines<typename Lanes<T>::Acc>& affines,
                const Affines<typename Lanes<T>::Acc>& gradients) {
  using A = typename Lanes<T>::Acc;
  using P = Lanes<A>;
  const Arrays<A> by = affines.arrays(), of = gradients.arrays();
  const bool from_batch = job.from_batch;
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t at = rows.start + row * rows.pitch;
    const Derivative at_start(job, at);
    write_gradients<T, Derivative, true>(
        job, at, rows.width, [=](int64_t c, auto extent) LIVELLA_INLINED {
          Derivative derivative = at_start;
          aim<T>(derivative, by, c, extent);
          const Vec<A> centred = derivative.centred(c, extent);
          const Vec<A> dz = derivative.dz(c, centred, extent), dx = dz * P::load(of.a + c, extent);
          if (!from_batch) return Values<T, 2>{{dx, dz}};
          const Vec<A> rest = centred * P::load(of.b + c, extent) + P::load(of.c + c, extent);
          return Values<T, 2>{{dx + rest, dz}};
        });
  }
}

// Calls block(rows) for some rows at a time.
template <class F>
inline void blocks(const Rows& rows, F&& block) {
  for (int64_t row = 0; row < rows.count; row += kBlock) {
    const int64_t count = rows.count - row < kBlock ? rows.count - row : kBlock;
    block(Rows{rows.start + row * rows.pitch, count, rows.pitch, rows.width});
  }
}

}  // namespace LIVELLA_ISA
}  // namespace livella
