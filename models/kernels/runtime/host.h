// What kernels for processors share: numbers as they lie in memory, and threads: torch's team, or where it has none that is known
// here, some that are started for a call.
#pragma once
#include <algorithm>
#include <thread>
#include <vector>

#include "bfloat16.h"

enum Input { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

constexpr long kEnough = 1 << 15, kEnoughToStart = 1 << 17;  // elements that are worth a thread of a team, and one's start

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

// What compilers make of `omp parallel` (libgomp's interface since GCC 4.9, which LLVM's runtime has too). Found in the process if
// torch brought such a runtime, else null: its threads are there already, and wait for work on cores that others would want.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
extern "C" __attribute__((weak)) int omp_get_thread_num();
extern "C" __attribute__((weak)) int omp_get_num_threads();

// work(first, last) over [0, count), cut for threads if each gets enough of `elements`. threads: torch's number, which keeps its
// team as it is.
template <typename Work>
void shared(long count, long elements, int threads, const Work& work) {
  const bool team = GOMP_parallel && omp_get_thread_num && omp_get_num_threads;
  const long parts = std::min({long(threads), elements / (team ? kEnough : kEnoughToStart), count});
  if (parts < 2) return work(0, count);
  const auto piece = [&work, parts, count](long i) { work(count * i / parts, count * (i + 1) / parts); };
  if (team) {
    struct Shared {
      decltype(piece)& of;
      long parts;
    } all = {piece, parts};
    auto member = [](void* data) {  // of a team that may be smaller than was asked for
      const Shared& own = *static_cast<Shared*>(data);
      for (long i = omp_get_thread_num(); i < own.parts; i += omp_get_num_threads()) own.of(i);
    };
    GOMP_parallel(member, &all, threads, 0);
    return;
  }
  std::vector<std::thread> others;
  for (long i = 1; i < parts; ++i) others.emplace_back(piece, i);
  piece(0);
  for (std::thread& other : others) other.join();
}
