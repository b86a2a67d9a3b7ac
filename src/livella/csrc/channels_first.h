// x[n][c][s]: a channel is a row in every sample.
//
// A thread takes a strip of channels, reads it from memory once, and finds it in its cache for the
// second pass. The sums of a channel are taken in units of some thousand values, each with its own
// pivot, and the units merged in their order: what comes out depends on the shape alone.
//
// The passes are compiled once for a type. What they do to a stretch of memory is a function of each
// fusion's own, which they are given.
#pragma once

#include "gradient.h"

namespace livella {
namespace LIVELLA_ISA {
namespace channels_first {

constexpr int64_t kUnit = 4096;       // values in a unit
constexpr int kStrip = 16;            // channels in a strip, at most
constexpr int64_t kStripBytes = 4096; // of one sample in a strip, at least, where channels are short

constexpr int64_t kCacheBytes = 896 << 10;  // that two strips may share

// The units of a channel: whole rows of some samples, or a piece of one sample's row.
struct Units {
  int64_t samples, positions, channels;
  int64_t rows, piece, pieces, count;

  explicit Units(const Layout& layout)
      : samples(layout.samples), positions(layout.positions), channels(layout.channels) {
    rows = positions >= kUnit ? 1 : ceil_div(kUnit, positions);
    pieces = ceil_div(positions, 2 * kUnit);
    piece = ceil_div(positions, pieces);
    count = ceil_div(samples, rows) * pieces;
  }
  int64_t first_row(int64_t unit) const { return unit / pieces * rows; }
  int64_t last_row(int64_t unit) const {
    const int64_t end = first_row(unit) + rows;
    return end < samples ? end : samples;
  }
  int64_t offset(int64_t unit) const { return unit % pieces * piece; }
  int64_t length(int64_t unit) const {
    const int64_t left = positions - offset(unit);
    return left < piece ? left : piece;
  }
  int64_t size(int64_t unit) const { return (last_row(unit) - first_row(unit)) * length(unit); }
  // Where the row is read that follows the one at `p`: in the next sample, or in the next strip.
  template <class T>
  const T* next(const T* p, int64_t row, int64_t width) const {
    if (row + 1 < samples) return p + channels * positions;
    return p - row * channels * positions + width * positions;
  }
  int64_t at(int64_t row, int64_t channel, int64_t unit) const {
    return (row * channels + channel) * positions + offset(unit);
  }
};

inline int64_t strip_width(const Layout& layout, int64_t element, const Threads& threads) {
  int64_t width = ceil_div(kStripBytes, layout.positions * element);
  if (width > kStrip) width = kStrip;
  const int64_t shared = layout.channels / (2 * threads.count);  // enough strips for all threads
  if (width > shared) width = shared;
  return width < 1 ? 1 : width;
}

// Two sums in two lanes each, of deviations or gradients.
template <class A>
struct Sums {
  Vec<A> first[2] = {}, second[2] = {};
};

template <class T>
inline typename Lanes<T>::Acc pivot(const T* x, int64_t size) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  const int few = static_cast<int>(size < kWidth<A> ? size : kWidth<A>);
  const auto mean = [&](int64_t from) { return sum<A>(L::load(x + from, Part{few})) / A(few); };
  return middle_of(mean(0), mean((size - few) / 2), mean(size - few));
}

template <class T>
inline void unit_moments(const T* x, const Units& units, int64_t unit, int64_t c0, int64_t c1,
                         Moments* out) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;
  Sums<A> sums[kStrip];
  A pivots[kStrip];
  const int64_t length = units.length(unit);
  for (int64_t c = c0; c < c1; c++)
    pivots[c - c0] = pivot(x + units.at(units.first_row(unit), c, unit), length);
  for (int64_t row = units.first_row(unit); row < units.last_row(unit); row++)
    for (int64_t c = c0; c < c1; c++) {
      const T* p = x + units.at(row, c, unit);
      const T* next = units.next(p, row, c1 - c0);
      const V k = splat(pivots[c - c0]);
      Sums<A> s = sums[c - c0];
      each<T>(length, [&](int lane, int64_t i, auto extent) {
        fetch(next + i);
        const V deviation = L::load(p + i, extent, k) - k;
        s.first[lane] += deviation;
        s.second[lane] += deviation * deviation;
      });
      sums[c - c0] = s;
    }
  for (int64_t c = c0; c < c1; c++) {
    const Sums<A>& s = sums[c - c0];
    out[(c - c0) * units.count] =
        from_sums(static_cast<double>(units.size(unit)), pivots[c - c0],
                  sum<A>(s.first[0] + s.first[1]), sum<A>(s.second[0] + s.second[1]));
  }
}

// How far ahead the next strip lies, which the second pass over one fetches while it writes; zero for
// the rows that would not find room in the cache beside this strip.
struct Ahead {
  int64_t elements, rows;

  Ahead(const Units& units, int64_t width, int64_t bytes, bool more)
      : elements(more ? width * units.positions : 0),
        rows((kCacheBytes - width * units.positions * units.samples * bytes) /
             (width * units.positions * bytes)) {}
  int64_t operator()(int64_t row) const { return row < rows ? elements : 0; }
};

// Of `count` neighbouring channels in one sample, `length` values from the element `at` onwards.
template <class A>
using ForwardChannels = void (*)(const Forward&, int64_t at, int64_t length, int64_t count,
                                 const Affine<A>* affines, int64_t ahead);

template <class T, Activation fixed, bool residual>
inline void forward_row(const Forward& job, int64_t at, int64_t length,
                        const Affine<typename Lanes<T>::Acc>& affine, int64_t ahead) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;
  const T* x = static_cast<const T*>(job.x) + at;
  const T* r = static_cast<const T*>(job.residual) + (residual ? at : 0);
  const V mean = splat(affine.mean), scale = splat(affine.scale), shift = splat(affine.shift);
  const Activation activation = job.activation;
  map(static_cast<T*>(job.y) + at, length, job.stream, [=](int64_t i, auto extent) {
    if (ahead) fetch(x + i + ahead);
    V z = (L::load(x + i, extent) - mean) * scale + shift;
    if constexpr (residual) z += L::load(r + i, extent);
    return activate<fixed, A>(activation, z);
  });
}

template <class T, Activation fixed, bool residual>
void forward_channels(const Forward& job, int64_t at, int64_t length, int64_t count,
                      const Affine<typename Lanes<T>::Acc>* affines, int64_t ahead) {
  for (int64_t c = 0; c < count; c++, at += job.layout.positions)
    forward_row<T, fixed, residual>(job, at, length, affines[c], ahead);
}

template <class A>
inline void unit_forward(const Forward& job, ForwardChannels<A> forward_channels,
                         const Units& units, int64_t unit, int64_t c0, int64_t c1,
                         const Affine<A>* affines, const Ahead& ahead) {
  for (int64_t row = units.last_row(unit) - 1; row >= units.first_row(unit); row--)
    forward_channels(job, units.at(row, c0, unit), units.length(unit), c1 - c0, affines,
                     ahead(row));
}

inline bool few_strips(int64_t strips, const Threads& threads) {
  return threads.count > 1 && strips < 2 * threads.count;
}

// In evaluation the rows are taken as they lie in memory, whatever their channel.
template <class A>
void evaluate(const Forward& job, ForwardChannels<A> forward_channels) {
  const Layout& layout = job.layout;
  const Units units(layout);
  std::vector<Affine<A>> affines(layout.channels);
  for (int64_t c = 0; c < layout.channels; c++)
    affines[c] = finish_affine<A>(job, c);
  const int64_t cells = layout.samples * layout.channels * units.pieces;
  parallel(job.threads, layout.size(), cells, [&](int64_t first, int64_t last) {
    for (int64_t cell = first, count; cell < last; cell += count) {
      const int64_t row = cell / units.pieces, c = row % layout.channels;
      count = units.pieces > 1 ? 1 : std::min(layout.channels - c, last - cell);
      forward_channels(job, row * layout.positions + units.offset(cell), units.length(cell), count,
                       &affines[c], 0);
    }
    end_stream();
  });
}

template <class T>
void forward(const Forward& job, ForwardChannels<typename Lanes<T>::Acc> forward_channels) {
  using A = typename Lanes<T>::Acc;
  if (!job.training) return evaluate<A>(job, forward_channels);
  const Units units(job.layout);
  const int64_t channels = job.layout.channels, size = job.layout.size();
  const int64_t width = strip_width(job.layout, sizeof(T), job.threads);
  const int64_t strips = ceil_div(channels, width);
  std::unique_ptr<Moments[]> parts(new Moments[channels * units.count]);

  auto measure = [&](int64_t unit, int64_t c0, int64_t c1) {
    unit_moments(static_cast<const T*>(job.x), units, unit, c0, c1,
                 parts.get() + c0 * units.count + unit);
  };
  auto finish = [&](int64_t c) {
    Moments whole;
    for (int64_t unit = 0; unit < units.count; unit++) whole.merge(parts[c * units.count + unit]);
    job.mean[c] = whole.mean;
    job.variance[c] = whole.m2 / whole.count;
    return finish_affine<A>(job, c);
  };
  auto end = [&](int64_t strip) {
    const int64_t c1 = (strip + 1) * width;
    return c1 < channels ? c1 : channels;
  };

  if (!few_strips(strips, job.threads)) {
    parallel(job.threads, size, strips, [&](int64_t first, int64_t last) {
      Affine<A> affines[kStrip];
      for (int64_t strip = first; strip < last; strip++) {
        const int64_t c0 = strip * width, c1 = end(strip);
        for (int64_t unit = 0; unit < units.count; unit++) measure(unit, c0, c1);
        for (int64_t c = c0; c < c1; c++) affines[c - c0] = finish(c);
        const Ahead ahead(units, width, sizeof(T), strip + 1 < last);
        for (int64_t unit = units.count - 1; unit >= 0; unit--)
          unit_forward<A>(job, forward_channels, units, unit, c0, c1, affines, ahead);
      }
      end_stream();
    });
    return;
  }
  const int64_t cells = channels * units.count;
  parallel(job.threads, size, cells, [&](int64_t first, int64_t last) {
    for (int64_t cell = first; cell < last; cell++)
      measure(cell % units.count, cell / units.count, cell / units.count + 1);
  });
  std::unique_ptr<Affine<A>[]> affines(new Affine<A>[channels]);
  for (int64_t c = 0; c < channels; c++) affines[c] = finish(c);
  parallel(job.threads, size, cells, [&](int64_t first, int64_t last) {
    for (int64_t cell = last - 1; cell >= first; cell--) {
      const int64_t c = cell / units.count;
      unit_forward<A>(job, forward_channels, units, cell % units.count, c, c + 1, &affines[c],
                      Ahead(units, 1, sizeof(T), false));
    }
    end_stream();
  });
}

template <class A>
struct BackwardUnit {
  void (*sum)(const Backward&, const Units&, int64_t unit, int64_t c0, int64_t c1,
              const Affine<A>* affines, PairOfSums* out);
  void (*write)(const Backward&, const Units&, int64_t unit, int64_t c0, int64_t c1,
                const Affine<A>* affines, const Gradient<A>* gradients);
};

template <class T, class Derivative>
void sum_unit(const Backward& job, const Units& units, int64_t unit, int64_t c0, int64_t c1,
              const Affine<typename Lanes<T>::Acc>* affines, PairOfSums* out) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;
  Sums<A> sums[kStrip];
  for (int64_t row = units.first_row(unit); row < units.last_row(unit); row++)
    for (int64_t c = c0; c < c1; c++) {
      const int64_t at = units.at(row, c, unit);
      const Derivative derivative(job, at, affines[c - c0]);
      const int64_t ahead = units.next(derivative.x, row, c1 - c0) - derivative.x;
      Sums<A> s = sums[c - c0];
      each<T>(units.length(unit), [&](int lane, int64_t i, auto extent) {
        derivative.fetch_ahead(i + ahead);
        const V centred = derivative.centred(i, extent), dz = derivative.dz(i, centred, extent);
        s.first[lane] += dz;
        s.second[lane] += dz * centred;
      });
      sums[c - c0] = s;
    }
  for (int64_t c = c0; c < c1; c++) {
    const Sums<A>& s = sums[c - c0];
    out[(c - c0) * units.count] = {sum<A>(s.first[0] + s.first[1]),
                                   sum<A>(s.second[0] + s.second[1])};
  }
}

template <class T, class Derivative>
void write_unit(const Backward& job, const Units& units, int64_t unit, int64_t c0, int64_t c1,
                const Affine<typename Lanes<T>::Acc>* affines,
                const Gradient<typename Lanes<T>::Acc>* gradients) {
  using A = typename Lanes<T>::Acc;
  using V = Vec<A>;
  for (int64_t row = units.last_row(unit) - 1; row >= units.first_row(unit); row--)
    for (int64_t c = c0; c < c1; c++) {
      const int64_t at = units.at(row, c, unit);
      const Derivative derivative(job, at, affines[c - c0]);
      const Gradient<A>& gradient = gradients[c - c0];
      const V grad = splat(gradient.grad), slope = splat(gradient.slope),
              shift = splat(gradient.shift);
      const bool from_batch = job.from_batch;
      write_gradients<T, Derivative, false>(
          job, at, units.length(unit), [=](int64_t i, auto extent) LIVELLA_INLINED {
            const V centred = derivative.centred(i, extent), dz = derivative.dz(i, centred, extent);
            if (!from_batch) return Values<T, 2>{{dz * grad, dz}};  // x may be infinite
            return Values<T, 2>{{dz * grad + (centred * slope + shift), dz}};
          });
    }
}

template <class T>
void backward(const Backward& job, BackwardUnit<typename Lanes<T>::Acc> of_unit) {
  using A = typename Lanes<T>::Acc;
  const Units units(job.layout);
  const int64_t channels = job.layout.channels, size = job.layout.size();
  const int64_t width = strip_width(job.layout, sizeof(T), job.threads);
  const int64_t strips = ceil_div(channels, width);
  const bool sums = job.dweight != nullptr;
  std::unique_ptr<PairOfSums[]> parts(new PairOfSums[sums ? channels * units.count : 0]);

  auto affine = [&](int64_t c) {
    return Affine<A>(job.mean[c], job.inverse[c], job.weight[c], job.bias[c]);
  };
  auto measure = [&](int64_t unit, int64_t c0, int64_t c1, const Affine<A>* affines) {
    of_unit.sum(job, units, unit, c0, c1, affines, parts.get() + c0 * units.count + unit);
  };
  auto finish = [&](int64_t c) {
    PairOfSums whole{0, 0};
    for (int64_t unit = 0; sums && unit < units.count; unit++) {
      whole.dz += parts[c * units.count + unit].dz;
      whole.dzx += parts[c * units.count + unit].dzx;
    }
    return finish_gradient<A>(job, c, whole);
  };
  auto end = [&](int64_t strip) {
    const int64_t c1 = (strip + 1) * width;
    return c1 < channels ? c1 : channels;
  };

  if (!few_strips(strips, job.threads)) {
    parallel(job.threads, size, strips, [&](int64_t first, int64_t last) {
      Affine<A> affines[kStrip];
      Gradient<A> gradients[kStrip];
      for (int64_t strip = first; strip < last; strip++) {
        const int64_t c0 = strip * width, c1 = end(strip);
        for (int64_t c = c0; c < c1; c++) affines[c - c0] = affine(c);
        if (sums)
          for (int64_t unit = 0; unit < units.count; unit++) measure(unit, c0, c1, affines);
        for (int64_t c = c0; c < c1; c++) gradients[c - c0] = finish(c);
        if (job.dx)
          for (int64_t unit = units.count - 1; unit >= 0; unit--)
            of_unit.write(job, units, unit, c0, c1, affines, gradients);
      }
      end_stream();
    });
    return;
  }
  const int64_t cells = channels * units.count;
  std::unique_ptr<Affine<A>[]> affines(new Affine<A>[channels]);
  std::unique_ptr<Gradient<A>[]> gradients(new Gradient<A>[channels]);
  for (int64_t c = 0; c < channels; c++) affines[c] = affine(c);
  if (sums)
    parallel(job.threads, size, cells, [&](int64_t first, int64_t last) {
      for (int64_t cell = first; cell < last; cell++) {
        const int64_t c = cell / units.count;
        measure(cell % units.count, c, c + 1, &affines[c]);
      }
    });
  for (int64_t c = 0; c < channels; c++) gradients[c] = finish(c);
  if (job.dx)
    parallel(job.threads, size, cells, [&](int64_t first, int64_t last) {
      for (int64_t cell = last - 1; cell >= first; cell--) {
        const int64_t c = cell / units.count;
        of_unit.write(job, units, cell % units.count, c, c + 1, &affines[c], &gradients[c]);
      }
      end_stream();
    });
}

}  // namespace channels_first
}  // namespace LIVELLA_ISA
}  // namespace livella
