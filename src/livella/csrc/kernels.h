// What the kernels offer: one table of functions for each instruction set and type. Nothing here knows torch.
#pragma once

#include <cstdint>

namespace livella {

enum class Type { f32, f64, bf16, f16 };
enum class Activation { none, relu, relu6, leaky_relu, silu, hardswish };

// How memory is laid out: x[n][c][s] where channels come first, x[n][s][c] where they come last.
struct Layout {
  int64_t samples, channels, positions;
  bool channels_last;

  int64_t count() const { return samples * positions; }  // of values in a channel
  int64_t size() const { return count() * channels; }
};

// Runs body(context, begin, end) over parts of [0, size), on several threads where it can.
struct Threads {
  void (*run)(int64_t size, void (*body)(void*, int64_t, int64_t), void* context);
  int64_t count;
};

// What batch renormalization makes of a channel (Ioffe 2017, Algorithm 1): x̂·r + d in place of x̂, by
// which the moments of the batch come to those of the running averages, as far as the limits let them.
struct Correction {
  double r_max, d_max;
  const double* mean;      // the running ones, as they were before this batch
  const double* variance;
  double* r;  // written
  double* d;
};

// y = act((x − μ)·σ⁻¹·γ + β + r). Per-channel arrays are double, whatever the type of x.
struct Forward {
  Layout layout;
  Activation activation;
  const void* x;
  const void* residual;  // may be null
  void* y;
  const double* weight;  // γ
  const double* bias;    // β
  double* mean;          // μ: written in training, read in evaluation
  double* variance;      // σ², biased: as the mean
  double* inverse;       // σ⁻¹: written; in evaluation it may be the variance
  const Correction* correction;  // may be null
  double eps;
  bool training;
  bool stream;  // write past the caches
  Threads threads;
};

// The gradients of it. `saved` is what tells the activation's derivative beside x: y after a residual
// for the activations whose sign survives in y, the residual for the others, else null.
struct Backward {
  Layout layout;
  Activation activation;
  const void* x;
  const void* dy;
  const void* saved;
  void* dx;         // null: only the sums are wanted
  void* dresidual;  // null: not wanted, or dy itself
  const double* weight;
  const double* bias;
  const double* mean;
  const double* inverse;  // σ⁻¹
  double* dweight;
  double* dbias;
  bool from_batch;  // μ and σ depend on x
  bool stream;
  Threads threads;
};

// What the samples of a batch, each by itself, contribute to the moments of each channel. A sample
// has k values, which from a centre r sum up to s = Σ(x − r) and q = Σ(x − r)².
struct Contributions {
  Layout layout;
  const void* x;
  const double* centre;
  double* out;  // [12][channels]: Σk, mean, M₂; the means of k, s, q over the samples; the products
                // of their deviations from these: kk, ks, kq, ss, sq, qq
  Threads threads;
};

// Bytes written without reading them first: what memory allows, to measure the others against.
struct Stream {
  const void *a, *b;  // b may be null: a copy
  void* out;
  int64_t size;
  Threads threads;
};

struct Kernels {
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
  void (*contributions)(const Contributions&);
  void (*stream)(const Stream&);
};

struct InstructionSet {
  const char* name;
  const Kernels* kernels[4];  // by Type
};

// The one for this processor, or that which LIVELLA_ISA names; null where it cannot run here.
const InstructionSet* choose_instruction_set(const char* wanted);

}  // namespace livella
