// x[n][c][s] with few positions, 7×7 say: the channels of a sample, taken together, are one row.
//
// So vectors run across the borders of channels, and none is cut short at the end of each. A strip is
// some channels of all samples: a thread takes it through both passes in its cache.
#pragma once

#include "columns.h"

namespace livella {
namespace LIVELLA_ISA {
namespace short_rows {

constexpr int64_t kColumns = 1024;          // in a strip, about
constexpr int64_t kStripBytes = 512 << 10;  // of one array, about: what a core's cache holds

inline int64_t strip_width(const Layout& layout, int64_t element, const Threads& threads) {
  int64_t columns = kStripBytes / (layout.samples * element);
  if (columns > kColumns) columns = kColumns;
  int64_t width = columns / layout.positions;
  const int64_t shared = layout.channels / (2 * threads.count);  // enough strips for all threads
  if (width > shared) width = shared;
  return width < 1 ? 1 : width;
}

struct Strip {
  int64_t positions, first, channels;  // its first channel, and how many
  Rows rows;

  Strip(const Layout& layout, int64_t width, int64_t index)
      : positions(layout.positions), first(index * width) {
    channels = layout.channels - first < width ? layout.channels - first : width;
    rows = {first * positions, layout.samples, layout.channels * positions, channels * positions};
  }
  // Calls f(channel, its columns' first, one past their last) for each channel of the strip.
  template <class F>
  void each(F&& f) const {
    for (int64_t c = 0; c < channels; c++) f(first + c, c * positions, (c + 1) * positions);
  }
};

template <class A>
inline double total(const A* sums, int64_t from, int64_t to) {
  Vec<A> all = {};
  over_columns<A>(to - from, [&](int64_t c, auto extent) {
    all += Lanes<A>::load(sums + from + c, extent);
  });
  return sum<A>(all);
}

// One pivot a channel, from its means in the block's first, middle and last row.
template <class T>
inline void find_pivots(const T* x, const Strip& strip, const Rows& rows,
                        typename Lanes<T>::Acc* pivots) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  strip.each([&](int64_t, int64_t from, int64_t to) {
    const auto mean = [&](int64_t row) {
      Vec<A> all = {};
      over_columns<A>(to - from, [&](int64_t c, auto extent) {
        all += L::load(x + rows.start + row * rows.pitch + from + c, extent);
      });
      return sum<A>(all) / static_cast<A>(to - from);
    };
    const A pivot = middle_of(mean(0), mean(rows.count / 2), mean(rows.count - 1));
    for (int64_t c = from; c < to; c++) pivots[c] = pivot;
  });
}

template <class T>
void forward(const Forward& job, ForwardRows<typename Lanes<T>::Acc> forward_rows) {
  using A = typename Lanes<T>::Acc;
  const T* x = static_cast<const T*>(job.x);
  const int64_t width = strip_width(job.layout, sizeof(T), job.threads);
  const int64_t strips = ceil_div(job.layout.channels, width);
  parallel(job.threads, job.layout.size(), strips, [&](int64_t begin, int64_t end) {
    Triple<A> sums(width * job.layout.positions);
    Affines<A> affines(width * job.layout.positions);
    std::unique_ptr<Moments[]> moments(new Moments[width]);
    for (int64_t index = begin; index < end; index++) {
      const Strip strip(job.layout, width, index);
      for (int64_t c = 0; c < strip.channels; c++) moments[c] = Moments();
      if (job.training)
        blocks(strip.rows, [&](const Rows& rows) {
          find_pivots(x, strip, rows, sums.a);
          sum_deviations(x, rows, sums);
          strip.each([&](int64_t c, int64_t from, int64_t to) {
            moments[c - strip.first].merge(
                from_sums(static_cast<double>(rows.count * strip.positions), sums.a[from],
                          total(sums.b, from, to), total(sums.c, from, to)));
          });
        });
      strip.each([&](int64_t c, int64_t from, int64_t to) {
        if (job.training) {
          job.mean[c] = moments[c - strip.first].mean;
          job.variance[c] = moments[c - strip.first].m2 / moments[c - strip.first].count;
        }
        const Affine<A> affine = finish_affine<A>(job, c);
        for (int64_t k = from; k < to; k++) affines.set(k, affine);
      });
      forward_rows(job, strip.rows, affines);
    }
    end_stream();
  });
}

template <class T>
void backward(const Backward& job, BackwardRows<typename Lanes<T>::Acc> of_rows) {
  using A = typename Lanes<T>::Acc;
  const int64_t width = strip_width(job.layout, 2 * sizeof(T), job.threads);
  const int64_t strips = ceil_div(job.layout.channels, width);
  const bool sums_wanted = job.dweight != nullptr;
  parallel(job.threads, job.layout.size(), strips, [&](int64_t begin, int64_t end) {
    Triple<A> sums(width * job.layout.positions);
    Affines<A> affines(width * job.layout.positions), gradients(width * job.layout.positions);
    std::unique_ptr<PairOfSums[]> wholes(new PairOfSums[width]);
    for (int64_t index = begin; index < end; index++) {
      const Strip strip(job.layout, width, index);
      strip.each([&](int64_t c, int64_t from, int64_t to) {
        const Affine<A> affine(job.mean[c], job.inverse[c], job.weight[c], job.bias[c]);
        for (int64_t k = from; k < to; k++) affines.set(k, affine);
        wholes[c - strip.first] = PairOfSums();
      });
      if (sums_wanted)
        blocks(strip.rows, [&](const Rows& rows) {
          of_rows.sum(job, rows, affines, sums);
          strip.each([&](int64_t c, int64_t from, int64_t to) {
            wholes[c - strip.first].dz += total(sums.b, from, to);
            wholes[c - strip.first].dzx += total(sums.c, from, to);
          });
        });
      strip.each([&](int64_t c, int64_t from, int64_t to) {
        const Gradient<A> gradient = finish_gradient<A>(job, c, wholes[c - strip.first]);
        for (int64_t k = from; k < to; k++) gradients.set(k, gradient);
      });
      if (job.dx) of_rows.write(job, strip.rows, affines, gradients);
    }
    end_stream();
  });
}

}  // namespace short_rows
}  // namespace LIVELLA_ISA
}  // namespace livella
