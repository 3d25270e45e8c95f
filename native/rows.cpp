// Work on single rows: norms, quantising activations, SwiGLU, rotation, and choosing among logits.
#include "arch.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

INL int32_t sum(I a) {
  int32_t lane[16], total = 0;
  store(lane, a);
  for (int j = 0; j < 16; j++) total += lane[j];
  return total;
}

// Sixteen numbers in [-128, 127] as bytes, or as unsigned bytes 128 larger.
INL void put_bytes(int8_t* q, I v, bool offset) {
#if defined(__AVX512F__)
  __m128i b = _mm512_cvtepi32_epi8((__m512i)v.v[0]);
  if (offset) b = _mm_xor_si128(b, _mm_set1_epi8((char)0x80));
  _mm_storeu_si128((__m128i*)q, b);
#else
  int32_t lane[16];
  store(lane, v);
  for (int j = 0; j < 16; j++) q[j] = (int8_t)(offset ? lane[j] ^ 0x80 : lane[j]);
#endif
}

}  // namespace

void norm(const float* x, const float* w, float eps, int d, float* out) {
  int dp = round_up(d, LANES);
  F s = set(0.0f);
  for (int k = 0; k < dp; k += LANES) s = fma(load(x + k), load(x + k), s);
  float r = 1.0f / __builtin_sqrtf(tree(s) / (float)d + eps);
  for (int k = 0; k < dp; k += LANES) store(out + k, load(x + k) * set(r) * load(w + k));
}

// The largest magnitude is found on the bit patterns, where NaN is larger than everything: a NaN makes the scale, and so
// the whole product, NaN instead of a plausible number.
void quantise(const Matrix& w, const float* x, int8_t* q, float* scale, int32_t* sums) {
  int end = round_up(w.k, LANES);
  I top = set(0);
  for (int k = 0; k < end; k += LANES) {
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
  I part = set(0);
  for (int k = 0; k < end; k += LANES) {
    I v = nearest(load(x + k) * by);
    put_bytes(q + k, v, UNSIGNED_ACTS && w.kind == Matrix::I8);
    if (w.kind == Matrix::I4) {
      part = part + v;
      if ((k + LANES) % w.group == 0) {
        sums[k / w.group] = sum(part);
        part = set(0);
      }
    }
  }
  if (w.kind == Matrix::I4)
    for (int k = end; k < w.kp; k += LANES)  // the last group: zeros from here on
      if ((k + LANES) % w.group == 0) {
        sums[k / w.group] = sum(part);
        part = set(0);
      }
  __builtin_memset(q + end, 0, round_up(w.kp, 64) - end);
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

}  // namespace steno::STENO_TARGET
