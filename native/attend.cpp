// Attention of up to QUERIES queries over the committed tokens of a row and their own staged ones.
//
// Two passes over the slots, one for scores and one for values. Sealed tokens are unpacked some panels of 16 slots at a
// time into scratch that stays in the first cache, once for all queries; from there on they are floats like the others,
// so that neither the order of a sum nor any of its bits depends on what is sealed.
#include "arch.h"
#include "codes.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

struct Span { int from, to; };

// What all queries of a call see between them: some first slots, and the newest.
struct Sight {
  Span lead, rest;  // committed slots; lead ends at or before the panel in which rest begins
  int end;          // of the slots, staged ones included, that any query sees; a multiple of 16
};

Sight sight(const Attend& a) {
  int from = a.from[0], low = a.low[0], deep = 0;
  for (int q = 0; q < a.queries; q++) {
    from = a.from[q] < from ? a.from[q] : from;
    low = a.low[q] < low ? a.low[q] : low;
    deep = a.path_len[q] > deep ? a.path_len[q] : deep;
  }
  low = low < a.length ? low : a.length;
  int lead = a.lead < a.length ? a.lead : a.length;
  Sight s{{from, lead}, {low, a.length}, round_up(a.length + deep, LANES)};
  if (lead <= from) s.lead = {low, low};
  else if (low / LANES * LANES < round_up(lead, LANES)) s.rest.from = from < low ? from : low, s.lead = {s.rest.from, s.rest.from};
  return s;
}

int least(int a, int b) { return a < b ? a : b; }

// The part of `page` of sealed tokens after this one, to be fetched while this one is unpacked; null where there is none.
INL const uint8_t* after(const Attend& a, int page) {
  return (page + 1) * a.sealed.slots < a.seal ? a.sealed.page[page + 1] + a.sealed.at : nullptr;
}

INL void fetch_part(const uint8_t* page, size_t from, size_t count) {
  for (size_t i = 0; page && i < count; i += 64) fetch(page + from + i);
}

// Panels [panel, panel + count) of sealed keys, within one page, as floats [count][head_dim][16].
void unpack_keys(const Attend& a, int panel, int count, float* out) {
  const Coding& c = a.coding;
  int per_page = a.sealed.slots / LANES, d = a.head_dim;
  const uint8_t *base = a.sealed.page[panel / per_page] + a.sealed.at, *next = after(a, panel / per_page);
  size_t table = table_bytes(c.key_bits, d);
  float* scale = out + (size_t)panels_at_once(a.head_pad) * LANES * a.head_pad;
  float* zero = scale + (size_t)LANES * a.head_pad;
  F lift = set((float)(1 << (c.key_bits - 1)));
  int have = -1;
  for (int i = 0, n; i < count; i += n, panel += n) {
    int local = panel % per_page;
    const uint8_t* codes = base + local * table;
    float* to = out + (size_t)i * d * LANES;
    fetch_part(next, local * table, table);
    n = 1;
    if (c.key_bits == 16) {
      spread_halves(codes, d, to, LANES);
      continue;
    }
    const uint16_t* scales = (const uint16_t*)(base + a.places.key_scales);
    auto group = [&](int g) { return scales + (size_t)g * 2 * a.head_pad; };
    if (c.group % LANES == 0) {
      int g = local * LANES / c.group;
      if (g != have) fetch_part(next, a.places.key_scales + (size_t)g * 4 * a.head_pad, 4 * a.head_pad);
      for (int j = 0; j < a.head_pad && g != have; j += LANES) {
        F s = halves(group(g) + j);
        store(scale + j, s);
        store(zero + j, halves(group(g) + a.head_pad + j) + s * lift);
      }
      have = g;
      if (i + 1 < count && (local + 1) * LANES / c.group == g) {
        n = 2;
        fetch_part(next, (local + 1) * table, table);
        spread<false, 2>(c.key_bits, codes, table, d, scale, zero, to, (size_t)d * LANES, LANES);
      } else {
        spread<false, 1>(c.key_bits, codes, table, d, scale, zero, to, 0, LANES);
      }
    } else {
      for (int lane = 0; lane < LANES; lane++) {
        const uint16_t* g = group((local * LANES + lane) / c.group);
        for (int j = 0; j < d; j++) {
          scale[j * LANES + lane] = whole(g[j]);
          zero[j * LANES + lane] = whole(g[a.head_pad + j]);
        }
      }
      for (int j = 0; j < d; j++) store(zero + j * LANES, load(zero + j * LANES) + load(scale + j * LANES) * lift);
      spread<true, 1>(c.key_bits, codes, table, d, scale, zero, to, 0, LANES);
    }
  }
}

// The same of values, as floats [count * 16][head_pad].
void unpack_values(const Attend& a, int panel, int count, float* out) {
  const Coding& c = a.coding;
  int per_page = a.sealed.slots / LANES, blocks = a.head_pad / LANES, groups = a.head_dim / c.channels;
  const uint8_t *base = a.sealed.page[panel / per_page] + a.sealed.at, *next = after(a, panel / per_page);
  size_t table = table_bytes(c.value_bits, LANES), pad = a.head_pad;
  float* scale = out + (size_t)panels_at_once(a.head_pad) * LANES * pad;
  float* zero = scale + LANES * pad;
  F lift = set((float)(1 << (c.value_bits - 1)));
  for (int i = 0; i < count; i++, panel++) {
    int local = panel % per_page;
    const uint8_t* codes = base + a.places.values + (size_t)local * blocks * table;
    float* to = out + (size_t)i * LANES * pad;
    fetch_part(next, a.places.values + (size_t)local * blocks * table, blocks * table);
    if (c.value_bits == 16) {
      for (int b = 0; b < blocks; b++) spread_halves(codes + b * table, LANES, to + b * LANES, pad);
      continue;
    }
    const uint16_t* scales = (const uint16_t*)(base + a.places.value_scales) + (size_t)local * groups * 2 * LANES;
    fetch_part(next, a.places.value_scales + (size_t)local * groups * 4 * LANES, groups * 4 * LANES);
    if (c.channels % LANES == 0 || groups == 1) {
      for (int g = 0; g < groups; g++) {
        F s = halves(scales + g * 2 * LANES);
        store(scale + g * LANES, s);
        store(zero + g * LANES, halves(scales + (g * 2 + 1) * LANES) + s * lift);
      }
      for (int b = 0, n; b < blocks; b += n) {
        int g = groups == 1 ? 0 : b * LANES / c.channels;
        const float *s = scale + g * LANES, *z = zero + g * LANES;
        n = b + 1 < blocks && (groups == 1 || (b + 1) * LANES / c.channels == g) ? 2 : 1;
        if (n == 2) spread<false, 2>(c.value_bits, codes + b * table, table, LANES, s, z, to + b * LANES, LANES, pad);
        else spread<false, 1>(c.value_bits, codes + b * table, table, LANES, s, z, to + b * LANES, 0, pad);
      }
    } else {
      for (int b = 0; b < blocks; b++) {
        for (int lane = 0; lane < LANES; lane++) {
          const uint16_t* g = scales + least((b * LANES + lane) / c.channels, groups - 1) * 2 * LANES;
          for (int j = 0; j < LANES; j++) {
            scale[j * LANES + lane] = whole(g[j]);
            zero[j * LANES + lane] = whole(g[LANES + j]);
          }
        }
        for (int j = 0; j < LANES; j++) store(zero + j * LANES, load(zero + j * LANES) + load(scale + j * LANES) * lift);
        spread<true, 1>(c.value_bits, codes + b * table, table, LANES, scale, zero, to + b * LANES, 0, pad);
      }
    }
  }
}

// What comes next in memory, and which share of it turn `turn` of `turns` fetches. A page's part of a layer and head is a
// few KB, the processor's own fetching begins anew at each, and the queries of a step go over it several times:
// the next part is fetched evenly meanwhile, so that waiting for memory and arithmetic overlap.
struct Ahead {
  const float* next;  // null for none
  int turn, turns;
  Span mine(int n) const { return next ? Span{n * turn / turns, n * (turn + 1) / turns} : Span{0, 0}; }
};

// Scores of QB queries against B blocks of 16 keys: a lane is a key, the sum over the head runs in order inside it.
template <int QB, int B>
INL void score_blocks(const Attend& a, int q0, const float* keys, const Ahead& ahead, float* out, size_t stride) {
  F acc[QB][B];
  Span lines = ahead.mine(B * a.head_dim);
  const float* next = ahead.next + (size_t)lines.from * LANES;
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < B; b++) acc[q][b] = set(0.0f);
  auto add = [&](int d) __attribute__((always_inline)) {
    F k[B];
    for (int b = 0; b < B; b++) k[b] = load(keys + ((size_t)b * a.head_dim + d) * LANES);
    for (int q = 0; q < QB; q++) {
      F x = set(a.query[q0 + q][d]);
      for (int b = 0; b < B; b++) acc[q][b] = fma(k[b], x, acc[q][b]);
    }
  };
  int d = 0;
  for (; d * B < lines.to - lines.from; d++) {
    add(d);
    for (int b = 0; b < B; b++) fetch(next + (size_t)(d * B + b) * LANES);
  }
  for (; d < a.head_dim; d++) add(d);
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < B; b++) store(out + (q0 + q) * stride + b * LANES, acc[q][b]);
}

template <int QB>
void score_tile(const Attend& a, int q0, const float* keys, Ahead ahead, int blocks, float* out, size_t stride) {
#if defined(__AVX512F__)
  constexpr int B = QB <= 2 ? 4 : 2;
#else
  constexpr int B = QB <= 2 ? 2 : 1;
#endif
  size_t block = (size_t)a.head_dim * LANES;
  const float* next = ahead.next;
  auto at = [&](int b) { return Ahead{next ? next + b * block : nullptr, ahead.turn, ahead.turns}; };
  int b = 0;
  for (; b + B <= blocks; b += B) score_blocks<QB, B>(a, q0, keys + b * block, at(b), out + b * LANES, stride);
  for (; b < blocks; b++) score_blocks<QB, 1>(a, q0, keys + b * block, at(b), out + b * LANES, stride);
}

// `next` may be null.
void score(const Attend& a, const float* keys, const float* next, int blocks, float* out, size_t stride) {
  Ahead ahead{next, 0, (a.queries + TILE - 1) / TILE};
  for (int q = 0; q < a.queries; q += TILE, ahead.turn++) {
    switch (least(TILE, a.queries - q)) {
      case 1: score_tile<1>(a, q, keys, ahead, blocks, out, stride); break;
      case 2: score_tile<2>(a, q, keys, ahead, blocks, out, stride); break;
      case 3: score_tile<3>(a, q, keys, ahead, blocks, out, stride); break;
      case 4: score_tile<4>(a, q, keys, ahead, blocks, out, stride); break;
    }
  }
}

// Scores of the panels that hold the slots of a span.
void score_span(const Attend& a, Span s) {
  int d = a.head_dim, most = panels_at_once(a.head_pad), open_panels = a.open.slots / LANES, sealed_panels = a.sealed.slots / LANES;
  int whole = a.seal / LANES;
  if (s.from >= s.to) return;
  for (int p = s.from / LANES, end = (s.to + LANES - 1) / LANES, n; p < end; p += n) {
    const float* open = p >= whole ? (const float*)(a.open.page[p / open_panels] + a.open.at) + (size_t)(p % open_panels) * d * LANES : nullptr;
    const float *keys = open, *next = nullptr;
    if (p < whole) {
      n = least(least(most, least(whole, end) - p), sealed_panels - p % sealed_panels);
      unpack_keys(a, p, n, a.unpacked);
      keys = a.unpacked;
    } else if (p * LANES < a.seal) {
      n = 1;
      unpack_keys(a, p, n, a.unpacked);
      for (int j = 0; j < d; j++)
        for (int lane = a.seal % LANES; lane < LANES; lane++) a.unpacked[j * LANES + lane] = open[j * LANES + lane];
      keys = a.unpacked;
    } else {
      n = least(end - p, open_panels - p % open_panels);
      if (p / open_panels + 1 < (end + open_panels - 1) / open_panels)
        next = (const float*)(a.open.page[p / open_panels + 1] + a.open.at) + (size_t)(p % open_panels) * d * LANES;
    }
    score(a, keys, next, n, a.scores + (size_t)p * LANES, a.score_stride);
  }
}

// Scores of a query in the panels of the given spans become weights e^(s - max), zero where it sees nothing. Returns
// their sum: 16 lanes (slot mod 16) within a chunk of CHUNK slots, chunks added in order, both counted from slot 0.
INL float soften(float* s, const Span* spans, int from, int lead, int low, int count) {
  const float none = -__builtin_inff();
  lead = lead > from ? lead : from;
  F top = set(none);
  for (int i = 0; i < 2; i++) {
    int start = spans[i].from, end = spans[i].to;
    for (int j = start; j < least(from, end); j++) s[j] = none;
    for (int j = start > lead ? start : lead; j < least(low, end); j++) s[j] = none;
    for (int j = start > count ? start : count; j < end; j++) s[j] = none;
    for (int j = start; j < end; j += LANES) top = larger(load(s + j), top);
  }
  float lane[16], peak = none;
  store(lane, top);
  for (int j = 0; j < 16; j++) peak = lane[j] > peak ? lane[j] : peak;
  float total = 0;
  F part = set(0.0f);
  int chunk = 0;
  for (int i = 0; i < 2; i++)
    for (int j = spans[i].from; j < spans[i].to; j += LANES) {
      if (j / CHUNK != chunk) {
        total = total + tree(part);
        part = set(0.0f);
        chunk = j / CHUNK;
      }
      F e = exp(load(s + j) - set(peak));
      store(s + j, e);
      part = part + e;
    }
  return total + tree(part);
}

// Adds n rows of values, weighted, to the running sums of QB queries, in order.
template <int QB, int NB>
INL void add_block(const Attend& a, int q0, const float* rows, const Ahead& ahead, int slot, int n, int column, float* sums) {
  size_t pad = a.head_pad;
  Span mine = ahead.mine(n);
  const float* next = ahead.next + mine.from * pad + column;
  F acc[QB][NB];
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < NB; b++) acc[q][b] = load(sums + (q0 + q) * pad + column + b * LANES);
  const float* weight = a.scores + q0 * a.score_stride + slot;
  auto add = [&](int j) __attribute__((always_inline)) {
    F v[NB];
    for (int b = 0; b < NB; b++) v[b] = load(rows + j * pad + column + b * LANES);
    for (int q = 0; q < QB; q++) {
      F p = set(weight[q * a.score_stride + j]);
      for (int b = 0; b < NB; b++) acc[q][b] = fma(v[b], p, acc[q][b]);
    }
  };
  int j = 0;
  for (; j < mine.to - mine.from; j++) {
    add(j);
    for (int b = 0; b < NB; b++) fetch(next + j * pad + b * LANES);
  }
  for (; j < n; j++) add(j);
  for (int q = 0; q < QB; q++)
    for (int b = 0; b < NB; b++) store(sums + (q0 + q) * pad + column + b * LANES, acc[q][b]);
}

template <int QB>
void add_tile(const Attend& a, int q0, const float* rows, const Ahead& ahead, int slot, int n, float* sums) {
  int c = 0;
#if defined(__AVX512F__)
  for (; c + 4 * LANES <= a.head_pad; c += 4 * LANES) add_block<QB, 4>(a, q0, rows, ahead, slot, n, c, sums);
#endif
  for (; c < a.head_pad; c += LANES) add_block<QB, 1>(a, q0, rows, ahead, slot, n, c, sums);
}

// `next`, the same rows of the next page, may be null.
void add_rows(const Attend& a, int q0, int q1, const float* rows, const float* next, int slot, int n, float* sums) {
  Ahead ahead{next, 0, (q1 - q0 + TILE - 1) / TILE};
  for (int q = q0; q < q1; q += TILE, ahead.turn++) {
    switch (least(TILE, q1 - q)) {
      case 1: add_tile<1>(a, q, rows, ahead, slot, n, sums); break;
      case 2: add_tile<2>(a, q, rows, ahead, slot, n, sums); break;
      case 3: add_tile<3>(a, q, rows, ahead, slot, n, sums); break;
      case 4: add_tile<4>(a, q, rows, ahead, slot, n, sums); break;
    }
  }
}

// Sums of values: slots in order inside a chunk (`sums`), chunks added in order (`totals`).
struct Sums {
  float *sums, *totals;
  size_t pad;
  int chunk = 0;
  void fold(int q0, int q1) const {
    for (size_t j = q0 * pad; j < q1 * pad; j += LANES) {
      store(totals + j, load(totals + j) + load(sums + j));
      store(sums + j, set(0.0f));
    }
  }
};

void add_span(const Attend& a, Span s, Sums& sums) {
  int most = panels_at_once(a.head_pad) * LANES;
  size_t pad = a.head_pad;
  for (int j = s.from, n; j < s.to; j += n) {
    if (j / CHUNK != sums.chunk) {
      sums.fold(0, a.queries);
      sums.chunk = j / CHUNK;
    }
    int stop = least(s.to, (j / CHUNK + 1) * CHUNK);
    const float *rows, *next = nullptr;
    if (j < a.seal) {
      int first = j / LANES, page_end = (j / a.sealed.slots + 1) * a.sealed.slots;
      stop = least(least(stop, a.seal), least(page_end, first * LANES + most));
      unpack_values(a, first, (stop - first * LANES + LANES - 1) / LANES, a.unpacked);
      rows = a.unpacked + (j % LANES) * pad;
    } else {
      int local = j % a.open.slots, page = j / a.open.slots;
      auto values = [&](int page) { return (const float*)(a.open.page[page] + a.open.at) + (size_t)a.open.slots * a.head_dim + local * pad; };
      stop = least(stop, j - local + a.open.slots);
      rows = values(page);
      if ((page + 1) * a.open.slots < s.to) next = values(page + 1);
    }
    n = stop - j;
    add_rows(a, 0, a.queries, rows, next, j, n, sums.sums);
  }
}

// Staged values. Queries whose paths are the nodes in order share them; others differ from query to query.
void add_staged(const Attend& a, Sums& sums) {
  size_t pad = a.head_pad;
  for (int q = 0, next; q < a.queries; q = next) {
    bool chain = a.chain[q];
    int deep = a.path_len[q];
    for (next = q + 1; next < a.queries && chain && a.chain[next]; next++) deep = a.path_len[next] > deep ? a.path_len[next] : deep;
    int chunk = sums.chunk;
    for (int i = 0, n; i < deep; i += n) {
      int slot = a.length + i;
      if (slot / CHUNK != chunk) {
        sums.fold(q, next);
        chunk = slot / CHUNK;
      }
      n = chain ? least(deep - i, (chunk + 1) * CHUNK - slot) : 1;
      add_rows(a, q, next, a.staged_values + (size_t)(chain ? i : a.path[q][i]) * pad, nullptr, slot, n, sums.sums);
    }
  }
}

}  // namespace

void attend(const Attend& a) {
  Sight s = sight(a);
  score_span(a, s.lead);
  score_span(a, s.rest);
  score(a, a.staged_keys, nullptr, (a.staged + LANES - 1) / LANES, a.staged_scores, MAX_WIDTH);
  // Whole panels; where nothing committed is seen the slots begin with the staged ones.
  Span spans[2] = {{s.lead.from / LANES * LANES, round_up(s.lead.to, LANES)}, {s.rest.from / LANES * LANES, s.end}};
  if (s.lead.from >= s.lead.to) spans[0].to = spans[0].from;
  float part[QUERIES];
  for (int q = 0; q < a.queries; q++) {
    float* w = a.scores + q * a.score_stride;
    const float* staged = a.staged_scores + (size_t)q * MAX_WIDTH;
    for (int i = 0; i < a.path_len[q]; i++) w[a.length + i] = staged[a.path[q][i]];
    part[q] = soften(w, spans, a.from[q], a.lead, a.low[q], a.length + a.path_len[q]);
  }
  size_t pad = a.head_pad, all = a.queries * pad;
  Sums sums{a.sums, a.sums + QUERIES * pad, pad};
  for (size_t j = 0; j < all; j += LANES) {
    store(sums.sums + j, set(0.0f));
    store(sums.totals + j, set(0.0f));
  }
  add_span(a, s.lead, sums);
  add_span(a, s.rest, sums);
  add_staged(a, sums);
  for (int q = 0; q < a.queries; q++) {
    F by = set(1.0f / part[q]);
    for (int c = 0; c < a.head_pad; c += LANES) {
      F r = (load(sums.totals + q * pad + c) + load(sums.sums + q * pad + c)) * by;
      if (c + LANES <= a.head_dim) {
        store(a.out[q] + c, r);
      } else {
        float lane[16];
        store(lane, r);
        for (int j = 0; c + j < a.head_dim; j++) a.out[q][c + j] = lane[j];
      }
    }
  }
}

}  // namespace steno::STENO_TARGET
