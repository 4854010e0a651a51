// As many float32 beside one another as a vector of the processor holds, and where they go.
#pragma once
#include <cstring>
#include <utility>

#include "both.h"

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2, NEON and others
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Places __attribute__((vector_size(4 * kLanes)));

// Lanes of a and b, which are lanes 0 to 2 kLanes - 1, by constants.
#ifdef __clang__
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

typedef std::make_integer_sequence<int, kLanes> EachLane;

static inline Lanes lanes(const float* from) {
  Lanes found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

// Of bfloat16.
static inline Lanes lanes(const uint16_t* from) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  Places bits = __builtin_convertvector(halves, Places) << 16;
  Lanes found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

static inline void put(float* to, Lanes v) { std::memcpy(to, &v, sizeof v); }

// v with the lanes exchanged that are kApart, a power of two, apart.
template <int kApart, int... kLane>
Lanes exchanged(Lanes v, std::integer_sequence<int, kLane...>) {
  return CHOSEN(v, v, (kLane ^ kApart)...);
}

// The lower halves of a and b, or the upper ones, like a pack of cards that is shuffled.
template <int kUpper, int... kLane>
Lanes riffled(Lanes a, Lanes b, std::integer_sequence<int, kLane...>) {
  return CHOSEN(a, b, (kUpper * kLanes / 2 + kLane / 2 + kLane % 2 * kLanes)...);
}

// kLanes lines, `pitch` apart, as columns, `across` apart. Each round turns the bits of a number's place in the square by one.
static inline void transposed(const float* from, long pitch, float* to, long across) {
  Lanes rows[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = lanes(from + i * pitch);
  for (int round = 1; round < kLanes; round *= 2) {
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = riffled<0>(rows[i], rows[i + kLanes / 2], EachLane());
      next[2 * i + 1] = riffled<1>(rows[i], rows[i + kLanes / 2], EachLane());
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (int i = 0; i < kLanes; ++i) put(to + i * across, rows[i]);
}
