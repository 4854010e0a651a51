// Into block formats and back on a processor: `arithmetic.h` in loops that its compiler makes vectors of. A tensor is looked at
// as [outer, size, inner] with blocks along `size`; what is made of it lies as [outer, inner, size], so that blocks are lines
// of memory.
#include "../runtime/host.h"
#include "arithmetic.h"

namespace {

constexpr long kWidth = 64;  // columns of a tile, whose blocks lie across lines
constexpr long kRun = 512;   // elements of a tile whose blocks lie along a line

template <bool NVFP4>
constexpr long kBlock = NVFP4 ? 16 : 32;

// What a call is told, for all of its tiles.
struct Call {
  const void* x;
  long outer, size, inner, block;
  int input;
  Element element;
  const int32_t* amax;  // [outer, size / block, inner], or null: blocks' own
  const float* whole;   // NVFP4's scale of the tensor
  uint32_t key_low, key_high;
  const int64_t *outer_places, *size_places, *inner_places;  // for stochastic rounding: an element's place is their sum
  uint8_t *elements, *scales;

  long blocks() const { return size / block; }
  long bytes() const { return block * element.bits / 8; }  // of a block
};

// The scales of blocks, what their elements are multiplied by (NVFP4: divided), and -1, or 0 for those that are no numbers.
template <bool NVFP4>
void scales_of(const int32_t* amax, long count, const Call& c, uint8_t* bytes, float* factor, int32_t* keep) {
  const Element e = c.element;
  const float whole = NVFP4 ? *c.whole : 0.0f;
  for (long i = 0; i < count; ++i) {
    if constexpr (NVFP4) {
      int32_t code = nvfp4_scale(amax[i], whole);
      float found = multiplied(decode(code, e4m3()), whole);
      int32_t usable = (code != 0x7F) & (found > 0);
      bytes[i] = uint8_t(code), factor[i] = usable ? found : 1.0f, keep[i] = -usable;
    } else {
      int32_t code = scale_byte(amax[i], e);
      bytes[i] = uint8_t(code), factor[i] = inverse_power(code), keep[i] = code == 255 ? 0 : -1;
    }
  }
}

template <int ROUNDING, bool INTEGER, bool NVFP4>
uint8_t code(int32_t bits, float factor, int32_t keep, uint32_t random, const Element& e) {
  if constexpr (NVFP4) return uint8_t(encode_divided<ROUNDING>(bits & keep, factor, random, e));
  return uint8_t(encode<ROUNDING, INTEGER>(bits & keep, factor, random, e));
}

template <long SIZE>
int32_t largest(const int32_t* bits) {
  int32_t found = 0;
  for (long i = 0; i < SIZE; ++i) found = larger(found, bits[i] & kMagnitude);
  return found;
}

// What blocks have for each of their elements: loops over these are vectors, loops within a block of 16 were not.
template <long SIZE, typename T>
void spread(const T* of, long blocks, T* each) {
  for (long block = 0; block < blocks; ++block)
    for (long i = 0; i < SIZE; ++i) each[block * SIZE + i] = of[block];
}

// Random bits of `count` neighbours whose places are `base` and a line's.
void draw(const Call& c, int64_t base, const int64_t* line, long count, uint32_t* random) {
  for (long i = 0; i < count; ++i) {
    uint64_t place = uint64_t(base + line[i]);
    random[i] = random_bits(uint32_t(place), uint32_t(place >> 32), c.key_low, c.key_high);
  }
}

// Codes of neighbours packed side by side.
void pack_line(const uint8_t* codes, long count, int bits, uint8_t* out) {
  if (bits == 8) {
    std::memcpy(out, codes, count);
  } else if (bits == 4) {
    for (long i = 0; i < count / 2; ++i) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    for (long i = 0; i < count / 4; ++i) {
      const uint8_t* four = codes + 4 * i;
      out[3 * i] = uint8_t(four[0] | four[1] << 6);
      out[3 * i + 1] = uint8_t(four[1] >> 2 | four[2] << 4);
      out[3 * i + 2] = uint8_t(four[2] >> 4 | four[3] << 2);
    }
  }
}

// Lines of codes [block, kWidth] packed below one another, in place; how many lines are left.
long pack_lines(uint8_t (*codes)[kWidth], long block, int bits) {
  if (bits == 4) {
    for (long line = 0; line < block / 2; ++line)
      for (long i = 0; i < kWidth; ++i) codes[line][i] = uint8_t(codes[2 * line][i] | codes[2 * line + 1][i] << 4);
  } else if (bits == 6) {
    for (long group = 0; group < block / 4; ++group)
      for (long i = 0; i < kWidth; ++i) {
        uint8_t a = codes[4 * group][i], b = codes[4 * group + 1][i], d = codes[4 * group + 2][i];
        uint8_t e = codes[4 * group + 3][i];
        codes[3 * group][i] = uint8_t(a | b << 6);
        codes[3 * group + 1][i] = uint8_t(b >> 2 | d << 4);
        codes[3 * group + 2][i] = uint8_t(d >> 4 | e << 2);
      }
  }
  return block * bits / 8;
}

// Eight bytes of eight lines, kWidth apart, to eight columns of them, `apart`: pairs of bytes change places, then of two, then of
// four.
void turn_8x8(const uint8_t* lines, uint8_t* columns, long apart) {
  uint64_t x[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&x[i], lines + i * kWidth, 8);
  constexpr uint64_t kMasks[] = {0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF};
  for (int step = 0; step < 3; ++step) {
    int other = 1 << step, shift = 8 << step;
    for (int i = 0; i < 8; ++i) {
      if (i & other) continue;
      uint64_t change = ((x[i] >> shift) ^ x[i + other]) & kMasks[step];
      x[i] ^= change << shift, x[i + other] ^= change;
    }
  }
  for (int i = 0; i < 8; ++i) std::memcpy(columns + i * apart, &x[i], 8);
}

// Blocks along lines of memory: `count` elements of a line, from `start` on, inner = 1.
template <int ROUNDING, bool INTEGER, bool NVFP4>
void along_line(const Call& c, long line, long start, long count) {
  constexpr long kSize = kBlock<NVFP4>;
  int32_t bits[kRun], amax[kRun / kSize] = {}, keep[kRun / kSize], keeps[kRun];
  float factor[kRun / kSize], factors[kRun];
  uint32_t random[kRun] = {};
  uint8_t codes[kRun], bytes[kRun / kSize];
  const Element e = c.element;
  load(c.x, c.input, line * c.size + start, count, bits);
  if (ROUNDING == kStochastic)
    draw(c, c.outer_places[line] + c.inner_places[0], c.size_places + start, count, random);
  long first = (line * c.size + start) / kSize, blocks = count / kSize;
  for (long block = 0; block < blocks; ++block) amax[block] = largest<kSize>(bits + block * kSize);
  if (c.amax) std::memcpy(amax, c.amax + first, blocks * 4);
  scales_of<NVFP4>(amax, blocks, c, bytes, factor, keep);
  std::memcpy(c.scales + first, bytes, blocks);
  spread<kSize>(factor, blocks, factors);
  spread<kSize>(keep, blocks, keeps);
  for (long i = 0; i < count; ++i)
    codes[i] = code<ROUNDING, INTEGER, NVFP4>(bits[i], factors[i], keeps[i], random[i], e);
  pack_line(codes, count, e.bits, c.elements + first * c.bytes());
}

// Blocks across lines of memory: `count` columns, from `start` on, of a line of blocks.
template <int ROUNDING, bool INTEGER, bool NVFP4>
void across_lines(const Call& c, long outer, long block, long start, long count) {
  constexpr long kSize = kBlock<NVFP4>;
  int32_t bits[kSize][kWidth] = {}, amax[kWidth] = {}, keep[kWidth] = {};
  float factor[kWidth] = {};
  uint32_t random[kWidth] = {};
  uint8_t codes[kSize][kWidth], bytes[kWidth];
  const Element e = c.element;
  long top = outer * c.size + block * kSize;
  for (long line = 0; line < kSize; ++line) {
    load(c.x, c.input, (top + line) * c.inner + start, count, bits[line]);
    for (long i = 0; i < kWidth; ++i) amax[i] = larger(amax[i], bits[line][i] & kMagnitude);
  }
  if (c.amax) std::memcpy(amax, c.amax + (outer * c.blocks() + block) * c.inner + start, count * 4);
  scales_of<NVFP4>(amax, kWidth, c, bytes, factor, keep);
  for (long line = 0; line < kSize; ++line) {
    if (ROUNDING == kStochastic)
      draw(c, c.outer_places[outer] + c.size_places[block * kSize + line], c.inner_places + start, count, random);
    for (long i = 0; i < kWidth; ++i)
      codes[line][i] = code<ROUNDING, INTEGER, NVFP4>(bits[line][i], factor[i], keep[i], random[i], e);
  }
  long lines = pack_lines(codes, kSize, e.bits);
  uint8_t turned[kWidth][kSize];
  for (long line = 0; line < lines; line += 8)
    for (long i = 0; i < kWidth; i += 8) turn_8x8(&codes[line][i], &turned[i][line], kSize);
  for (long i = 0; i < count; ++i) {
    long place = (outer * c.inner + start + i) * c.blocks() + block;
    std::memcpy(c.elements + place * c.bytes(), turned[i], lines);
    c.scales[place] = bytes[i];
  }
}

// work(line, start, count) for runs of lines of `size` elements.
template <typename Work>
void in_runs(long lines, long size, int threads, const Work& work) {
  long runs = (size + kRun - 1) / kRun;
  shared(lines * runs, lines * size, threads, [&](long first, long last) {
    for (long i = first; i < last; ++i) work(i / runs, i % runs * kRun, std::min(kRun, size - i % runs * kRun));
  });
}

template <int ROUNDING, bool INTEGER, bool NVFP4>
void quantize(const Call& c, int threads) {
  long elements = c.outer * c.size * c.inner;
  if (c.inner == 1) {
    in_runs(c.outer, c.size, threads, [&](long line, long start, long count) {
      along_line<ROUNDING, INTEGER, NVFP4>(c, line, start, count);
    });
    return;
  }
  long tiles = (c.inner + kWidth - 1) / kWidth, blocks = c.blocks();
  shared(c.outer * tiles * blocks, elements, threads, [&](long first, long last) {
    for (long i = first; i < last; ++i) {  // blocks below one another follow each other: they are neighbours where they go
      long start = i / blocks % tiles * kWidth;
      across_lines<ROUNDING, INTEGER, NVFP4>(c, i / blocks / tiles, i % blocks, start, std::min(kWidth, c.inner - start));
    }
  });
}

template <int ROUNDING>
void quantize(const Call& c, int threads) {
  if (c.whole) quantize<ROUNDING, false, true>(c, threads);
  else if (c.element.integer) quantize<ROUNDING, true, false>(c, threads);
  else quantize<ROUNDING, false, false>(c, threads);
}

void unpack_line(const uint8_t* packed, long count, int bits, uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, packed, count);
  } else if (bits == 4) {
    for (long i = 0; i < count / 2; ++i) codes[2 * i] = packed[i] & 0xF, codes[2 * i + 1] = packed[i] >> 4;
  } else {
    for (long i = 0; i < count / 4; ++i) {
      uint8_t a = packed[3 * i], b = packed[3 * i + 1], d = packed[3 * i + 2];
      codes[4 * i] = uint8_t(a & 0x3F);
      codes[4 * i + 1] = uint8_t((a >> 6 | b << 2) & 0x3F);
      codes[4 * i + 2] = uint8_t((b >> 4 | d << 4) & 0x3F);
      codes[4 * i + 3] = uint8_t(d >> 2);
    }
  }
}

// What stored lines are told to become, for all of them. lines: how many have one line of scales; inner: how many lie beside
// one another in what is made of them, [outer, size, inner].
struct Values {
  const uint8_t *elements, *scales;
  const float* whole;
  long size, lines, inner;
  Element element;
  bool narrow;
  void* out;
};

// `count` elements of a line, from `start` on.
template <bool INTEGER, bool NVFP4>
void values_of(const Values& v, long line, long start, long count, float* values) {
  constexpr long kSize = kBlock<NVFP4>;
  uint8_t codes[kRun];
  float factor[kRun / kSize] = {}, factors[kRun];
  long place = line * v.size + start, first = (line / v.lines * v.size + start) / kSize, blocks = count / kSize;
  const Element e = v.element;
  const float whole = NVFP4 ? *v.whole : 0.0f;
  unpack_line(v.elements + place * e.bits / 8, count, e.bits, codes);
  for (long block = 0; block < blocks; ++block) {
    int32_t scale = v.scales[first + block];
    if constexpr (NVFP4) factor[block] = multiplied(decode(scale, e4m3()), whole);
    else factor[block] = scale == 255 ? as_float(0x7FC00000) : power(scale);
  }
  spread<kSize>(factor, blocks, factors);
  for (long i = 0; i < count; ++i)
    values[i] = multiplied(INTEGER ? decode_integer(codes[i]) : decode(codes[i], e), factors[i]);
}

void store(const Values& v, long place, const float* values, long count) {
  if (v.narrow) {
    uint16_t* to = static_cast<uint16_t*>(v.out) + place;
    for (long i = 0; i < count; ++i) to[i] = nearest_even(values[i]);
  } else {
    std::memcpy(static_cast<float*>(v.out) + place, values, count * 4);
  }
}

template <bool INTEGER, bool NVFP4>
void dequantize(const Values& v, long rows, int threads) {
  if (v.inner == 1) {
    in_runs(rows, v.size, threads, [&](long line, long start, long count) {
      float values[kRun];
      values_of<INTEGER, NVFP4>(v, line, start, count, values);
      store(v, line * v.size + start, values, count);
    });
    return;
  }
  // Tiles beside one another follow each other: what they write lies in the same pages.
  constexpr long kLines = 16, kLong = 128;  // of a tile; 16 are a line of the cache where it is written
  long bundles = (v.inner + kLines - 1) / kLines, runs = (v.size + kLong - 1) / kLong;
  shared(rows / v.inner * runs * bundles, rows * v.size, threads, [&](long first, long last) {
    float tile[kLines][kLong + 16], across[kLines];  // lines one after another would share sets of the cache
    for (long index = first; index < last; ++index) {
      long outer = index / bundles / runs, start = index / bundles % runs * kLong, left = index % bundles * kLines;
      long lines = std::min(kLines, v.inner - left), count = std::min(kLong, v.size - start);
      if (lines < kLines) std::memset(tile[lines], 0, (kLines - lines) * sizeof tile[0]);
      for (long i = 0; i < lines; ++i) values_of<INTEGER, NVFP4>(v, outer * v.inner + left + i, start, count, tile[i]);
      for (long at = 0; at < count; ++at) {
        for (long i = 0; i < kLines; ++i) across[i] = tile[i][at];
        store(v, (outer * v.size + start + at) * v.inner + left, across, lines);
      }
    }
  });
}

}  // namespace

// Bits of the largest magnitudes of blocks: int32 [outer, size / block, inner].
extern "C" void mx_largest(const void* x, int input, long outer, long size, long inner, long block, int32_t* amax,
                           int threads) {
  long blocks = size / block;
  shared(outer * blocks, outer * size * inner, threads, [&](long first, long last) {
    std::vector<int32_t> line(std::max(inner, block));
    for (long i = first; i < last; ++i) {
      int32_t* found = amax + i * inner;
      std::fill(found, found + inner, 0);
      if (inner == 1) {
        load(x, input, i * block, block, line.data());
        for (long j = 0; j < block; ++j) *found = larger(*found, line[j] & kMagnitude);
        continue;
      }
      for (long row = 0; row < block; ++row) {
        load(x, input, (i * block + row) * inner, inner, line.data());
        for (long j = 0; j < inner; ++j) found[j] = larger(found[j], line[j] & kMagnitude);
      }
    }
  });
}

// x [outer, size, inner] of float32 (0), float16 (1) or bfloat16 (2), contiguous, to elements [outer, inner, size * bits / 8] and
// scales [outer, inner, size / block]. amax: as `mx_largest` gives it, or null. whole: of NVFP4, else null. key and places: for
// stochastic rounding, int64 [outer], [size] and [inner].
extern "C" void mx_quantize(const void* x, int input, long outer, long size, long inner, long block, Element element,
                            int rounding, const int32_t* amax, const float* whole, uint32_t key_low, uint32_t key_high,
                            const int64_t* outer_places, const int64_t* size_places, const int64_t* inner_places,
                            uint8_t* elements, uint8_t* scales, int threads) {
  Call c = {x,        outer,        size,         inner,       block,        input,    element, amax, whole,
            key_low,  key_high,     outer_places, size_places, inner_places, elements, scales};
  if (rounding == kStochastic) quantize<kStochastic>(c, threads);
  else if (rounding == kHalfAway) quantize<kHalfAway>(c, threads);
  else quantize<kNearestEven>(c, threads);
}

// elements [outer * inner, size * bits / 8] and scales [outer * inner / lines, size / block] to float32 [outer, size, inner], or
// bfloat16 if `narrow`.
extern "C" void mx_dequantize(const uint8_t* elements, const uint8_t* scales, const float* whole, long outer, long size,
                              long inner, long lines, Element element, int narrow, void* out, int threads) {
  Values v = {elements, scales, whole, size, lines, inner, element, narrow != 0, out};
  if (whole) dequantize<false, true>(v, outer * inner, threads);
  else if (element.integer) dequantize<true, false>(v, outer * inner, threads);
  else dequantize<false, false>(v, outer * inner, threads);
}
