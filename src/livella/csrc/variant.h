// Builds the table of one instruction set: included once by each variant's file.
#pragma once

#include "channels_first.h"
#include "channels_last.h"
#include "contributions.h"
#include "short_rows.h"
#include "streams.h"

namespace livella {
namespace LIVELLA_ISA {

// The marker by which `with_type` hands a type to a lambda.
template <class T>
struct Element {
  using type = T;
};

template <class F>
inline void with_type(Type type, F&& f) {
  switch (type) {
    case Type::f32:
      return f(Element<float>{});
    case Type::f64:
      return f(Element<double>{});
    case Type::bf16:
      return f(Element<bf16>{});
    case Type::f16:
      return f(Element<f16>{});
  }
}

// none, and relu with relu6, have loops of their own; the others ask inside of theirs, where their
// arithmetic hides it.
template <Activation fixed>
struct Fixed {
  static constexpr Activation value = fixed;
};

template <class F>
inline void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::none:
      return f(Fixed<Activation::none>{});
    case Activation::relu:
    case Activation::relu6:
      return f(Fixed<Activation::relu>{});
    default:
      return f(Fixed<Activation::silu>{});
  }
}

// Rows shorter than this are taken together, in channels of a size that still fits a cache.
constexpr int64_t kShortRow = 256;
constexpr int64_t kManyValues = 1 << 16;

inline bool are_short(const Layout& layout) {
  return layout.positions < kShortRow && layout.count() <= kManyValues;
}

template <class T, Activation fixed, bool residual>
inline void forward_by_layout(const Forward& job) {
  if (job.layout.channels_last) return channels_last::forward<T, fixed, residual>(job);
  if (are_short(job.layout)) return short_rows::forward<T, fixed, residual>(job);
  return channels_first::forward<T, fixed, residual>(job);
}

inline void forward(const Forward& job) {
  with_type(job.type, [&](auto element) {
    using T = typename decltype(element)::type;
    with_activation(job.activation, [&](auto fixed) {
      if (job.residual) return forward_by_layout<T, fixed.value, true>(job);
      return forward_by_layout<T, fixed.value, false>(job);
    });
  });
}

template <class T, Activation fixed, Source source>
inline void backward_from(const Backward& job) {
  using From = Derivative<T, fixed, source>;
  if (job.layout.channels_last) return channels_last::backward<T, From>(job);
  if (are_short(job.layout)) return short_rows::backward<T, From>(job);
  return channels_first::backward<T, From>(job);
}

inline void backward(const Backward& job) {
  with_type(job.type, [&](auto element) {
    using T = typename decltype(element)::type;
    with_activation(job.activation, [&](auto fixed) {
      constexpr Activation act = fixed.value;
      const Source source = source_of(job);
      if constexpr (act == Activation::none) {
        return backward_from<T, act, Source::none>(job);
      } else {
        if (source == Source::input) return backward_from<T, act, Source::input>(job);
        if (source == Source::output) return backward_from<T, act, Source::output>(job);
        if constexpr (act != Activation::relu)
          return backward_from<T, act, Source::residual>(job);
      }
    });
  });
}

inline void contribute(const Contributions& job) {
  with_type(job.type, [&](auto element) {
    contributions::contributions<typename decltype(element)::type>(job);
  });
}

}  // namespace LIVELLA_ISA

#define LIVELLA_NAME_(isa) #isa
#define LIVELLA_NAME(isa) LIVELLA_NAME_(isa)
#define LIVELLA_TABLE__(isa) isa##_kernels
#define LIVELLA_TABLE_(isa) LIVELLA_TABLE__(isa)

extern const Kernels LIVELLA_TABLE_(LIVELLA_ISA);
const Kernels LIVELLA_TABLE_(LIVELLA_ISA) = {LIVELLA_NAME(LIVELLA_ISA), LIVELLA_ISA::forward,
                                             LIVELLA_ISA::backward, LIVELLA_ISA::contribute,
                                             LIVELLA_ISA::stream};

}  // namespace livella
