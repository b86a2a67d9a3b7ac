// A batch in parts of some samples, each a batch of its own: ghost batches.
//
// Samples lie outermost in both layouts, so a part is a stretch of memory.
#pragma once

#include <algorithm>
#include <optional>

#include "kernels.h"

namespace livella {

constexpr int64_t kWorthSharing = 1 << 14;  // elements in all, below which one thread is faster

struct Parts {
  Layout whole;
  int64_t size, count;  // samples of a part, but for the last; how many parts

  // As reference.ghost_batches has it: one value has no variance, so a last part of one joins the
  // part before.
  Parts(const Layout& layout, std::optional<int64_t> wanted)
      : whole(layout), size(std::min(wanted.value_or(layout.samples), layout.samples)) {
    const int64_t rest = layout.samples % size;
    count = layout.samples / size + (rest * layout.positions > 1);
  }
  Layout layout(int64_t part) const {
    Layout of = whole;
    of.samples = part + 1 < count ? size : whole.samples - part * size;
    return of;
  }
  // The first element of a part, given that of all; null stays null.
  template <class Byte>
  Byte* start(Byte* memory, int64_t part, int64_t element) const {
    return memory ? memory + part * size * whole.channels * whole.positions * element : nullptr;
  }

  // Calls run(part, threads) for every part, with the threads that it has for itself: parts side by
  // side on one thread each, where that leaves none idle for long, or one after the other on all.
  template <class F>
  void each(const Threads& threads, F&& run) const {
    const bool balanced = count % threads.count == 0 || count >= 4 * threads.count;
    if (!balanced || threads.count < 2 || whole.size() < kWorthSharing) {
      for (int64_t part = 0; part < count; part++) run(part, threads);
      return;
    }
    const auto alone = [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; part++) run(part, Threads{threads.run, 1});
    };
    using Alone = decltype(alone);
    const auto call = [](void* context, int64_t begin, int64_t end) {
      (*static_cast<Alone*>(context))(begin, end);
    };
    threads.run(count, call, const_cast<std::remove_const_t<Alone>*>(&alone));
  }
};

}  // namespace livella
