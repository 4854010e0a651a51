// float16 of CUDA, as far as our kernels read it.
#pragma once
#include <cmath>
#include <cstdint>

struct __half { uint16_t bits; };

inline float __half2float(__half x) {
  int exponent = x.bits >> 10 & 31, fraction = x.bits & 0x3FF;
  float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY) : std::ldexp(float(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  return x.bits >> 15 ? -magnitude : magnitude;
}
