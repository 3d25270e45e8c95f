// The arithmetic. Compiled once per instruction set; see lanes.h for why all of them give the same bits.
#include "kernels.h"

#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

// ---- rows

void norm(const float* x, const float* w, float eps, int d, float* out) {
  int dp = round_up(d, LANES);
  F s = set(0.0f);
  for (int k = 0; k < dp; k += LANES) s = fma(load(x + k), load(x + k), s);
  float r = 1.0f / __builtin_sqrtf(tree(s) / (float)d + eps);
  for (int k = 0; k < dp; k += LANES) store(out + k, load(x + k) * set(r) * load(w + k));
}

// The largest magnitude is found on the bit patterns, where NaN is larger than everything: a NaN makes the scale, and so
// the whole product, NaN instead of a plausible number.
void quantise(const float* x, int kp, int8_t* q, float* scale) {
  I top = set(0);
  for (int k = 0; k < kp; k += LANES) {
    I a = bits(load(x + k)) & set((int32_t)0x7FFFFFFF);
    top = pick(a > top, a, top);
  }
  int32_t lane[16], best = 0;
  store(lane, top);
  for (int j = 0; j < 16; j++) best = lane[j] > best ? lane[j] : best;
  float peak;
  __builtin_memcpy(&peak, &best, 4);
  bool zero = peak < 1e-30f;
  *scale = zero ? 0.0f : peak / 127.0f;
  F by = set(zero ? 0.0f : 127.0f / peak);
  for (int k = 0; k < kp; k += LANES) {
    I v = nearest(load(x + k) * by);
#if defined(__AVX512F__)
    __m128i b = _mm512_cvtepi32_epi8((__m512i)v.v[0]);
#if defined(__AVX512VNNI__)
    b = _mm_xor_si128(b, _mm_set1_epi8((char)0x80));
#endif
    _mm_storeu_si128((__m128i*)(q + k), b);
#else
    store(lane, v);
    for (int j = 0; j < 16; j++) q[k + j] = (int8_t)lane[j];
#endif
  }
}

void add(float* x, const float* y, int n) {
  for (int k = 0; k < n; k += LANES) store(x + k, load(x + k) + load(y + k));
}

void swiglu(const float* gate, const float* up, float* out, int n) {
  for (int k = 0; k < n; k += LANES) {
    F g = load(gate + k);
    store(out + k, g * load(up + k) / (set(1.0f) + exp(set(0.0f) - g)));
  }
}

void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int j = 0; j < half; j++) {
    float a = x[j], b = x[j + half];
    x[j] = a * cos[j] - b * sin[j];
    x[j + half] = b * cos[j] + a * sin[j];
  }
}

void scale(float* x, float by, int n) {
  for (int j = 0; j < n; j++) x[j] = x[j] * by;
}

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
// saturate 16 bits (the plain maddubs of w + 128 can, and does).
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

void matmul_i8(const Matrix& w, int p0, int p1, int rows, const int8_t* x, size_t stride, const float* scale, const Rows& y) {
  i8_range(w, p0, p1, rows, x, stride, scale, y);
}
void matmul_f32(const Matrix& w, int p0, int p1, int rows, const float* x, size_t stride, const Rows& y) {
  f32_range(w, p0, p1, rows, x, stride, nullptr, y);
}

// ---- attention

// Scores of QB queries against B blocks of 16 keys: a lane is a key, the sum over the head runs in order inside it.
template <int QB, int B>
INL void score_blocks(const Attend& a, const float* keys, float* out, size_t stride) {
  F acc[QB][B];
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < B; b++) acc[q][b] = set(0.0f);
  for (int d = 0; d < a.head_dim; d++) {
    F k[B];
    for (int b = 0; b < B; b++) k[b] = load(keys + ((size_t)b * a.head_dim + d) * LANES);
    for (int q = 0; q < QB; q++) {
      F x = set(a.query[q][d]);
      for (int b = 0; b < B; b++) acc[q][b] = fma(k[b], x, acc[q][b]);
    }
  }
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < B; b++) store(out + q * stride + b * LANES, acc[q][b]);
}

template <int QB>
INL void score(const Attend& a, const float* keys, int blocks, float* out, size_t stride) {
#if defined(__AVX512F__)
  constexpr int B = QB <= 2 ? 4 : 2;
#else
  constexpr int B = QB <= 2 ? 2 : 1;
#endif
  int b = 0;
  size_t block = (size_t)a.head_dim * LANES;
  for (; b + B <= blocks; b += B) score_blocks<QB, B>(a, keys + b * block, out + b * LANES, stride);
  for (; b < blocks; b++) score_blocks<QB, 1>(a, keys + b * block, out + b * LANES, stride);
}

// Scores of slots [low, count) become weights e^(s - max), zero elsewhere in the touched blocks. Returns their sum: 16
// lanes (slot mod 16) within a chunk of CHUNK slots, chunks added in order, both by absolute slot.
INL float soften(float* s, int base, int low, int count) {
  int end = round_up(count, LANES);
  const float none = -__builtin_inff();
  for (int j = base; j < low; j++) s[j - base] = none;
  for (int j = count; j < end; j++) s[j - base] = none;
  F top = set(none);
  for (int j = base; j < end; j += LANES) top = larger(load(s + j - base), top);
  float lane[16], peak = none;
  store(lane, top);
  for (int j = 0; j < 16; j++) peak = lane[j] > peak ? lane[j] : peak;
  float total = 0;
  for (int j = base; j < end;) {
    int stop = (j / CHUNK + 1) * CHUNK;
    stop = stop < end ? stop : end;
    F part = set(0.0f);
    for (; j < stop; j += LANES) {
      F e = exp(load(s + j - base) - set(peak));
      store(s + j - base, e);
      part = part + e;
    }
    total = total + tree(part);
  }
  return total;
}

// Weighted sum of values for NB blocks of 16 columns: slots in order inside a chunk, chunks added in order. The staged
// slots differ from query to query, so they come after the shared ones, one query at a time.
template <int QB, int NB>
INL void gather_values(const Attend& a, int column, int base, const float* sums) {
  F total[QB][NB], acc[QB][NB];
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < NB; b++) total[q][b] = acc[q][b] = set(0.0f);
  for (int j = base; j < a.length;) {
    int stop = (j / CHUNK + 1) * CHUNK;
    bool whole = stop <= a.length;
    stop = whole ? stop : a.length;
    for (; j < stop; j++) {
      F v[NB];
      for (int b = 0; b < NB; b++) v[b] = load(a.values + (size_t)j * a.head_pad + column + b * LANES);
      for (int q = 0; q < QB; q++) {
        F p = set(a.scores[q * a.score_stride + j - base]);
        for (int b = 0; b < NB; b++) acc[q][b] = fma(v[b], p, acc[q][b]);
      }
    }
    if (whole)
      for (int q = 0; q < QB; q++)
        for (int b = 0; b < NB; b++) {
          total[q][b] = total[q][b] + acc[q][b];
          acc[q][b] = set(0.0f);
        }
  }
  for (int q = 0; q < QB; q++) {
    F t[NB], c[NB];
    for (int b = 0; b < NB; b++) { t[b] = total[q][b]; c[b] = acc[q][b]; }
    for (int i = 0; i < a.path_len[q]; i++) {
      int slot = a.length + i;
      F p = set(a.scores[q * a.score_stride + slot - base]);
      const float* v = a.staged_values + (size_t)a.path[q][i] * a.head_pad + column;
      for (int b = 0; b < NB; b++) c[b] = fma(load(v + b * LANES), p, c[b]);
      if ((slot + 1) % CHUNK == 0)
        for (int b = 0; b < NB; b++) { t[b] = t[b] + c[b]; c[b] = set(0.0f); }
    }
    F by = set(1.0f / sums[q]);
    for (int b = 0; b < NB; b++) {
      int c0 = column + b * LANES;
      F r = (t[b] + c[b]) * by;
      if (c0 + LANES <= a.head_dim) {
        store(a.out[q] + c0, r);
      } else {
        float lane[16];
        store(lane, r);
        for (int j = 0; c0 + j < a.head_dim; j++) a.out[q][c0 + j] = lane[j];
      }
    }
  }
}

template <int QB>
void attend_some(const Attend& a) {
  int low = a.low[0];
  for (int q = 1; q < QB; q++) low = a.low[q] < low ? a.low[q] : low;
  int base = (low < a.length ? low : a.length) / LANES * LANES;
  int blocks = (a.length + LANES - 1) / LANES - base / LANES;
  score<QB>(a, a.keys + (size_t)(base / LANES) * a.head_dim * LANES, blocks, a.scores, a.score_stride);
  score<QB>(a, a.staged_keys, (a.staged + LANES - 1) / LANES, a.staged_scores, MAX_WIDTH);
  float sums[QB];
  for (int q = 0; q < QB; q++) {
    float* s = a.scores + q * a.score_stride;
    const float* staged = a.staged_scores + q * MAX_WIDTH;
    for (int i = 0; i < a.path_len[q]; i++) s[a.length + i - base] = staged[a.path[q][i]];
    sums[q] = soften(s, base, a.low[q], a.length + a.path_len[q]);
  }
  int c = 0;
#if defined(__AVX512F__)
  for (; c + 4 * LANES <= a.head_pad; c += 4 * LANES) gather_values<QB, 4>(a, c, base, sums);
#endif
  for (; c < a.head_pad; c += LANES) gather_values<QB, 1>(a, c, base, sums);
}

void attend(const Attend& a) {
  switch (a.queries) {
    case 1: attend_some<1>(a); break;
    case 2: attend_some<2>(a); break;
    case 3: attend_some<3>(a); break;
    default: attend_some<4>(a); break;
  }
}

// ---- choice

int argmax(const float* x, int from, int to, float* best) {
  const float none = -__builtin_inff();
  float peak = none;
  int j = from;
  F top = set(none);
  for (; j + LANES <= to; j += LANES) top = larger(load(x + j), top);
  float lane[16];
  store(lane, top);
  for (int i = 0; i < 16; i++) peak = lane[i] > peak ? lane[i] : peak;
  for (; j < to; j++) peak = x[j] > peak ? x[j] : peak;
  *best = peak;
  // Scanning again is cheaper than carrying an index vector: the row is in cache, and the scan stops at the hit.
  for (j = from; j < to; j++)
    if (x[j] == peak) return j;
  return from;
}

// A heap of the best so far, its root the worst of them; one comparison of 16 lanes skips almost everything.
void top(const float* x, int n, int count, int32_t* ids, float* values) {
  const float none = -__builtin_inff();
  // "a ranks below b"
  auto below = [](float av, int32_t ai, float bv, int32_t bi) { return av < bv || (av == bv && ai > bi); };
  auto sift = [&](int i, int size) {
    for (;;) {
      int c = 2 * i + 1;
      if (c >= size) return;
      if (c + 1 < size && below(values[c + 1], ids[c + 1], values[c], ids[c])) c++;
      if (!below(values[c], ids[c], values[i], ids[i])) return;
      float v = values[c]; values[c] = values[i]; values[i] = v;
      int32_t d = ids[c]; ids[c] = ids[i]; ids[i] = d;
      i = c;
    }
  };
  for (int j = 0; j < count; j++) {
    values[j] = x[j] == x[j] ? x[j] : none;
    ids[j] = j;
  }
  for (int i = count / 2 - 1; i >= 0; i--) sift(i, count);
  auto offer = [&](int j) {
    if (x[j] > values[0]) {
      values[0] = x[j];
      ids[0] = j;
      sift(0, count);
    }
  };
  int j = count;
  for (; j < n && j % LANES; j++) offer(j);
  for (; j + LANES <= n; j += LANES) {
    I more = load(x + j) > set(values[0]);
    int32_t lane[16], any = 0;
    store(lane, more);
    for (int i = 0; i < 16; i++) any |= lane[i];
    if (any)
      for (int i = 0; i < LANES; i++) offer(j + i);
  }
  for (; j < n; j++) offer(j);
  for (int size = count - 1; size > 0; size--) {
    float v = values[0]; values[0] = values[size]; values[size] = v;
    int32_t d = ids[0]; ids[0] = ids[size]; ids[size] = d;
    sift(0, size);
  }
}

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

}  // namespace

extern const Kernels table;
const Kernels table = {TEXT(STENO_TARGET), norm, quantise, matmul_i8, matmul_f32, add, swiglu, rotate, scale, attend, argmax, top};

}  // namespace steno::STENO_TARGET
