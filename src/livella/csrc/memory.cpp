#include "memory.h"

#include <limits>

#define LIVELLA_ISA numbers
#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace livella {
namespace {

template <class T>
struct Number {
  static double read(T number) { return number; }
  static T write(double number) { return static_cast<T>(number); }
};

template <class T>
struct NarrowNumber {
  using L = numbers::Lanes<T>;
  static double read(T number) { return L::load(&number, numbers::Part{1})[0]; }
  static T write(double number) {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    const float wide = number == number ? static_cast<float>(number) : nan;
    T out;
    L::store(&out, numbers::splat(wide), numbers::Part{1});
    return out;
  }
};
template <>
struct Number<numbers::bf16> : NarrowNumber<numbers::bf16> {};
template <>
struct Number<numbers::f16> : NarrowNumber<numbers::f16> {};

template <class F>
void with_type(Type type, F&& f) {
  switch (type) {
    case Type::f32:
      return f(float{});
    case Type::f64:
      return f(double{});
    case Type::bf16:
      return f(numbers::bf16{});
    case Type::f16:
      return f(numbers::f16{});
  }
}

}  // namespace

void read_numbers(const Numbers& from, double* to) {
  with_type(from.type, [&](auto zero) {
    using T = decltype(zero);
    const T* numbers = static_cast<const T*>(from.memory);
    for (int64_t i = 0; i < from.size; i++) to[i] = Number<T>::read(numbers[i * from.stride]);
  });
}

void write_numbers(const double* from, const Numbers& to) {
  with_type(to.type, [&](auto zero) {
    using T = decltype(zero);
    T* numbers = static_cast<T*>(to.memory);
    for (int64_t i = 0; i < to.size; i++) numbers[i * to.stride] = Number<T>::write(from[i]);
  });
}

void blend_numbers(const Numbers& to, const double* from, double factor, double share) {
  with_type(to.type, [&](auto zero) {
    using T = decltype(zero);
    T* running = static_cast<T*>(to.memory);
    for (int64_t i = 0; i < to.size; i++) {
      T& number = running[i * to.stride];
      const double old = Number<T>::read(number);
      number = Number<T>::write((1 - share) * old + share * (factor * from[i]));
    }
  });
}

void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  if (bytes < static_cast<int64_t>(2 * kHuge)) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (start + kHuge - 1) / kHuge * kHuge, last = (start + bytes) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // best effort
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace livella
