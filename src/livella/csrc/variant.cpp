// The kernels of one element type on one instruction set: setup.py compiles this once for each pair,
// with LIVELLA_TYPE and LIVELLA_ISA naming it.
#include "channels_first.h"
#include "channels_last.h"
#include "contributions.h"
#include "short_rows.h"
#include "streams.h"

namespace livella {
namespace LIVELLA_ISA {

namespace {

using T = LIVELLA_TYPE;

using Acc = Lanes<T>::Acc;

// The loops of a fusion: over rows of many channels, and over those of one.
struct ForwardLoops {
  ForwardRows<Acc> rows;
  channels_first::ForwardChannels<Acc> channels;
};

struct BackwardLoops {
  BackwardRows<Acc> rows;
  channels_first::BackwardUnit<Acc> unit;
};

template <Activation fixed>
ForwardLoops forward_loops(bool residual) {
  using namespace channels_first;
  if (residual) return {forward_rows<T, fixed, true>, forward_channels<T, fixed, true>};
  return {forward_rows<T, fixed, false>, forward_channels<T, fixed, false>};
}

template <Activation fixed, Source source>
BackwardLoops backward_loops() {
  using From = Derivative<T, fixed, source>;
  return {{sum_rows<T, From>, write_rows<T, From>},
          {channels_first::sum_unit<T, From>, channels_first::write_unit<T, From>}};
}

// none, and relu with relu6, have loops of their own; the others ask inside of theirs, where their
// arithmetic hides it.
ForwardLoops loops_of(const Forward& job) {
  switch (job.activation) {
    case Activation::none:
      return forward_loops<Activation::none>(job.residual);
    case Activation::relu:
    case Activation::relu6:
      return forward_loops<Activation::relu>(job.residual);
    default:
      return forward_loops<Activation::silu>(job.residual);
  }
}

BackwardLoops loops_of(const Backward& job) {
  switch (job.activation) {
    case Activation::none:
      return backward_loops<Activation::none, Source::none>();
    case Activation::relu:
    case Activation::relu6:
      if (job.saved) return backward_loops<Activation::relu, Source::output>();
      return backward_loops<Activation::relu, Source::input>();
    default:
      if (!job.saved) return backward_loops<Activation::silu, Source::input>();
      return backward_loops<Activation::silu, Source::saved>();
  }
}

// Rows shorter than this are taken together, in channels of a size that still fits a cache.
constexpr int64_t kShortRow = 256;
constexpr int64_t kManyValues = 1 << 16;

bool are_short(const Layout& layout) {
  return layout.positions < kShortRow && layout.count() <= kManyValues;
}

void forward(const Forward& job) {
  const ForwardLoops loops = loops_of(job);
  if (job.layout.channels_last) return channels_last::forward<T>(job, loops.rows);
  if (are_short(job.layout)) return short_rows::forward<T>(job, loops.rows);
  return channels_first::forward<T>(job, loops.channels);
}

void backward(const Backward& job) {
  const BackwardLoops loops = loops_of(job);
  if (job.layout.channels_last) return channels_last::backward<T>(job, loops.rows);
  if (are_short(job.layout)) return short_rows::backward<T>(job, loops.rows);
  return channels_first::backward<T>(job, loops.unit);
}

}  // namespace
}  // namespace LIVELLA_ISA

#define LIVELLA_TABLE__(isa, type) isa##_##type
#define LIVELLA_TABLE_(isa, type) LIVELLA_TABLE__(isa, type)
#define LIVELLA_TABLE LIVELLA_TABLE_(LIVELLA_ISA, LIVELLA_TYPE)

extern const Kernels LIVELLA_TABLE;
const Kernels LIVELLA_TABLE = {LIVELLA_ISA::forward, LIVELLA_ISA::backward,
                               LIVELLA_ISA::contributions::contributions<LIVELLA_ISA::T>,
                               LIVELLA_ISA::stream<LIVELLA_ISA::T>};

}  // namespace livella
