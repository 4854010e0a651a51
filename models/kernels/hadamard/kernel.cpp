// Rotation by Hadamard matrices on a processor. A tensor is looked at as [outer, size, inner], rotated along `size`; what comes
// of it lies as [outer, inner, size]. Butterflies go over lines of a tile beside one another, so that they are vectors.
#include "../runtime/host.h"

namespace {

constexpr long kWidth = 16;  // groups of a tile

// Lines [group, kWidth] rotated in place.
void butterflies(float* tile, long group, const float* signs, float factor) {
  if (signs)
    for (long line = 0; line < group; ++line)
      for (long i = 0; i < kWidth; ++i) tile[line * kWidth + i] *= signs[line];
  for (long half = 1; half < group; half *= 2)
    for (long start = 0; start < group; start += 2 * half) {
      float *upper = tile + start * kWidth, *lower = upper + half * kWidth;
      for (long i = 0; i < half * kWidth; ++i) {
        float first = upper[i], second = lower[i];
        upper[i] = first + second, lower[i] = first - second;
      }
    }
  for (long i = 0; i < group * kWidth; ++i) tile[i] *= factor;
}

// The first `count` columns of a tile [group, kWidth] as lines of `out`, which begin `pitch` apart.
void turned(const float* tile, long group, long count, long pitch, float* out) {
  for (long i = 0; i < count; ++i)
    for (long line = 0; line < group; ++line) out[i * pitch + line] = tile[line * kWidth + i];
}

}  // namespace

// x [outer, size, inner] of float32 (0), float16 (1) or bfloat16 (2), contiguous, to float32 [outer, inner, size]. group: a power
// of two that divides size. signs: float32 [group], or null. factor: of all.
extern "C" void hadamard(const void* x, int input, long outer, long size, long inner, long group, const float* signs,
                         float factor, float* out, int threads) {
  long elements = outer * size * inner;
  if (inner == 1) {  // groups lie side by side
    long groups = elements / group, tiles = (groups + kWidth - 1) / kWidth;
    shared(tiles, elements, threads, [&](long first, long last) {
      std::vector<int32_t> bits(group * kWidth);
      std::vector<float> tile(group * kWidth);
      for (long i = first; i < last; ++i) {
        long start = i * kWidth, count = std::min(kWidth, groups - start);
        load(x, input, start * group, count * group, bits.data());
        for (long line = 0; line < group; ++line)
          for (long j = 0; j < count; ++j) tile[line * kWidth + j] = as_float(bits[j * group + line]);
        butterflies(tile.data(), group, signs, factor);
        turned(tile.data(), group, count, group, out + start * group);
      }
    });
    return;
  }
  long across = (inner + kWidth - 1) / kWidth, down = size / group;
  shared(outer * across * down, elements, threads, [&](long first, long last) {
    std::vector<int32_t> bits(kWidth);
    std::vector<float> tile(group * kWidth);
    for (long i = first; i < last; ++i) {
      long block = i % down, start = i / down % across * kWidth, before = i / down / across;
      long count = std::min(kWidth, inner - start);
      for (long line = 0; line < group; ++line) {
        load(x, input, (before * size + block * group + line) * inner + start, count, bits.data());
        std::memcpy(tile.data() + line * kWidth, bits.data(), count * 4);
      }
      butterflies(tile.data(), group, signs, factor);
      turned(tile.data(), group, count, size, out + (before * inner + start) * size + block * group);
    }
  });
}
