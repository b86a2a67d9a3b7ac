// Per-channel numbers of any type as doubles, and large outputs on large pages.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace livella {

// Outputs of this size and more are written past the caches: no later reader would find them there.
constexpr int64_t kStreamBytes = 8 << 20;

// One number a channel, `stride` apart.
struct Numbers {
  void* memory;
  Type type;
  int64_t size, stride;
};

void read_numbers(const Numbers& from, double* to);
void write_numbers(const double* from, const Numbers& to);

// to = (1 − share)·to + share·factor·from
void blend_numbers(const Numbers& to, const double* from, double factor, double share);

// Memory that comes fresh from the system costs a page fault for every 4 KiB, more than filling it
// does. Asks for 2 MiB pages, where the system gives them; memory that is mapped already stays.
void advise_huge_pages(void* memory, int64_t bytes);

}  // namespace livella
