// bfloat16 as it lies in memory.
#pragma once
#include "both.h"

BOTH float widen(uint16_t x) { return as_float(int32_t(uint32_t(x) << 16)); }

// bfloat16 by adding `low` below the last place and cutting; a NaN stays one.
BOTH uint16_t narrow(float x, uint32_t low) {
  uint32_t found = uint32_t(as_int(x));
  bool nan = (found & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>((nan ? found | 0x400000u : found + low) >> 16);
}

BOTH uint16_t nearest_even(float x) { return narrow(x, 0x7fffu + ((uint32_t(as_int(x)) >> 16) & 1u)); }
