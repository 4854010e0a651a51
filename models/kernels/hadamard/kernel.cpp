// Rotation by Hadamard matrices on a processor. A tensor is looked at as [outer, size, inner], rotated along `size`; what comes
// of it lies as [outer, inner, size]. Butterflies are sums and differences of vectors: of lines beside one another, or, within
// a vector of one line, of it and the same with its lanes exchanged.
#include "../runtime/host.h"
#include "../runtime/lanes.h"

namespace {

// Sums and differences of lanes that are kHalf apart.
template <int kHalf>
Lanes apart(Lanes v) {
  Lanes sign;
  for (int i = 0; i < kLanes; ++i) sign[i] = i & kHalf ? -1.0f : 1.0f;
  return v * sign + exchanged<kHalf>(v, EachLane());
}

// Groups that lie within a vector, or the first butterflies of longer ones.
Lanes rotated(Lanes v, long group) {
  if (group > 1) v = apart<1>(v);
  if (group > 2) v = apart<2>(v);
  if (group > 4 && kLanes > 4) v = apart<4 % kLanes>(v);
  if (group > 8 && kLanes > 8) v = apart<8 % kLanes>(v);
  return v;
}

// Butterflies of kCount vectors, `apart` apart, and the factor.
template <int kCount>
void pass(float* x, long apart, float factor) {
  Lanes v[kCount];
  for (int i = 0; i < kCount; ++i) v[i] = lanes(x + i * apart);
  for (int half = 1; half < kCount; half *= 2)
    for (int i = 0; i < kCount; ++i)
      if (!(i & half)) {
        Lanes first = v[i], second = v[i + half];
        v[i] = first + second, v[i + half] = first - second;
      }
  for (int i = 0; i < kCount; ++i) put(x + i * apart, v[i] * factor);
}

// Of `count` vectors, a power of two, that follow one another.
void butterflies(float* x, long count, float factor) {
  if (count == 1) return pass<1>(x, 0, factor);
  for (long half = 1, radix; half < count; half *= radix) {
    radix = std::min(8l, count / half);
    float last = half * radix == count ? factor : 1.0f;
    for (long start = 0; start < count; start += half * radix)
      for (long i = start; i < start + half; ++i)
        (radix == 8 ? pass<8> : radix == 4 ? pass<4> : pass<2>)(x + i * kLanes, half * kLanes, last);
  }
}

// `count` numbers from place `start`, a vector or less. Vectors are loaded whole: parts that were stored cannot be read as one
// until they have left the processor's queue of stores.
Lanes loaded(const void* x, int input, long start, long count) {
  if (count == kLanes && input == kFloat32) return lanes(static_cast<const float*>(x) + start);
  if (count == kLanes && input == kBFloat16) return lanes(static_cast<const uint16_t*>(x) + start);
  int32_t bits[kLanes] = {};
  load(x, input, start, count, bits);
  Lanes found;
  std::memcpy(&found, bits, sizeof found);
  return found;
}

// The first `count` columns of a tile [group, kLanes] as lines of `out`, which begin `pitch` apart.
void turned(const float* tile, long group, long count, long pitch, float* out) {
  if (count == kLanes && group >= kLanes) {
    for (long line = 0; line < group; line += kLanes) transposed(tile + line * kLanes, kLanes, out + line, pitch);
    return;
  }
  for (long i = 0; i < count; ++i)
    for (long line = 0; line < group; ++line) out[i * pitch + line] = tile[line * kLanes + i];
}

}  // namespace

// x [outer, size, inner] of float32 (0), float16 (1) or bfloat16 (2), contiguous, to float32 [outer, inner, size]. group: a power
// of two that divides size. signs: float32 [group], or null. factor: of all.
extern "C" void hadamard(const void* x, int input, long outer, long size, long inner, long group, const float* signs,
                         float factor, float* out, int threads) {
  long elements = outer * size * inner;
  if (inner == 1) {  // groups lie side by side
    long chunk = std::max<long>(group, kLanes), chunks = (elements + chunk - 1) / chunk;
    std::vector<float> sign(chunk, 1.0f);
    for (long i = 0; signs && i < chunk; ++i) sign[i] = signs[i % group];
    shared(chunks, elements, threads, [&](long first, long last) {
      std::vector<float> tile(chunk);
      for (long i = first; i < last; ++i) {
        long start = i * chunk, count = std::min(chunk, elements - start);
        for (long j = 0; j < count; j += kLanes) {
          Lanes found = loaded(x, input, start + j, std::min<long>(kLanes, count - j));
          put(tile.data() + j, rotated(found * lanes(sign.data() + j), group));
        }
        butterflies(tile.data(), chunk / kLanes, factor);
        std::memcpy(out + start, tile.data(), count * 4);
      }
    });
    return;
  }
  // Tiles beside one another first: they read the same pages.
  long across = (inner + kLanes - 1) / kLanes, down = size / group;
  shared(outer * down * across, elements, threads, [&](long first, long last) {
    std::vector<float> tile(group * kLanes);
    for (long i = first; i < last; ++i) {
      long start = i % across * kLanes, block = i / across % down, before = i / across / down;
      long count = std::min<long>(kLanes, inner - start), place = (before * size + block * group) * inner + start;
      for (long line = 0; line < group; ++line) {
        Lanes found = loaded(x, input, place + line * inner, count);
        put(tile.data() + line * kLanes, signs ? found * signs[line] : found);
      }
      butterflies(tile.data(), group, factor);
      turned(tile.data(), group, count, size, out + (before * inner + start) * size + block * group);
    }
  });
}
