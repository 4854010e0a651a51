// Into MX in CUDA C++, blocks of 32 along rows, along columns (stored transposed), or both with one read of x. Powers of two as
// scales; to the nearest even or half away from zero.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "arithmetic.h"

// The code of the float32 with these bits under a byte.
__device__ __forceinline__ unsigned encode(int32_t bits, int byte, const Element& e, bool away) {
  float inverse = inverse_power(byte);
  bits = byte == 255 ? 0 : bits;
  if (e.integer) return away ? encode<kHalfAway, true>(bits, inverse, 0, e) : encode<kNearestEven, true>(bits, inverse, 0, e);
  return away ? encode<kHalfAway, false>(bits, inverse, 0, e) : encode<kNearestEven, false>(bits, inverse, 0, e);
}

// COUNT codes, 8 or 16, as the first words of what lies in memory.
template <int COUNT>
__device__ __forceinline__ void pack(const unsigned* codes, int bits, uint32_t* words) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (bits == 8) words[i / 4] |= codes[i] << (8 * (i % 4));
    if (bits == 4) words[i / 8] |= codes[i] << (4 * (i % 8));
    if (bits == 6) {
      words[6 * i / 32] |= codes[i] << (6 * i % 32);
      if (6 * i % 32 > 26) words[6 * i / 32 + 1] |= codes[i] >> (32 - 6 * i % 32);
    }
  }
}

// A tile is 64 x 64. A thread has 8 neighbours of a row, 16 bytes of bfloat16, so four threads have a block of a row; then,
// through shared memory, 16 neighbours of a column, so two threads have a block of a column and four write 64 bytes in a
// line. A line of shared memory is one word longer than the tile, so that columns are spread over the banks.
constexpr int kTile = 64, kThreads = 256, kLine = kTile + 1;

__device__ __forceinline__ int32_t widened(float x) { return __float_as_int(x); }
__device__ __forceinline__ int32_t widened(__half x) { return __float_as_int(__half2float(x)); }
__device__ __forceinline__ int32_t widened(__nv_bfloat16 x) { return int32_t(__bfloat16_as_ushort(x)) << 16; }

template <typename T>
__device__ __forceinline__ void load8(const T* x, int count, bool vector, int32_t* bits) {
  if (vector && count >= 8) {
    constexpr int kWords = 8 * sizeof(T) / 16, kEach = 16 / sizeof(T);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      uint4 raw = reinterpret_cast<const uint4*>(x)[word];
      T part[kEach];
      memcpy(part, &raw, 16);
#pragma unroll
      for (int i = 0; i < kEach; ++i) bits[word * kEach + i] = widened(part[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) bits[i] = i < count ? widened(x[i]) : 0;
  }
}

// COUNT codes, 8 or 16, packed and written side by side.
template <int COUNT>
__device__ __forceinline__ void write(uint8_t* out, const unsigned* codes, int bits) {
  uint32_t words[COUNT / 4] = {};
  pack<COUNT>(codes, bits, words);
  if (bits == 8) {
    if constexpr (COUNT == 16) *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
    else *reinterpret_cast<uint2*>(out) = make_uint2(words[0], words[1]);
  } else if (bits == 4) {
    if constexpr (COUNT == 16) *reinterpret_cast<uint2*>(out) = make_uint2(words[0], words[1]);
    else *reinterpret_cast<uint32_t*>(out) = words[0];
  } else if constexpr (COUNT == 16) {
    for (int i = 0; i < 3; ++i) reinterpret_cast<uint32_t*>(out)[i] = words[i];
  } else {  // 6 bytes
    uint16_t* halves = reinterpret_cast<uint16_t*>(out);
    halves[0] = uint16_t(words[0]), halves[1] = uint16_t(words[0] >> 16), halves[2] = uint16_t(words[1]);
  }
}

template <typename T, bool ROW, bool COLUMN>
__global__ void __launch_bounds__(kThreads)
    quantize(const T* __restrict__ x, long rows, long columns, long stride, bool vector, bool away, Element row,
             uint8_t* elements, uint8_t* scales, Element column, uint8_t* elements_t, uint8_t* scales_t) {
  __shared__ int32_t tile[COLUMN ? kTile * kLine : 1];
  // Tiles below one another follow each other: what they write of a transposed row meets in the second cache.
  long high = (rows + kTile - 1) / kTile, top = blockIdx.x % high * kTile, left = blockIdx.x / high * kTile;
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    int line = threadIdx.x / 8 + 32 * turn, start = threadIdx.x % 8 * 8;
    long r = top + line, c = left + start;
    int32_t bits[8];
    bool within = r < rows && c < columns;
    load8(x + r * stride + c, within ? int(min(8L, columns - c)) : 0, vector, bits);
    if constexpr (COLUMN) {
#pragma unroll
      for (int i = 0; i < 8; ++i) tile[line * kLine + start + i] = bits[i];
    }
    if constexpr (ROW) {
      int32_t amax = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) amax = max(amax, bits[i] & 0x7FFFFFFF);
      amax = max(amax, __shfl_xor_sync(~0u, amax, 1));
      amax = max(amax, __shfl_xor_sync(~0u, amax, 2));
      int byte = scale_byte(amax, row);
      unsigned codes[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) codes[i] = encode(bits[i], byte, row, away);
      if (within) {
        write<8>(elements + (r * columns + c) / 8 * row.bits, codes, row.bits);
        if (threadIdx.x % 4 == 0) scales[r * (columns / 32) + c / 32] = uint8_t(byte);
      }
    }
  }
  if constexpr (COLUMN) {
    __syncthreads();
    int line = threadIdx.x / 4, start = threadIdx.x % 4 * 16;
    long c = left + line, r = top + start;
    int32_t bits[16], amax = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      bits[i] = tile[(start + i) * kLine + line];
      amax = max(amax, bits[i] & 0x7FFFFFFF);
    }
    amax = max(amax, __shfl_xor_sync(~0u, amax, 1));
    int byte = scale_byte(amax, column);
    unsigned codes[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) codes[i] = encode(bits[i], byte, column, away);
    if (c < columns && r < rows) {
      write<16>(elements_t + (c * rows + r) / 8 * column.bits, codes, column.bits);
      if (threadIdx.x % 2 == 0) scales_t[c * (rows / 32) + r / 32] = uint8_t(byte);
    }
  }
}

template <typename T>
static int launch(const void* x, long rows, long columns, long stride, int away, Element row, void* elements, void* scales,
                  Element column, void* elements_t, void* scales_t, cudaStream_t stream) {
  long tiles = (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
  bool vector = uintptr_t(x) % 16 == 0 && stride % (16 / sizeof(T)) == 0;
  auto call = [&](auto* kernel) {
    kernel<<<unsigned(tiles), kThreads, 0, stream>>>(
        static_cast<const T*>(x), rows, columns, stride, vector, away != 0, row, static_cast<uint8_t*>(elements),
        static_cast<uint8_t*>(scales), column, static_cast<uint8_t*>(elements_t), static_cast<uint8_t*>(scales_t));
  };
  if (elements && elements_t) call(&quantize<T, true, true>);
  else if (elements) call(&quantize<T, true, false>);
  else call(&quantize<T, false, true>);
  return int(cudaGetLastError());
}

// x [rows, columns] of float32 (0), float16 (1) or bfloat16 (2), rows `stride` elements apart. Along rows `elements` [rows,
// columns * bits / 8] and `scales` [rows, columns / 32]; along columns `elements_t` [columns, rows * bits / 8] and `scales_t`
// [columns, rows / 32]; null for what is not wanted. CUDA's error code.
extern "C" int mx_quantize(const void* x, int input, long rows, long columns, long stride, int away, Element row,
                           void* elements, void* scales, Element column, void* elements_t, void* scales_t, void* stream) {
  auto* call = input == 0 ? &launch<float> : input == 1 ? &launch<__half> : &launch<__nv_bfloat16>;
  return call(x, rows, columns, stride, away, row, elements, scales, column, elements_t, scales_t,
              static_cast<cudaStream_t>(stream));
}
