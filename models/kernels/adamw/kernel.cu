// AdamW over all tensors in one launch. Every operation is rounded by itself, in the order of reference.py, so that all
// implementations give the same bits.
//
// The tables are those of tables.py: a row of ten int64 for each tensor, and the chunks of 16384 elements that a block takes.

#include "../runtime/bfloat16.h"
#include "../runtime/random.h"

struct Scalars {
  float beta2, rest1, rest2, keep, rate, inverse_root, epsilon;
};

namespace {

constexpr int kColumns = 10;
constexpr int64_t kChunk = 16384;

struct Row {
  int64_t parameter, gradient, average, square, shadow, size, key, base, width, pitch;
};

enum Mode : int { kMaster = 0, kShadow = 1, kStochastic = 2 };

// Of element i of a tensor, by its place in the whole one. The key's upper half comes mixed.
BOTH uint32_t random_of(const Row& row, int64_t i) {
  int64_t index = row.width == row.pitch ? row.base + i : row.base + i / row.width * row.pitch + i % row.width;
  return random_bits(uint32_t(index), uint32_t(index >> 32), uint32_t(row.key), uint32_t(row.key >> 32));
}

// The new parameter of old p; moments m, v are updated. g: gradient times the clip factor.
BOTH float step(float p, float g, float& m, float& v, const Scalars& s) {
  m = added(m, multiplied(subtracted(g, m), s.rest1));
  v = added(multiplied(v, s.beta2), multiplied(multiplied(g, s.rest2), g));
  float bottom = added(multiplied(rooted(v), s.inverse_root), s.epsilon);
  return subtracted(multiplied(p, s.keep), divided(multiplied(m, s.rate), bottom));
}

template <typename T>
BOTH T* at(int64_t address, int64_t i) { return reinterpret_cast<T*>(address) + i; }

// One element, and what statistics see of it.
BOTH void step_one(const Row& row, int64_t i, bool narrow_gradient, int mode, float factor, const Scalars& s,
                   float& changed, float& squared) {
  float g = narrow_gradient ? widen(*at<uint16_t>(row.gradient, i)) : *at<float>(row.gradient, i);
  bool stochastic = mode == kStochastic;
  float p = stochastic ? widen(*at<uint16_t>(row.parameter, i)) : *at<float>(row.parameter, i);
  float m = *at<float>(row.average, i), v = *at<float>(row.square, i);
  float next = step(p, multiplied(g, factor), m, v, s);
  *at<float>(row.average, i) = m;
  *at<float>(row.square, i) = v;
  if (stochastic)
    *at<uint16_t>(row.parameter, i) = narrow(next, random_of(row, i) & 0xffffu);
  else
    *at<float>(row.parameter, i) = next;
  if (mode == kShadow) *at<uint16_t>(row.shadow, i) = nearest_even(next);
  float change = subtracted(next, p);
  changed = added(changed, multiplied(change, change));
  squared = added(squared, multiplied(next, next));
}

constexpr int kThreads = 256;
constexpr int kEach = 4;  // elements of a thread at a time: float32 in 16 bytes, neighbours side by side

struct alignas(8) Narrow4 { uint16_t x[4]; };
struct alignas(16) Wide4 { float x[4]; };

template <bool NARROW>
__device__ __forceinline__ Wide4 read4(int64_t address, int64_t i) {
  if constexpr (!NARROW) return *at<Wide4>(address, i / kEach);
  Narrow4 given = *at<Narrow4>(address, i / kEach);
  return Wide4{widen(given.x[0]), widen(given.x[1]), widen(given.x[2]), widen(given.x[3])};
}

__device__ float sum_of_block(float x) {
  __shared__ float found[kThreads / 32];
  for (int other = 16; other; other /= 2) x += __shfl_down_sync(0xffffffffu, x, other);
  __syncthreads();
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += found[warp];
  return total;
}

// A block takes a chunk, a thread four elements at a time. At up to 64 registers a thread, 1024 threads of a multiprocessor have
// 64 kB under way, twice what latency times bandwidth asks of it on an H200 (4.3 TB/s, 132 of them, about 0.9 µs: 29 kB).
template <bool NARROW_GRADIENT, int MODE, bool STATISTICS>
__global__ void __launch_bounds__(kThreads) step_chunk(const int64_t* __restrict__ rows, const int64_t* __restrict__ chunks,
                                                  const float* __restrict__ factor, float* partials, Scalars s) {
  int64_t chunk = chunks[blockIdx.x];
  Row row = *reinterpret_cast<const Row*>(rows + (chunk >> 32) * kColumns);
  int64_t first = (chunk & 0xffffffff) * kChunk;
  int64_t last = first + kChunk < row.size ? first + kChunk : row.size;
  float clip = *factor, changed = 0.0f, squared = 0.0f;
  bool aligned = ((row.parameter | row.gradient | row.average | row.square | row.shadow) & 15) == 0;
  int64_t whole = aligned ? last - last % kEach : first;
  for (int64_t i = first + threadIdx.x * kEach; i < whole; i += kThreads * kEach) {
    Wide4 g = read4<NARROW_GRADIENT>(row.gradient, i), m = read4<false>(row.average, i), v = read4<false>(row.square, i);
    Wide4 p = read4<MODE == kStochastic>(row.parameter, i);
    Narrow4 copy;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      float old = p.x[k];
      p.x[k] = step(old, multiplied(g.x[k], clip), m.x[k], v.x[k], s);
      if (MODE == kShadow) copy.x[k] = nearest_even(p.x[k]);
      if (MODE == kStochastic) copy.x[k] = narrow(p.x[k], random_of(row, i + k) & 0xffffu);
      if (STATISTICS) {
        changed = added(changed, multiplied(subtracted(p.x[k], old), subtracted(p.x[k], old)));
        squared = added(squared, multiplied(p.x[k], p.x[k]));
      }
    }
    *at<Wide4>(row.average, i / kEach) = m;
    *at<Wide4>(row.square, i / kEach) = v;
    if (MODE == kStochastic)
      *at<Narrow4>(row.parameter, i / kEach) = copy;
    else
      *at<Wide4>(row.parameter, i / kEach) = p;
    if (MODE == kShadow) *at<Narrow4>(row.shadow, i / kEach) = copy;
  }
  for (int64_t i = whole + threadIdx.x; i < last; i += kThreads)
    step_one(row, i, NARROW_GRADIENT, MODE, clip, s, changed, squared);
  if (STATISTICS) {
    changed = sum_of_block(changed);
    squared = sum_of_block(squared);
    if (threadIdx.x == 0) {
      partials[2 * static_cast<int64_t>(blockIdx.x)] = changed;
      partials[2 * static_cast<int64_t>(blockIdx.x) + 1] = squared;
    }
  }
}

template <bool NARROW_GRADIENT, int MODE>
void launch(const int64_t* rows, const int64_t* chunks, int64_t count, const float* factor, float* partials, Scalars s,
            cudaStream_t stream) {
  auto kernel = partials ? step_chunk<NARROW_GRADIENT, MODE, true> : step_chunk<NARROW_GRADIENT, MODE, false>;
  kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(rows, chunks, factor, partials, s);
}

}  // namespace

// CUDA's error code. partials: null without statistics. mode: 0 float32, 1 with a bfloat16 copy, 2 bfloat16 rounded stochastically.
extern "C" int adamw(const int64_t* rows, const int64_t* chunks, int64_t count, const float* factor,
                               float* partials, const Scalars* s, int narrow_gradient, int mode, cudaStream_t stream) {
  auto run = narrow_gradient ? (mode == kMaster ? launch<true, kMaster> : mode == kShadow ? launch<true, kShadow> : launch<true, kStochastic>)
                             : (mode == kMaster ? launch<false, kMaster> : mode == kShadow ? launch<false, kShadow> : launch<false, kStochastic>);
  run(rows, chunks, count, factor, partials, *s, stream);
  return static_cast<int>(cudaGetLastError());
}
