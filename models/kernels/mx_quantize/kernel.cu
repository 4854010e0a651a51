// Into block formats in CUDA C++: blocks along rows, along columns (stored transposed), or both with one read of x.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "arithmetic.h"

// One direction: its format and where it goes. whole: NVFP4's scale of the tensor, else null.
struct Made {
  Element element;
  const float* whole;
  uint8_t *elements, *scales;
};

// Where stochastic rounding draws from: the key, and int64 [rows] and [columns] whose sums are elements' places.
struct Draw {
  const int64_t *key, *rows, *columns;
};

namespace {

// A tile is 64 x 64. A thread has 8 neighbours of a row, 16 bytes of bfloat16, so four threads have a block of a row; then,
// through shared memory, 16 neighbours of a column, so two threads have a block of a column and four write 64 bytes in a
// line. (Of NVFP4, with blocks of 16, half as many.) A line of shared memory is one word longer than the tile, so that columns
// are spread over the banks.
constexpr int kTile = 64, kThreads = 256, kLine = kTile + 1, kSquares = kTile / 16;

__device__ __forceinline__ int32_t widened(float x) { return as_int(x); }
__device__ __forceinline__ int32_t widened(__half x) { return as_int(__half2float(x)); }
__device__ __forceinline__ int32_t widened(__nv_bfloat16 x) { return int32_t(uint32_t(__bfloat16_as_ushort(x)) << 16); }

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

__device__ __forceinline__ int block_of(const Made& m) { return m.whole ? 16 : 32; }

// The largest magnitude of a block, or of the square that it is part of, from what COUNT elements of a thread have; its
// neighbours in the block are the next threads.
template <int COUNT>
__device__ __forceinline__ int32_t largest(const int32_t* bits, int block, int32_t* square) {
  int32_t amax = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) amax = max(amax, bits[i] & kMagnitude);
  for (int other = 1; other < block / COUNT; other *= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, other));
  if (square) {
    atomicMax(square, amax);
    __syncthreads();
    amax = *square;
  }
  return amax;
}

// A block's scale, what its elements are multiplied by (NVFP4: divided), and whether they are numbers.
struct Scale {
  int code;
  float factor;
  bool usable;
};

__device__ __forceinline__ Scale scale_of(int32_t amax, const Made& m) {
  if (m.whole) {
    int code = nvfp4_scale(amax, *m.whole);
    float found = multiplied(decode(code, e4m3()), *m.whole);
    bool usable = code != 0x7F && found > 0;
    return {code, usable ? found : 1.0f, usable};
  }
  int code = scale_byte(amax, m.element);
  return {code, inverse_power(code), code != 255};
}

template <int ROUNDING, int COUNT>
__device__ __forceinline__ void encode_all(const int32_t* bits, const uint32_t* random, const Scale& s, const Made& m,
                                           unsigned* codes) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    int32_t x = s.usable ? bits[i] : 0;
    if (m.whole) codes[i] = encode_divided<ROUNDING>(x, s.factor, random[i], m.element);
    else if (m.element.integer) codes[i] = encode<ROUNDING, true>(x, s.factor, random[i], m.element);
    else codes[i] = encode<ROUNDING, false>(x, s.factor, random[i], m.element);
  }
}

// Codes of COUNT neighbours; place(i): of the i-th of them.
template <int COUNT, typename Place>
__device__ __forceinline__ void encode_all(const int32_t* bits, int rounding, const Draw& draw, const Place& place,
                                           const Scale& s, const Made& m, unsigned* codes) {
  uint32_t random[COUNT] = {};
  if (rounding == kStochastic) {
    uint32_t low = uint32_t(*draw.key), high = mixed(uint32_t(*draw.key >> 32));
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      uint64_t at = uint64_t(place(i));
      random[i] = random_bits(uint32_t(at), uint32_t(at >> 32), low, high);
    }
    encode_all<kStochastic, COUNT>(bits, random, s, m, codes);
  } else if (rounding == kHalfAway) {
    encode_all<kHalfAway, COUNT>(bits, random, s, m, codes);
  } else {
    encode_all<kNearestEven, COUNT>(bits, random, s, m, codes);
  }
}

// square: one scale for block x block elements, one direction alone. found: instead of all writing, the largest finite amax of
// blocks. Without SPECIAL there is neither, nor NVFP4, nor stochastic rounding, for which half as many registers do.
template <typename T, bool ROW, bool COLUMN, bool SPECIAL>
__global__ void __launch_bounds__(kThreads)
    quantize(const T* __restrict__ x, long rows, long columns, long stride, bool vector, int rounding, bool square, Draw draw,
             Made row, Made column, int32_t* found) {
  __shared__ int32_t tile[COLUMN ? kTile * kLine : 1];
  __shared__ int32_t squares[kSquares * kSquares];
  if constexpr (!SPECIAL) {
    square = false, row.whole = column.whole = nullptr, found = nullptr;
    rounding = rounding == kHalfAway ? kHalfAway : kNearestEven;
  }
  if (square) {
    if (threadIdx.x < kSquares * kSquares) squares[threadIdx.x] = 0;
    __syncthreads();
  }
  // Tiles below one another follow each other: what they write of a transposed row meets in the second cache.
  long high = (rows + kTile - 1) / kTile, top = blockIdx.x % high * kTile, left = blockIdx.x / high * kTile;
  int32_t best = 0;
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
      int block = block_of(row);
      int32_t amax = largest<8>(bits, block, square ? squares + line / block * kSquares + start / block : nullptr);
      best = max(best, amax < kInfinity ? amax : 0);
      if (within && !found) {
        Scale s = scale_of(amax, row);
        unsigned codes[8];
        encode_all<8>(bits, rounding, draw, [&](int i) { return draw.rows[r] + draw.columns[c + i]; }, s, row, codes);
        write<8>(row.elements + (r * columns + c) / 8 * row.element.bits, codes, row.element.bits);
        bool first = start % block == 0 && (!square || line % block == 0);
        if (first) row.scales[(square ? r / block : r) * (columns / block) + c / block] = uint8_t(s.code);
      }
    }
  }
  if constexpr (COLUMN) {
    __syncthreads();
    int line = threadIdx.x / 4, start = threadIdx.x % 4 * 16, block = block_of(column);
    long c = left + line, r = top + start;
    int32_t bits[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) bits[i] = tile[(start + i) * kLine + line];
    int32_t amax = largest<16>(bits, block, square ? squares + start / block * kSquares + line / block : nullptr);
    best = max(best, amax < kInfinity ? amax : 0);
    if (c < columns && r < rows && !found) {
      Scale s = scale_of(amax, column);
      unsigned codes[16];
      encode_all<16>(bits, rounding, draw, [&](int i) { return draw.rows[r + i] + draw.columns[c]; }, s, column, codes);
      write<16>(column.elements + (c * rows + r) / 8 * column.element.bits, codes, column.element.bits);
      bool first = start % block == 0 && (!square || line % block == 0);
      if (first) column.scales[(square ? c / block : c) * (rows / block) + r / block] = uint8_t(s.code);
    }
  }
  if (found) {
    for (int other = 16; other; other /= 2) best = max(best, __shfl_xor_sync(~0u, best, other));
    if (threadIdx.x % 32 == 0) atomicMax(found, best);
  }
}

template <typename T>
int launch(const void* x, long rows, long columns, long stride, int rounding, bool square, Draw draw, Made row, Made column,
           int32_t* found, cudaStream_t stream) {
  long tiles = (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
  bool vector = uintptr_t(x) % 16 == 0 && stride % (16 / sizeof(T)) == 0;
  bool special = square || found || rounding == kStochastic || row.whole || column.whole;
  auto call = [&](auto* plain, auto* all) {
    auto* kernel = special ? all : plain;
    kernel<<<unsigned(tiles), kThreads, 0, stream>>>(static_cast<const T*>(x), rows, columns, stride, vector, rounding, square,
                                                     draw, row, column, found);
  };
  if (row.elements && column.elements) call(&quantize<T, true, true, false>, &quantize<T, true, true, true>);
  else if (row.elements) call(&quantize<T, true, false, false>, &quantize<T, true, false, true>);
  else call(&quantize<T, false, true, false>, &quantize<T, false, true, true>);
  return int(cudaGetLastError());
}

}  // namespace

// x [rows, columns] of float32 (0), float16 (1) or bfloat16 (2), rows `stride` elements apart. Along rows `elements` [rows,
// columns * bits / 8] and `scales` [rows, columns / block]; along columns the same of the transpose; null for what is not
// wanted. Scales of squares have a line for `block` others. found: see `quantize`, an int32 that starts as 0. CUDA's error code.
extern "C" int mx_quantize(const void* x, int input, long rows, long columns, long stride, int rounding, int square, Draw draw,
                           Made row, Made column, int32_t* found, cudaStream_t stream) {
  auto* call = input == 0 ? &launch<float> : input == 1 ? &launch<__half> : &launch<__nv_bfloat16>;
  return call(x, rows, columns, stride, rounding, square != 0, draw, row, column, found, stream);
}
