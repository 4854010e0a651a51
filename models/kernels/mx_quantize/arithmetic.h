// Block formats in 32-bit arithmetic, as `device.py` has it and explains it: for CUDA and for a processor's own compiler, so
// that what runs on GPUs is tested where there is none. Without branches, so that loops over them become vectors.
#pragma once
#include "../runtime/both.h"
#include "../runtime/random.h"

// An element format: bits in memory, bits of its mantissa, float32 exponent field of its smallest normal magnitude, exponent
// and code of its largest, whether it is two's complement, and what carries into the exponent of a scale.
struct Element {
  int bits, mantissa, smallest, exponent, largest, integer, carry;
};

enum Rounding { kNearestEven = 0, kHalfAway = 1, kStochastic = 2 };

constexpr int32_t kInfinity = 0x7F800000, kMagnitude = 0x7FFFFFFF;

BOTH int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
BOTH int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// The E8M0 byte of a block whose largest magnitude has these float32 bits.
BOTH int32_t scale_byte(int32_t amax, const Element& e) {
  int32_t normal = amax < 0x800000 ? larger(2 * amax - 0x800000, 0) : amax;
  int32_t byte = smaller(larger(((normal + e.carry) >> 23) - e.exponent, 0), 254);
  return amax >= kInfinity ? 255 : byte;
}

// What a byte below 255 stands for; and one over it, exact. Of no meaning for 255.
BOTH float power(int32_t byte) { return as_float(byte == 0 ? 1 << 22 : byte << 23); }
BOTH float inverse_power(int32_t byte) { return as_float(byte >= 254 ? 1 << 22 : (254 - byte) << 23); }

// Code of the magnitude with these float32 bits, below 2^(largest exponent + 2), not yet saturated.
template <int ROUNDING, bool INTEGER>
BOTH int32_t rounded(int32_t bits, uint32_t random, const Element& e) {
  int32_t shift = 23 - e.mantissa, smallest = e.smallest << 23;
  if constexpr (ROUNDING == kStochastic) {
    int32_t field = bits >> 23, place = INTEGER ? e.smallest : larger(field, e.smallest);
    uint32_t significand = (bits & 0x7FFFFF) | 0x800000;
    int32_t right = shift + place - field;
    uint32_t left = smaller(larger(32 - right, 0), 31), beyond = smaller(larger(right - 32, 0), 31);
    uint32_t fraction = (significand << left) >> beyond;
    uint32_t carried = fraction + random < fraction ? 1 : 0;
    return int32_t((significand >> smaller(right, 31)) + carried) + ((place - e.smallest) << e.mantissa);
  } else {
    int32_t place = INTEGER ? smallest : larger(bits & kInfinity, smallest);
    int32_t magic = place + (shift << 23);
    if (ROUNDING == kHalfAway) bits |= 1;  // a tie has zeros below: a one there puts it above, and moves nothing past one
    return as_int(added(as_float(bits), as_float(magic))) - magic + ((place - smallest) >> shift);
  }
}

// A code saturated, with the sign of float32 bits.
template <bool INTEGER>
BOTH int32_t with_sign(int32_t code, int32_t bits, const Element& e) {
  code = smaller(code, e.largest);
  if constexpr (INTEGER) return (bits < 0 ? -code : code) & 0xFF;
  return code | ((bits >> (32 - e.bits)) & (1 << (e.bits - 1)));
}

// The code of a float32 with these bits, whose block's scale is 1 / inverse.
template <int ROUNDING, bool INTEGER>
BOTH int32_t encode(int32_t bits, float inverse, uint32_t random, const Element& e) {
  int32_t scaled = as_int(multiplied(as_float(bits & kMagnitude), inverse));
  return with_sign<INTEGER>(rounded<ROUNDING, INTEGER>(scaled, random, e), bits, e);
}

// The code of a float32 of any finite magnitude, divided by a factor.
template <int ROUNDING>
BOTH int32_t encode_divided(int32_t bits, float factor, uint32_t random, const Element& e) {
  int32_t scaled = as_int(divided(as_float(bits & kMagnitude), factor));
  scaled = smaller(scaled, (e.exponent + 1 + 127) << 23);
  return with_sign<false>(rounded<ROUNDING, false>(scaled, random, e), bits, e);
}

// What a code of floating point stands for. No subnormal number takes part, which some processors are slow with.
BOTH float decode(int32_t code, const Element& e) {
  int32_t magnitude = code & ((1 << (e.bits - 1)) - 1), field = magnitude >> e.mantissa;
  int32_t significand = (magnitude & ((1 << e.mantissa) - 1)) | (field > 0 ? 1 << e.mantissa : 0);
  int32_t unit = (larger(field, 1) + e.smallest - 1 - e.mantissa) << 23;
  int32_t bits = as_int(multiplied(float(significand), as_float(unit)));
  int32_t special = e.bits == 8 ? (e.mantissa == 3 ? 0x7F : 0x7C) : 0x100;  // E4M3's NaN, E5M2's infinity
  bits = magnitude >= special ? (e.mantissa == 2 && magnitude == special ? kInfinity : 0x7FC00000) : bits;
  return as_float(bits | ((code >> (e.bits - 1)) << 31));
}

// Of int8: 64ths.
BOTH float decode_integer(int32_t code) { return multiplied(float(int8_t(code)), 1.0f / 64); }

BOTH Element e4m3() { return {8, 3, 121, 8, 0x7E, 0, 0}; }

// NVFP4: the E4M3 scale of a block under the tensor's scale, 0x7F where the block is no number.
BOTH int32_t nvfp4_scale(int32_t amax, float whole) {
  int32_t finite = amax >= kInfinity ? 0 : amax;
  int32_t code = encode_divided<kNearestEven>(as_int(divided(as_float(finite), 6.0f)), whole, 0, e4m3());
  return amax >= kInfinity ? 0x7F : code;
}
