// Drawing a token: standard Gumbel noise keyed by counters, and the largest sum of logit and noise.
//
// Words come from Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011). Of the four words
// of the key, two are Philox's key and two the upper half of its counter; ids 64 g + 16 r + j take word r of counter
// 16 g + j. All of it runs in the sixteen lanes and operations of lanes.h: the noise has the same bits everywhere.
#include "arch.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

struct Words { I r[4]; };

INL Words philox(I counter, const uint32_t* key) {
  Words w{{counter, set((int32_t)0), set((int32_t)key[2]), set((int32_t)key[3])}};
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    I low0, high0, low1, high1;
    multiply(w.r[0], 0xD2511F53u, low0, high0);
    multiply(w.r[2], 0xCD9E8D57u, low1, high1);
    w = {{high1 ^ w.r[1] ^ set((int32_t)k0), low1, high0 ^ w.r[3] ^ set((int32_t)k1), low0}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return w;
}

// -ln(-ln(1 - v)) for v = (word + 1/2) / 2^32. Where the noise is large v is small, and floats are fine there; ln(1 - v)
// is taken as v ln(y) / (1 - y) with y = 1 - v rounded, which is exact to the last bits for small v (Kahan).
INL F gumbel_of(I word) {
  // Upper and lower half apart, because lanes convert signed numbers.
  F v = fma(to_float(shift_zeros(word, 16)), set(0x1p-16f), (to_float(word & set((int32_t)0xFFFF)) + set(0.5f)) * set(0x1p-32f));
  F y = set(1.0f) - v;
  y = pick(y < set(0x1p-24f), set(0x1p-24f), y);
  F d = set(1.0f) - y;
  I flat = d < set(0x1p-25f);  // y is 1: -ln(1 - v) is v
  F e = pick(flat, v, v * (set(0.0f) - log(y)) / pick(flat, set(1.0f), d));
  return set(0.0f) - log(e);
}

// Noise of ids [from, from + n); from is a multiple of 64.
void gumbel_from(const uint32_t* key, int from, int n, float* out) {
  int32_t index[16];
  for (int j = 0; j < 16; j++) index[j] = j;
  I lane = load(index);
  for (int i = 0; i < n; i += 64) {
    Words w = philox(lane + set((int32_t)((from + i) / 4)), key);
    for (int r = 0; r < 4 && i + 16 * r < n; r++) {
      F g = gumbel_of(w.r[r]);
      int at = i + 16 * r;
      if (at + LANES <= n) {
        store(out + at, g);
      } else {
        float rest[16];
        store(rest, g);
        for (int j = 0; at + j < n; j++) out[at + j] = rest[j];
      }
    }
  }
}

}  // namespace

void gumbel(const uint32_t* key, int n, float* out) { gumbel_from(key, 0, n, out); }

// Noise a block at a time, so that it never leaves the nearest cache.
int draw(const uint32_t* key, const float* logits, int n) {
  constexpr int BLOCK = 1024;
  float noise[BLOCK], best = -__builtin_inff();
  int found = 0;
  for (int from = 0; from < n; from += BLOCK) {
    int some = n - from < BLOCK ? n - from : BLOCK;
    gumbel_from(key, from, some, noise);
    for (int j = 0; j + LANES <= some; j += LANES) store(noise + j, load(noise + j) + load(logits + from + j));
    for (int j = some / LANES * LANES; j < some; j++) noise[j] = noise[j] + logits[from + j];
    float top;
    int at = argmax(noise, 0, some, &top);
    if (top > best) {
      best = top;
      found = from + at;
    }
  }
  return found;
}

}  // namespace steno::STENO_TARGET
