// Attention of up to QUERIES queries over the committed keys of a row and their own staged ones.
#include "arch.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

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

}  // namespace

void attend(const Attend& a) {
  switch (a.queries) {
    case 1: attend_some<1>(a); break;
    case 2: attend_some<2>(a); break;
    case 3: attend_some<3>(a); break;
    default: attend_some<4>(a); break;
  }
}

}  // namespace steno::STENO_TARGET
