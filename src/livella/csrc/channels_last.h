// x[n][s][c]: a row holds one value of every channel.
//
// The rows are cut into panels, measured, merged in their order, and then normalized, the last panel
// first, as a part of it is still in the cache. What comes out depends on the shape alone.
#pragma once

#include "columns.h"

namespace livella {
namespace LIVELLA_ISA {
namespace channels_last {

constexpr int64_t kPivotRows = 8;   // rows that make a block's pivot
constexpr int64_t kPanels = 64;     // at most
constexpr int64_t kPanelRows = 64;  // at least
constexpr int64_t kNarrow = 256;     // columns that a row should have

// Narrow rows are taken several at once, as one of `width` columns: `repeat` for every channel.
struct Table {
  int64_t channels, repeat, width, rows, rest;  // rest: elements of the last, incomplete row
  int64_t panel, panels;                        // rows of a panel, and how many panels

  Table(const Layout& layout, int lanes) : channels(layout.channels), repeat(1) {
    if (channels < kNarrow) {
      while (repeat * channels % lanes != 0) repeat++;
      while (repeat * channels < kNarrow) repeat *= 2;
    }
    width = repeat * channels;
    rows = layout.count() / repeat;
    rest = layout.count() % repeat * channels;
    panel = std::max(ceil_div(rows, kPanels), kPanelRows);
    panels = std::max(ceil_div(rows, panel), int64_t(1));
  }
  Rows part(int64_t p) const {
    return {p * panel * width, std::min(rows - p * panel, panel), width, width};
  }
  // What follows the last panel: one row, cut short, or nothing.
  Rows end(int64_t p) const {
    return {rows * width, p == panels - 1 && rest > 0 ? 1 : 0, width, rest};
  }
};

// Two numbers for every column of every panel, in double.
struct Records {
  int64_t width;
  std::unique_ptr<double[]> memory;

  Records(const Table& table, bool wanted)
      : width(table.width), memory(new double[wanted ? 2 * table.panels * table.width : 0]()) {}
  double* first(int64_t p) { return memory.get() + 2 * p * width; }
  double* second(int64_t p) { return first(p) + width; }
};

// The mean of a block's first rows, where it is finite.
template <class T>
inline void find_pivots(const T* x, const Rows& rows, typename Lanes<T>::Acc* pivots) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  const int64_t few = rows.count < kPivotRows ? rows.count : kPivotRows;
  over_columns<A>(rows.width, [&](int64_t c, auto extent) {
    Vec<A> mean = {};
    for (int64_t row = 0; row < few; row++)
      mean += L::load(x + rows.start + row * rows.pitch + c, extent);
    mean = mean / static_cast<A>(few);
    Lanes<A>::store(pivots + c, mean - mean == A(0) ? mean : Vec<A>{}, extent);
  });
}

// Takes `count` more values a column, given their moments, into those of the `seen` before them.
inline void merge_columns(int64_t width, double seen, double count, const double* mean_of,
                          const double* m2_of, double* mean, double* m2) {
  const double share = count / (seen + count);
  for (int64_t c = 0; c < width; c++) {
    const double delta = mean_of[c] - mean[c], shift = delta * share;
    m2[c] += m2_of[c] + delta * shift * seen;
    mean[c] = shifted(mean[c], shift, mean_of[c]);
  }
}

// The same, given sums of deviations from pivots.
template <class A>
inline void merge_block(const Rows& rows, double seen, const Triple<A>& sums, double* mean,
                        double* m2) {
  const double count = static_cast<double>(rows.count), share = count / (seen + count);
  for (int64_t c = 0; c < rows.width; c++) {
    const Moments block = from_sums(count, sums.a[c], sums.b[c], sums.c[c]);
    const double delta = block.mean - mean[c], shift = delta * share;
    m2[c] += block.m2 + delta * shift * seen;
    mean[c] = shifted(mean[c], shift, block.mean);
  }
}

// The moments of all: the panels' merged, then the columns of each channel, then the last row.
// They come to stand in the first columns of the first panel; gives their count.
template <class T>
inline double merge_all(const T* x, const Table& table, Records& records) {
  double *mean = records.first(0), *m2 = records.second(0);
  double seen = static_cast<double>(table.part(0).count);
  for (int64_t p = 1; p < table.panels; p++) {
    const double count = static_cast<double>(table.part(p).count);
    merge_columns(table.width, seen, count, records.first(p), records.second(p), mean, m2);
    seen += count;
  }
  const int64_t channels = table.channels;
  for (int64_t k = 1; k < table.repeat && seen > 0; k++)
    merge_columns(channels, static_cast<double>(k) * seen, seen, mean + k * channels,
                  m2 + k * channels, mean, m2);
  double all = static_cast<double>(table.repeat) * seen;
  const T* last = x + table.rows * table.width;
  for (int64_t from = 0; from < table.rest; from += channels, all++)
    for (int64_t c = 0; c < channels; c++) {
      Moments whole{all, mean[c], m2[c]};
      whole.merge({1, Lanes<T>::load(last + from + c, Part{1})[0], 0});
      mean[c] = whole.mean, m2[c] = whole.m2;
    }
  return all;
}

template <class T>
void forward(const Forward& job, ForwardRows<typename Lanes<T>::Acc> forward_rows) {
  using A = typename Lanes<T>::Acc;
  const T* x = static_cast<const T*>(job.x);
  const Table table(job.layout, kWidth<A>);
  const int64_t size = job.layout.size();
  if (job.training) {
    Records records(table, true);
    parallel(job.threads, size, table.panels, [&](int64_t first, int64_t last) {
      Triple<A> sums(table.width);
      for (int64_t p = first; p < last; p++) {
        double seen = 0;
        blocks(table.part(p), [&](const Rows& rows) {
          find_pivots(x, rows, sums.a);
          sum_deviations(x, rows, sums);
          merge_block(rows, seen, sums, records.first(p), records.second(p));
          seen += static_cast<double>(rows.count);
        });
      }
    });
    const double count = merge_all(x, table, records);
    for (int64_t c = 0; c < table.channels; c++) {
      job.mean[c] = records.first(0)[c];
      job.variance[c] = records.second(0)[c] / count;
    }
  }
  Affines<A> affines(table.width);
  for (int64_t c = 0; c < table.channels; c++) affines.set(c, finish_affine<A>(job, c));
  affines.repeat(table.channels, table.width);
  parallel(job.threads, size, table.panels, [&](int64_t first, int64_t last) {
    for (int64_t p = last - 1; p >= first; p--) {
      forward_rows(job, table.end(p), affines);
      forward_rows(job, table.part(p), affines);
    }
    end_stream();
  });
}

template <class T>
void backward(const Backward& job, BackwardRows<typename Lanes<T>::Acc> of_rows) {
  using A = typename Lanes<T>::Acc;
  const Table table(job.layout, kWidth<A>);
  const int64_t channels = table.channels, size = job.layout.size();
  const bool sums_wanted = job.dweight != nullptr;
  Affines<A> affines(table.width), gradients(table.width);
  for (int64_t c = 0; c < channels; c++)
    affines.set(c, Affine<A>(job.mean[c], job.inverse[c], job.weight[c], job.bias[c]));
  affines.repeat(channels, table.width);

  Records records(table, sums_wanted);
  if (sums_wanted)
    parallel(job.threads, size, table.panels, [&](int64_t first, int64_t last) {
      Triple<A> sums(table.width);
      for (int64_t p = first; p < last; p++) {
        auto add = [&](const Rows& rows) {
          of_rows.sum(job, rows, affines, sums);
          for (int64_t c = 0; c < rows.width; c++) {
            records.first(p)[c] += sums.b[c];
            records.second(p)[c] += sums.c[c];
          }
        };
        blocks(table.part(p), add);
        blocks(table.end(p), add);
      }
    });
  std::vector<PairOfSums> wholes(channels);
  for (int64_t p = 0; sums_wanted && p < table.panels; p++)
    for (int64_t from = 0; from < table.width; from += channels)
      for (int64_t c = 0; c < channels; c++) {
        wholes[c].dz += records.first(p)[from + c];
        wholes[c].dzx += records.second(p)[from + c];
      }
  for (int64_t c = 0; c < channels; c++) gradients.set(c, finish_gradient<A>(job, c, wholes[c]));
  if (!job.dx) return;
  gradients.repeat(channels, table.width);
  parallel(job.threads, size, table.panels, [&](int64_t first, int64_t last) {
    for (int64_t p = last - 1; p >= first; p--) {
      of_rows.write(job, table.end(p), affines, gradients);
      of_rows.write(job, table.part(p), affines, gradients);
    }
    end_stream();
  });
}

}  // namespace channels_last
}  // namespace LIVELLA_ISA
}  // namespace livella
