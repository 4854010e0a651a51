// As much of CUDA as our kernels use, on a processor: what `tests/models/kernels/cuda_executed.py` compiles `.cu` files against.
// The threads of a block are coroutines that take turns between barriers, in every other block backwards, so that a kernel
// without a barrier that it needs reads what is not yet there. Blocks run one after another.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;

struct Dim3 { unsigned x = 0, y = 0, z = 0; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T> T max(T a, T b) { return a < b ? b : a; }
template <typename T> T min(T a, T b) { return b < a ? b : a; }

inline Dim3 threadIdx, blockIdx;

namespace on_cpu {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 17;

inline int launches = 0;
inline int error = 0;  // 1: threads wait at a barrier that others never reach

// Where `all` threads wait for one another.
struct Gate { int all = 0, waiting = 0; long turn = 0; };

struct Thread { ucontext_t context; bool done = false; };

inline std::vector<std::unique_ptr<char[]>> stacks;  // of all blocks, one after another

struct Block {
  std::function<void()> body;
  ucontext_t scheduler;
  std::vector<Thread> threads;
  std::vector<uint64_t> given;  // what each hands to its warp
  std::vector<Gate> warps;
  Gate whole;
  long events = 0;  // gates passed and threads ended

  Block(int count, std::function<void()> work) : body(std::move(work)), threads(count), given(count) {
    whole.all = count;
    for (int first = 0; first < count; first += kWarp) warps.push_back({min(kWarp, count - first)});
  }

  void wait(Gate& gate) {
    long turn = gate.turn;
    if (++gate.waiting == gate.all) gate.waiting = 0, ++gate.turn, ++events;
    while (gate.turn == turn) swapcontext(&threads[threadIdx.x].context, &scheduler);
  }

  bool run(bool backwards);
};

inline Block* block = nullptr;

inline void begin() {
  block->body();
  block->threads[threadIdx.x].done = true;
  ++block->events;
}

// False where threads wait that nobody will let go.
inline bool Block::run(bool backwards) {
  block = this;
  int count = int(threads.size());
  while (int(stacks.size()) < count) stacks.emplace_back(new char[kStack]);
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks[i].get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, begin, 0);
  }
  for (int left = count; left;) {
    long before = events;
    left = 0;
    for (int i = 0; i < count; ++i) {
      int chosen = backwards ? count - 1 - i : i;
      if (threads[chosen].done) continue;
      threadIdx.x = unsigned(chosen);
      swapcontext(&scheduler, &threads[chosen].context);
      left += !threads[chosen].done;
    }
    if (left && events == before) return false;
  }
  return true;
}

// What stands where nvcc has kernel<<<grid, threads, bytes, stream>>>.
template <typename... Parameters>
auto launch(void (*kernel)(Parameters...), unsigned grid, int threads, size_t, cudaStream_t) {
  return [=](Parameters... arguments) {
    ++launches;
    for (unsigned index = 0; index < grid && !error; ++index) {
      blockIdx.x = index;
      if (!Block(threads, [&] { kernel(arguments...); }).run((launches + index) % 2)) error = 1;
    }
  };
}

template <typename T>
T from_lane(T value, int lane) {
  int own = int(threadIdx.x), first = own / kWarp * kWarp;
  Gate& gate = block->warps[own / kWarp];
  std::memcpy(&block->given[own], &value, sizeof value);
  block->wait(gate);
  std::memcpy(&value, &block->given[lane < gate.all ? first + lane : own], sizeof value);
  block->wait(gate);
  return value;
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::block->wait(on_cpu::block->whole); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) { return on_cpu::from_lane(value, int(threadIdx.x % on_cpu::kWarp) ^ mask); }

template <typename T>
T __shfl_down_sync(unsigned, T value, int by) { return on_cpu::from_lane(value, int(threadIdx.x % on_cpu::kWarp) + by); }

template <typename T>
T atomicMax(T* at, T value) {
  T before = *at;
  *at = max(before, value);
  return before;
}

inline int cudaGetLastError() {
  int found = on_cpu::error;
  on_cpu::error = 0;
  return found;
}
