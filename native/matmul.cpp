// Matrix products: a few rows of activations against packed weights.
#include "arch.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

// Tile shapes: few rows of activations read many panels at once to keep memory busy, many rows reuse what they have read.
#if defined(__AVX512F__)
constexpr int WIDE = 4, WIDE_ROWS = 4, TALL = 2, TALL_ROWS = 8;
#else
constexpr int WIDE = 2, WIDE_ROWS = 2, TALL = 1, TALL_ROWS = 4;
#endif

// Bytes to ask for ahead of use on the first pass over a panel. With several rows of activations the processor cannot
// look far enough ahead by itself to keep memory busy: without this, 8 rows cost 2.5 times one row instead of 1.4.
template <int NR> constexpr int AHEAD = NR == WIDE ? 2048 : 4096;

// ---- int8 products. Integer sums are exact, so only the last line of `tile_i8` has to be the same everywhere.

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

template <int NR, int M>
INL void tile_i8(const Matrix& w, int p, const int8_t* x, size_t stride, const float* scale, const Rows& y, int m0) {
  size_t panel = (size_t)w.kp * PANEL;
  const int8_t* base = (const int8_t*)w.w + p * panel;
  I acc[NR][M];
  for (int r = 0; r < NR; r++)
    for (int m = 0; m < M; m++) {
#if defined(__AVX512VNNI__)
      acc[r][m] = load(w.shift + (p + r) * PANEL);
#else
      acc[r][m] = set(0);
#endif
    }
  for (int k = 0; k < w.kp; k += 4) {
    Bytes b[NR];
    for (int r = 0; r < NR; r++) {
      const int8_t* at = base + r * panel + (size_t)k * PANEL;
      if (m0 == 0) __builtin_prefetch(at + AHEAD<NR>);
      b[r] = bytes(at);
    }
    for (int m = 0; m < M; m++)
      for (int r = 0; r < NR; r++) acc[r][m] = dot4(acc[r][m], b[r], x + m * stride + k);
  }
  for (int r = 0; r < NR; r++) {
    int row = (p + r) * PANEL;
    F s = load(w.scale + row);
    for (int m = 0; m < M; m++) {
      F v = to_float(acc[r][m]) * (s * set(scale[m]));
      if (w.bias) v = v + load(w.bias + row);
      store(y[m0 + m] + row, v);
    }
  }
}

// ---- float products: per output, K_BLOCK columns at a time in order by fused multiply-add, block sums added in order.

template <int NR, int M>
INL void tile_f32(const Matrix& w, int p, const float* x, size_t stride, const float*, const Rows& y, int m0) {
  size_t panel = (size_t)w.kp * PANEL;
  const float* base = (const float*)w.w + p * panel;
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
        const float* at = base + r * panel + (size_t)k * PANEL;
        if (m0 == 0) __builtin_prefetch((const char*)at + AHEAD<NR>);
        wv[r] = load(at);
      }
      for (int m = 0; m < M; m++) {
        F xv = set(x[m * stride + k]);
        for (int r = 0; r < NR; r++) acc[r][m] = fma(wv[r], xv, acc[r][m]);
      }
    }
    for (int r = 0; r < NR; r++)
      for (int m = 0; m < M; m++) total[r][m] = total[r][m] + acc[r][m];
  }
  for (int r = 0; r < NR; r++) {
    int row = (p + r) * PANEL;
    for (int m = 0; m < M; m++) {
      F v = total[r][m];
      if (w.bias) v = v + load(w.bias + row);
      store(y[m0 + m] + row, v);
    }
  }
}

#define STENO_MATMUL(name, tile, T)                                                                                     \
  template <int NR>                                                                                                     \
  INL void name##_rows(const Matrix& w, int p, int rows, const T* x, size_t stride, const float* scale, const Rows& y) { \
    for (int m = 0; m < rows;) {                                                                                        \
      const T* xm = x + m * stride;                                                                                     \
      const float* sm = scale ? scale + m : nullptr;                                                                    \
      int left = rows - m;                                                                                              \
      if constexpr (NR <= TALL && TALL_ROWS >= 8) {                                                                     \
        if (left >= 8) { tile<NR, 8>(w, p, xm, stride, sm, y, m); m += 8; continue; }                                    \
        if (left == 7) { tile<NR, 7>(w, p, xm, stride, sm, y, m); m += 7; continue; }                                    \
        if (left == 6) { tile<NR, 6>(w, p, xm, stride, sm, y, m); m += 6; continue; }                                    \
        if (left == 5) { tile<NR, 5>(w, p, xm, stride, sm, y, m); m += 5; continue; }                                    \
      }                                                                                                                 \
      if constexpr (NR <= TALL || WIDE_ROWS >= 4) {                                                                     \
        if (left >= 4) { tile<NR, 4>(w, p, xm, stride, sm, y, m); m += 4; continue; }                                    \
        if (left == 3) { tile<NR, 3>(w, p, xm, stride, sm, y, m); m += 3; continue; }                                    \
      }                                                                                                                 \
      if (left >= 2) { tile<NR, 2>(w, p, xm, stride, sm, y, m); m += 2; continue; }                                      \
      tile<NR, 1>(w, p, xm, stride, sm, y, m);                                                                          \
      m += 1;                                                                                                           \
    }                                                                                                                   \
  }                                                                                                                     \
  void name##_range(const Matrix& w, int p0, int p1, int rows, const T* x, size_t stride, const float* scale,           \
                    const Rows& y) {                                                                                    \
    int p = p0;                                                                                                         \
    if (rows <= WIDE_ROWS)                                                                                              \
      for (; p + WIDE <= p1; p += WIDE) name##_rows<WIDE>(w, p, rows, x, stride, scale, y);                             \
    if constexpr (TALL > 1)                                                                                             \
      for (; p + TALL <= p1; p += TALL) name##_rows<TALL>(w, p, rows, x, stride, scale, y);                             \
    for (; p < p1; p++) name##_rows<1>(w, p, rows, x, stride, scale, y);                                                \
  }

STENO_MATMUL(i8, tile_i8, int8_t)
STENO_MATMUL(f32, tile_f32, float)

}  // namespace

void matmul_i8(const Matrix& w, int p0, int p1, int rows, const int8_t* x, size_t stride, const float* scale, const Rows& y) {
  i8_range(w, p0, p1, rows, x, stride, scale, y);
}
void matmul_f32(const Matrix& w, int p0, int p1, int rows, const float* x, size_t stride, const Rows& y) {
  f32_range(w, p0, p1, rows, x, stride, nullptr, y);
}

}  // namespace steno::STENO_TARGET
