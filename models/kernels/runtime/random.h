// Random bits by place, as `models.formats.random` has them.
#pragma once
#include "both.h"

BOTH uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x = (x ^ (x >> 15)) * 0x735A2D97u;
  return x ^ (x >> 15);
}

// 32 random bits of a place in the whole tensor; the key's upper half comes mixed.
BOTH uint32_t random_bits(uint32_t low, uint32_t high, uint32_t key_low, uint32_t key_high) {
  return mixed(mixed(low ^ key_low) ^ key_high ^ mixed(high));
}
