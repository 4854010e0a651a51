// bfloat16 of CUDA, as far as our kernels read it.
#pragma once
#include <cstdint>

struct __nv_bfloat16 { uint16_t bits; };
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
