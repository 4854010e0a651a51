// What kernels for processors share: numbers as they lie in memory, and threads, which are started for a call and only where
// each has a good deal to do.
#pragma once
#include <algorithm>
#include <thread>
#include <vector>

#include "bfloat16.h"

enum Input { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

constexpr long kEnough = 1 << 17;  // elements that are worth a thread

static inline int32_t widened_half(uint16_t x) {
  int32_t magnitude = (x & 0x7FFF) << 13;
  int32_t tiny = as_int(float(x & 0x3FF) * as_float(103 << 23));  // 2^-24 each
  int32_t found = magnitude >= 0x1F << 23 ? magnitude | 0x7F800000 : (magnitude < 1 << 23 ? tiny : magnitude + (112 << 23));
  return found | (int32_t(x & 0x8000) << 16);
}

// float32 bits of `count` elements from place `start`.
static inline void load(const void* x, int input, long start, long count, int32_t* bits) {
  if (input == kFloat32) {
    std::memcpy(bits, static_cast<const float*>(x) + start, count * 4);
  } else if (input == kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(x) + start;
    for (long i = 0; i < count; ++i) bits[i] = as_int(widen(from[i]));
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(x) + start;
    for (long i = 0; i < count; ++i) bits[i] = widened_half(from[i]);
  }
}

// work(first, last) over [0, count), cut for threads if each gets enough of `elements`.
template <typename Work>
void shared(long count, long elements, int threads, const Work& work) {
  long parts = std::min({long(threads), elements / kEnough, count});
  if (parts < 2) return work(0, count);
  std::vector<std::thread> others;
  for (long part = 1; part < parts; ++part)
    others.emplace_back([&work, part, parts, count] { work(count * part / parts, count * (part + 1) / parts); });
  work(0, count / parts);
  for (std::thread& other : others) other.join();
}
