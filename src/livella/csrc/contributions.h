// What the samples of a batch contribute to the moments of a channel, and how these scatter.
//
// First the moments of every sample, each channel by itself; then, from a centre r near the mean,
// d = mean − r and q = m2 + k·d², their means over the samples and the products of their deviations.
#pragma once

#include <memory>

#include "channels_first.h"

namespace livella {
namespace LIVELLA_ISA {
namespace contributions {

constexpr int64_t kBlock = 64;  // channels taken together

// Values behind one pivot: few enough a lane that float32 keeps its digits on narrow vectors too.
template <class A>
constexpr int64_t kPiece = 256 * kWidth<A>;

template <class T>
inline Moments moments_of(const T* x, int64_t size) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  using V = Vec<A>;
  const A near = channels_first::pivot(x, size);
  const V k = splat(near);
  channels_first::Sums<A> sums;
  each<T>(size, [&](int lane, int64_t i, auto extent) {
    const V deviation = L::load(x + i, extent, k) - k;
    sums.first[lane] += deviation;
    sums.second[lane] += deviation * deviation;
  });
  return from_sums(static_cast<double>(size), near, sum<A>(sums.first[0] + sums.first[1]),
                   sum<A>(sums.second[0] + sums.second[1]));
}

template <class T>
inline void widen(const T* x, int64_t size, double* out) {
  using L = Lanes<T>;
  using A = typename L::Acc;
  constexpr int width = kWidth<A>;
  A lanes[width];
  for (int64_t i = 0; i < size; i += width) {
    const int here = static_cast<int>(std::min<int64_t>(width, size - i));
    const Vec<A> v = here == width ? L::load(x + i, Whole<A>{}) : L::load(x + i, Part{here});
    std::memcpy(lanes, &v, sizeof v);
    for (int j = 0; j < here; j++) out[i + j] = lanes[j];
  }
}

// Mean and m2 of each sample, [samples][channels].
struct Samples {
  std::unique_ptr<double[]> memory;
  double *mean, *m2;

  explicit Samples(int64_t size)
      : memory(new double[2 * size]), mean(memory.get()), m2(memory.get() + size) {}
};

// Channels first: a row of memory, in pieces with a pivot each.
template <class T>
inline void measure_rows(const Contributions& job, Samples& samples) {
  constexpr int64_t piece = kPiece<typename Lanes<T>::Acc>;
  const int64_t rows = job.layout.samples * job.layout.channels, length = job.layout.positions;
  parallel(job.threads, rows * length, rows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const T* x = static_cast<const T*>(job.x) + row * length;
      Moments whole;
      for (int64_t at = 0; at < length; at += piece)
        whole.merge(moments_of(x + at, std::min(piece, length - at)));
      samples.mean[row] = whole.mean;
      samples.m2[row] = whole.m2;
    }
  });
}

// Channels last: sums of deviations from the centre, in double.
template <class T>
inline void measure_columns(const Contributions& job, Samples& samples) {
  const int64_t channels = job.layout.channels, positions = job.layout.positions;
  parallel(job.threads, job.layout.size(), job.layout.samples, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++) {
      for (int64_t from = 0; from < channels; from += kBlock) {
        const int64_t width = std::min(kBlock, channels - from);
        const T* x = static_cast<const T*>(job.x) + n * positions * channels + from;
        double values[kBlock], sums[kBlock] = {}, squares[kBlock] = {};
        for (int64_t s = 0; s < positions; s++) {
          widen(x + s * channels, width, values);
          for (int64_t c = 0; c < width; c++) {
            const double d = values[c] - job.centre[from + c];
            sums[c] += d;
            squares[c] += d * d;
          }
        }
        for (int64_t c = 0; c < width; c++) {
          const Moments found = from_sums(static_cast<double>(positions), job.centre[from + c],
                                          sums[c], squares[c]);
          samples.mean[n * channels + from + c] = found.mean;
          samples.m2[n * channels + from + c] = found.m2;
        }
      }
    }
  });
}

// The sums for a block of channels, from `read(n, mean, m2)`, which gives those of sample n.
template <class Read>
inline void gather(const Contributions& job, int64_t from, int64_t width, Read&& read) {
  const int64_t samples = job.layout.samples, channels = job.layout.channels;
  const double k = static_cast<double>(job.layout.positions), n_inverse = 1.0 / samples;
  const double* centre = job.centre + from;
  double mean[kBlock], m2[kBlock];
  double d_mean[kBlock] = {}, q_mean[kBlock] = {}, inside[kBlock] = {};
  for (int64_t n = 0; n < samples; n++) {
    read(n, mean, m2);
    for (int64_t c = 0; c < width; c++) {
      const double d = mean[c] - centre[c];
      d_mean[c] += d;
      q_mean[c] += m2[c] + k * d * d;
      inside[c] += m2[c];
    }
  }
  for (int64_t c = 0; c < width; c++) {
    d_mean[c] *= n_inverse;
    q_mean[c] *= n_inverse;
  }
  double dd[kBlock] = {}, dq[kBlock] = {}, qq[kBlock] = {};
  for (int64_t n = 0; n < samples; n++) {
    read(n, mean, m2);
    for (int64_t c = 0; c < width; c++) {
      const double d = mean[c] - centre[c];
      const double off = d - d_mean[c], other = m2[c] + k * d * d - q_mean[c];
      dd[c] += off * off;
      dq[c] += off * other;
      qq[c] += other * other;
    }
  }
  for (int64_t c = 0; c < width; c++) {
    const double rows[] = {k * samples, centre[c] + d_mean[c], inside[c] + k * dd[c],
                           k,           k * d_mean[c],         q_mean[c],
                           0,           0,                     0,
                           k * k * dd[c], k * dq[c],           qq[c]};
    double* out = job.out + from + c;
    for (const double row : rows) {
      *out = row;
      out += channels;
    }
  }
}

template <class T>
inline void contributions(const Contributions& job) {
  const int64_t channels = job.layout.channels;
  const bool single = job.layout.positions == 1;
  Samples samples(single ? 0 : job.layout.samples * channels);
  if (!single && job.layout.channels_last) measure_columns<T>(job, samples);
  if (!single && !job.layout.channels_last) measure_rows<T>(job, samples);
  const int64_t blocks = ceil_div(channels, kBlock), sums = job.layout.samples * channels;
  parallel(job.threads, sums, blocks, [&](int64_t first, int64_t last) {
    for (int64_t from = first * kBlock; from < std::min(last * kBlock, channels); from += kBlock) {
      const int64_t width = std::min(kBlock, channels - from);
      gather(job, from, width, [&](int64_t n, double* mean, double* m2) {
        const int64_t at = n * channels + from;
        if (single) {
          widen(static_cast<const T*>(job.x) + at, width, mean);
          std::memset(m2, 0, sizeof(double) * width);
        } else {
          std::memcpy(mean, samples.mean + at, sizeof(double) * width);
          std::memcpy(m2, samples.m2 + at, sizeof(double) * width);
        }
      });
    }
  });
}

}  // namespace contributions
}  // namespace LIVELLA_ISA
}  // namespace livella
