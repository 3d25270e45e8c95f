// Matrix products: a few rows of activations against packed weights.
#include "arch.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

// Tile shapes, panels x rows of activations: few rows read WIDE panels at once to keep memory busy, many rows go through
// TALL panels and reuse what they have read. Bounded by the registers that hold the sums.
#if defined(__AVX512F__)
struct Shape8 { static constexpr int WIDE = 4, WIDE_ROWS = 4, TALL = 2, TALL_ROWS = 8; };
struct Shape4 { static constexpr int WIDE = 4, WIDE_ROWS = 2, TALL = 2, TALL_ROWS = 4; };
#else
struct Shape8 { static constexpr int WIDE = 2, WIDE_ROWS = 2, TALL = 1, TALL_ROWS = 4; };
struct Shape4 { static constexpr int WIDE = 2, WIDE_ROWS = 1, TALL = 1, TALL_ROWS = 3; };
#endif

// Bytes to ask for ahead of use on the first pass over a panel. With several rows of activations the processor cannot
// look far enough ahead by itself to keep memory busy: without this, 8 rows cost 2.5 times one row instead of 1.4.
template <int NR> constexpr int AHEAD = NR == Shape8::WIDE ? 2048 : 4096;

// ---- int8 products. Integer sums are exact, so only `finish_i8` has to be the same everywhere.

// One panel's bytes for four columns, prepared for use with several rows of activations.
struct Bytes {
#if defined(__AVX512VNNI__)
  __m512i w;
#elif defined(__AVX512BW__)
  __m512i size;
  __mmask64 negative;
#elif defined(__AVX2__)
  __m256i w[2], size[2];
#else
  const int8_t* w;
#endif
};

INL Bytes bytes(const int8_t* p) {
  Bytes b;
#if defined(__AVX512VNNI__)
  b.w = _mm512_loadu_si512(p);
#elif defined(__AVX512BW__)
  __m512i w = _mm512_loadu_si512(p);
  b.size = _mm512_abs_epi8(w);
  b.negative = _mm512_movepi8_mask(w);
#elif defined(__AVX2__)
  for (int i = 0; i < 2; i++) {
    b.w[i] = _mm256_loadu_si256((const __m256i*)(p + 32 * i));
    b.size[i] = _mm256_abs_epi8(b.w[i]);
  }
#else
  b.w = p;
#endif
  return b;
}

// acc[row] += the four products of a row. Without a four-way dot product the sign of the weight moves to the activation:
// |w| <= 128 as an unsigned byte times |x| <= 127 as a signed one, two of them summed, is at most 32512 and cannot
// saturate 16 bits (the plain maddubs of w + 128 can, and does). The same bound lets NEON sum its pairs in 16 bits.
INL I dot4(I acc, const Bytes& b, const int8_t* x) {
#if defined(__AVX512VNNI__)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  acc.v[0] = (vi)_mm512_dpbusd_epi32((__m512i)acc.v[0], _mm512_set1_epi32(four), b.w);
#elif defined(__AVX512BW__)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  __m512i v = _mm512_set1_epi32(four);
  v = _mm512_mask_sub_epi8(v, b.negative, _mm512_setzero_si512(), v);
  __m512i pairs = _mm512_maddubs_epi16(b.size, v);
  acc.v[0] = acc.v[0] + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  __m256i v = _mm256_set1_epi32(four);
  for (int i = 0; i < 2; i++) {
    __m256i pairs = _mm256_maddubs_epi16(b.size[i], _mm256_sign_epi8(v, b.w[i]));
    acc.v[i] = acc.v[i] + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
#elif defined(__SSE2__)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  __m128i v = _mm_set1_epi32(four);
  v = _mm_srai_epi16(_mm_unpacklo_epi8(v, v), 8);
  for (int i = 0; i < 4; i++) {
    __m128i w = _mm_loadu_si128((const __m128i*)(b.w + 16 * i));
    __m128 low = (__m128)_mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8), v);
    __m128 high = (__m128)_mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(w, w), 8), v);
    acc.v[i] = acc.v[i] + (vi)_mm_shuffle_ps(low, high, 0x88) + (vi)_mm_shuffle_ps(low, high, 0xDD);
  }
#elif defined(STENO_NEON)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; i++) {
    int8x16_t w = vld1q_s8(b.w + 16 * i);
#if defined(__ARM_FEATURE_DOTPROD)
    acc.v[i] = (vi)vdotq_s32((int32x4_t)acc.v[i], w, v);
#else
    int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(v)), vmull_high_s8(w, v));
    acc.v[i] = (vi)vpadalq_s16((int32x4_t)acc.v[i], pairs);
#endif
  }
#else
  for (int i = 0; i < REGS; i++)
    for (int j = 0; j < REG_LANES; j++) {
      const int8_t* w = b.w + (i * REG_LANES + j) * 4;
      acc.v[i][j] += w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
    }
#endif
  return acc;
}

INL void finish_i8(const Matrix& w, int p, I acc, float scale, float* y) {
  F v = to_float(acc) * (load(w.scale + p * PANEL) * set(scale));
  if (w.bias) v = v + load(w.bias + p * PANEL);
  store(y + p * PANEL, v);
}

struct TileI8 : Shape8 {
  template <int NR, int M>
  INL void run(const Matrix& w, int p, const Acts& x, const Rows& y, int m0) {
    size_t panel = (size_t)w.kp * PANEL;
    const int8_t* base = (const int8_t*)w.w + p * panel;
    const int8_t* q = x.q + m0 * x.stride;
    I acc[NR][M];
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) acc[r][m] = UNSIGNED_ACTS ? load(w.shift + (p + r) * PANEL) : set(0);
    for (int k = 0; k < w.kp; k += 4) {
      Bytes b[NR];
      for (int r = 0; r < NR; r++) {
        const int8_t* at = base + r * panel + (size_t)k * PANEL;
        if (m0 == 0) __builtin_prefetch(at + AHEAD<NR>);
        b[r] = bytes(at);
      }
      for (int m = 0; m < M; m++)
        for (int r = 0; r < NR; r++) acc[r][m] = dot4(acc[r][m], b[r], q + m * x.stride + k);
    }
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) finish_i8(w, p + r, acc[r][m], x.scale[m0 + m], y[m0 + m]);
  }
};

#if defined(__AMX_INT8__)
// The same sums by matrix tiles: 16 rows of activations x 64 columns, times 64 columns x 16 rows of weights, which is a
// panel's own layout. Tiles start from the shifts and are exact like the rest, so no bit depends on which path ran.
constexpr int AMX_ROWS = 8;  // fewer are faster without

struct Tiles {
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  Tiles() {
    static const Config config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

INL void ask(const int8_t* at) {
  for (int j = 0; j < 16; j++) __builtin_prefetch(at + 64 * j);
}

// Two panels, or one, times TALL tiles of 16 rows. Two streams of weights keep memory busier than one or four.
template <int TALL>
INL void tiles(const Matrix& w, int p, bool two, const Acts& x, const Rows& y, int m0, int m1) {
  alignas(64) int32_t sums[4][256];
  size_t panel = (size_t)w.kp * PANEL;
  const int8_t* base = (const int8_t*)w.w + p * panel;
  const int8_t* q = x.q + m0 * x.stride;
  const int32_t* shift = w.shift + p * PANEL;
  _tile_loadd(0, shift, 0);
  if (TALL > 1) _tile_loadd(1, shift, 0);
  if (two) _tile_loadd(2, shift + PANEL, 0);
  if (two && TALL > 1) _tile_loadd(3, shift + PANEL, 0);
  for (int k = 0; k < w.kp; k += 64) {
    const int8_t* at = base + (size_t)k * PANEL;
    if (m0 == 0) ask(at + 4096);
    _tile_loadd(4, q + k, x.stride);
    _tile_loadd(6, at, 64);
    _tile_dpbusd(0, 4, 6);
    if (TALL > 1) {
      _tile_loadd(5, q + 16 * x.stride + k, x.stride);
      _tile_dpbusd(1, 5, 6);
    }
    if (two) {
      if (m0 == 0) ask(at + panel + 4096);
      _tile_loadd(7, at + panel, 64);
      _tile_dpbusd(2, 4, 7);
      if (TALL > 1) _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  if (TALL > 1) _tile_stored(1, sums[1], 64);
  if (two) _tile_stored(2, sums[2], 64);
  if (two && TALL > 1) _tile_stored(3, sums[3], 64);
  for (int r = 0; r < 1 + two; r++)
    for (int m = m0; m < m1; m++) finish_i8(w, p + r, load(sums[2 * r + (m - m0) / 16] + (m - m0) % 16 * PANEL), x.scale[m], y[m]);
}

void product_amx(const Matrix& w, int p0, int p1, int rows, const Acts& x, const Rows& y) {
  Tiles granted;
  for (int p = p0; p < p1; p += 2)
    for (int m = 0; m < rows; m += 32) {
      int end = rows - m < 32 ? rows : m + 32;
      if (end - m > 16) tiles<2>(w, p, p + 1 < p1, x, y, m, end);
      else tiles<1>(w, p, p + 1 < p1, x, y, m, end);
    }
}
#endif

// ---- int4 products: exact integer sums within a group of columns, groups added in order by fused multiply-add.

// 64 bytes of numbers in [0, 15]: four columns of 16 rows.
struct Nibbles {
#if defined(__AVX512BW__)
  __m512i v;
#elif defined(__AVX2__)
  __m256i v[2];
#else
  int8_t v[64];
#endif
};

INL void nibbles(const uint8_t* p, Nibbles& low, Nibbles& high) {
#if defined(__AVX512BW__)
  __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  low.v = _mm512_and_si512(v, mask);
  high.v = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
#elif defined(__AVX2__)
  __m256i mask = _mm256_set1_epi8(15);
  for (int i = 0; i < 2; i++) {
    __m256i v = _mm256_loadu_si256((const __m256i*)(p + 32 * i));
    low.v[i] = _mm256_and_si256(v, mask);
    high.v[i] = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
  }
#else
  for (int j = 0; j < 64; j++) {
    low.v[j] = (int8_t)(p[j] & 15);
    high.v[j] = (int8_t)(p[j] >> 4);
  }
#endif
}

INL I dot4(I acc, const Nibbles& b, const int8_t* x) {
#if defined(__AVX512BW__) || defined(__AVX2__)
  int32_t four;
  __builtin_memcpy(&four, x, 4);
#endif
#if defined(__AVX512VNNI__)
  acc.v[0] = (vi)_mm512_dpbusd_epi32((__m512i)acc.v[0], b.v, _mm512_set1_epi32(four));
#elif defined(__AVX512BW__)
  __m512i pairs = _mm512_maddubs_epi16(b.v, _mm512_set1_epi32(four));
  acc.v[0] = acc.v[0] + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  for (int i = 0; i < 2; i++) {
    __m256i pairs = _mm256_maddubs_epi16(b.v[i], _mm256_set1_epi32(four));
    acc.v[i] = acc.v[i] + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
#else
  acc = dot4(acc, bytes(b.v), x);
#endif
  return acc;
}

struct TileI4 : Shape4 {
  template <int NR, int M>
  INL void run(const Matrix& w, int p, const Acts& x, const Rows& y, int m0) {
    size_t panel = (size_t)w.kp * PANEL / 2;
    int groups = w.kp / w.group;
    const uint8_t* base = (const uint8_t*)w.w + p * panel;
    const uint16_t* scales = w.group_scale + (size_t)p * groups * PANEL;
    const int8_t* q = x.q + m0 * x.stride;
    const int32_t* sums = x.sums + (size_t)m0 * groups;
    F total[NR][M];
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) total[r][m] = set(0.0f);
    for (int g = 0; g < groups; g++) {
      I acc[NR][M];
      for (int m = 0; m < M; m++)
        for (int r = 0; r < NR; r++) acc[r][m] = set(-8 * sums[(size_t)m * groups + g]);
      for (int k = g * w.group; k < (g + 1) * w.group; k += 8) {
        Nibbles low[NR], high[NR];
        for (int r = 0; r < NR; r++) {
          const uint8_t* at = base + r * panel + (size_t)k * PANEL / 2;
          if (m0 == 0) __builtin_prefetch(at + AHEAD<NR> / 2);
          nibbles(at, low[r], high[r]);
        }
        for (int m = 0; m < M; m++)
          for (int r = 0; r < NR; r++) {
            acc[r][m] = dot4(acc[r][m], low[r], q + m * x.stride + k);
            acc[r][m] = dot4(acc[r][m], high[r], q + m * x.stride + k + 4);
          }
      }
      for (int r = 0; r < NR; r++) {
        F s = halves(scales + ((size_t)r * groups + g) * PANEL);
        for (int m = 0; m < M; m++) total[r][m] = fma(to_float(acc[r][m]), s, total[r][m]);
      }
    }
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) {
        F v = total[r][m] * set(x.scale[m0 + m]);
        if (w.bias) v = v + load(w.bias + (p + r) * PANEL);
        store(y[m0 + m] + (p + r) * PANEL, v);
      }
  }
};

// ---- float products: per output, K_BLOCK columns at a time in order by fused multiply-add, block sums added in order.

INL F weights(const float* p) { return load(p); }
INL F weights(const uint16_t* p) {
#if defined(__AVX512F__)
  return F{{(vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)}};
#else
  int32_t lane[16];
  for (int j = 0; j < 16; j++) lane[j] = (int32_t)((uint32_t)p[j] << 16);
  return as_float(load(lane));
#endif
}

template <class T>
struct TileFloat : Shape8 {
  template <int NR, int M>
  INL void run(const Matrix& w, int p, const Acts& x, const Rows& y, int m0) {
    size_t panel = (size_t)w.kp * PANEL;
    const T* base = (const T*)w.w + p * panel;
    const float* f = x.f + (size_t)m0 * w.kp;
    F total[NR][M];
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) total[r][m] = set(0.0f);
    for (int k0 = 0; k0 < w.kp; k0 += K_BLOCK) {
      int k1 = k0 + K_BLOCK < w.kp ? k0 + K_BLOCK : w.kp;
      F acc[NR][M];
      for (int r = 0; r < NR; r++)
        for (int m = 0; m < M; m++) acc[r][m] = set(0.0f);
      for (int k = k0; k < k1; k++) {
        F wv[NR];
        for (int r = 0; r < NR; r++) {
          const T* at = base + r * panel + (size_t)k * PANEL;
          if (m0 == 0) __builtin_prefetch((const char*)at + AHEAD<NR>);
          wv[r] = weights(at);
        }
        for (int m = 0; m < M; m++) {
          F xv = set(f[(size_t)m * w.kp + k]);
          for (int r = 0; r < NR; r++) acc[r][m] = fma(wv[r], xv, acc[r][m]);
        }
      }
      for (int r = 0; r < NR; r++)
        for (int m = 0; m < M; m++) total[r][m] = total[r][m] + acc[r][m];
    }
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) {
        F v = total[r][m];
        if (w.bias) v = v + load(w.bias + (p + r) * PANEL);
        store(y[m0 + m] + (p + r) * PANEL, v);
      }
  }
};

// ---- from a product to tiles

template <class Tile, int NR, int M>
INL bool some(const Matrix& w, int p, int rows, const Acts& x, const Rows& y, int& m) {
  if constexpr (M > (NR == Tile::WIDE ? Tile::WIDE_ROWS : Tile::TALL_ROWS)) {
    return false;
  } else {
    if (rows - m < M) return false;
    Tile::template run<NR, M>(w, p, x, y, m);
    m += M;
    return true;
  }
}

template <class Tile, int NR>
void panels(const Matrix& w, int p, int rows, const Acts& x, const Rows& y) {
  for (int m = 0; m < rows;)
    some<Tile, NR, 8>(w, p, rows, x, y, m) || some<Tile, NR, 7>(w, p, rows, x, y, m) || some<Tile, NR, 6>(w, p, rows, x, y, m) ||
        some<Tile, NR, 5>(w, p, rows, x, y, m) || some<Tile, NR, 4>(w, p, rows, x, y, m) || some<Tile, NR, 3>(w, p, rows, x, y, m) ||
        some<Tile, NR, 2>(w, p, rows, x, y, m) || some<Tile, NR, 1>(w, p, rows, x, y, m);
}

template <class Tile>
void product(const Matrix& w, int p0, int p1, int rows, const Acts& x, const Rows& y) {
  int p = p0;
  if (rows <= Tile::WIDE_ROWS)
    for (; p + Tile::WIDE <= p1; p += Tile::WIDE) panels<Tile, Tile::WIDE>(w, p, rows, x, y);
  if constexpr (Tile::TALL > 1)
    for (; p + Tile::TALL <= p1; p += Tile::TALL) panels<Tile, Tile::TALL>(w, p, rows, x, y);
  for (; p < p1; p++) panels<Tile, 1>(w, p, rows, x, y);
}

}  // namespace

void matmul(const Matrix& w, int p0, int p1, int rows, const Acts& x, const Rows& y) {
  switch (w.kind) {
    case Matrix::F32: product<TileFloat<float>>(w, p0, p1, rows, x, y); break;
    case Matrix::BF16: product<TileFloat<uint16_t>>(w, p0, p1, rows, x, y); break;
    case Matrix::I8:
#if defined(__AMX_INT8__)
      if (rows >= AMX_ROWS) return product_amx(w, p0, p1, rows, x, y);
#endif
      product<TileI8>(w, p0, p1, rows, x, y);
      break;
    case Matrix::I4: product<TileI4>(w, p0, p1, rows, x, y); break;
  }
}

}  // namespace steno::STENO_TARGET
