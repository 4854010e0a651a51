// Numbers and their bits, for CUDA and for a processor's own compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define BOTH __host__ __device__ __forceinline__
#else
#define BOTH static inline
#endif

BOTH float as_float(int32_t bits) {
#ifdef __CUDA_ARCH__
  return __int_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

BOTH int32_t as_int(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_int(x);
#else
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
#endif
}

// Rounded one by one, never fused: the host's compiler is told so by an option.
#ifdef __CUDA_ARCH__
BOTH float multiplied(float a, float b) { return __fmul_rn(a, b); }
BOTH float added(float a, float b) { return __fadd_rn(a, b); }
BOTH float subtracted(float a, float b) { return __fsub_rn(a, b); }
BOTH float divided(float a, float b) { return __fdiv_rn(a, b); }
BOTH float rooted(float a) { return __fsqrt_rn(a); }
#else
BOTH float multiplied(float a, float b) { return a * b; }
BOTH float added(float a, float b) { return a + b; }
BOTH float subtracted(float a, float b) { return a - b; }
BOTH float divided(float a, float b) { return a / b; }
BOTH float rooted(float a) { return std::sqrt(a); }
#endif
