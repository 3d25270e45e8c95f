#include "coder.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>

// The same source for several instruction sets where the tool chain can choose at load time; every operation is exact
// or rounded in one way only, so all versions agree.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define STENO_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define STENO_CLONES
#endif

namespace steno::coder {

void Tables::finish() {
  stretch.resize(4096);
  for (int i = 0; i < 4096; i++) stretch[i] = odds(2 * i + 1, 8191 - 2 * i);
}

int Tables::log(uint64_t x) const {
  int e = 63 - std::countl_zero(x);
  uint64_t m = e >= 11 ? x >> (e - 11) : x << (11 - e);
  return e * ln[2048] + ln[m - 2048];
}

int Tables::odds(uint64_t yes, uint64_t no) const { return std::clamp((log(yes) - log(no)) >> 8, -ODDS, ODDS); }

int Tables::squash(int x) const { return logistic[std::clamp(x, -ODDS, ODDS) + ODDS]; }

STENO_CLONES
static float largest(const float* x, int n) {
  float part[16];
  for (int j = 0; j < 16; j++) part[j] = -std::numeric_limits<float>::infinity();
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) part[j] = x[i + j] > part[j] ? x[i + j] : part[j];
  for (; i < n; i++) part[0] = x[i] > part[0] ? x[i] : part[0];
  float best = part[0];
  for (int j = 1; j < 16; j++) best = part[j] > best ? part[j] : best;
  return best;
}

STENO_CLONES
static void quantise(const float* x, int n, float best, int last, uint16_t* steps) {
  float end = (float)last;
  for (int i = 0; i < n; i++) {
    float d = (best - x[i]) * 16.0f;
    d = d < end ? d : end;  // not a number: the far end
    steps[i] = (uint16_t)(int32_t)(d + 0.5f);
  }
}

STENO_CLONES
static uint64_t total(const uint16_t* steps, int n, const uint32_t* table) {
  uint64_t sum = 0;
  for (int i = 0; i < n; i++) sum += table[steps[i]];
  return sum;
}

STENO_CLONES
static void lookup(const uint16_t* steps, int n, const uint32_t* table, uint32_t* out) {
  for (int i = 0; i < n; i++) out[i] = table[steps[i]];
}

// Frequencies sum to 2^28 at most.
STENO_CLONES
static uint32_t sum_of(const uint32_t* x, int n) {
  uint32_t sum = 0;
  for (int i = 0; i < n; i++) sum += x[i];
  return sum;
}

STENO_CLONES
static int first_zero(const uint16_t* x, int n) {
  int i = 0;
  for (; i + 64 <= n; i += 64) {
    uint16_t any = 0;
    for (int j = 0; j < 64; j++) any |= x[i + j] == 0;
    if (any) break;
  }
  while (i < n && x[i] != 0) i++;
  return i < n ? i : 0;
}

void frequencies(const Tables& t, const float* scores, int vocab, int bits, const int32_t* places, uint16_t* steps, uint32_t* out) {
  int last = (int)t.exp.size() - 1;
  float best = largest(scores, vocab);
  quantise(scores, vocab, best, last, steps);
  uint64_t mass = total(steps, vocab, t.exp.data());
  uint64_t scale = mass ? ((((uint64_t)1 << bits) - vocab) << 33) / mass : 0;
  uint32_t table[1024];
  for (int i = 0; i <= last; i++) table[i] = 1 + (uint32_t)((t.exp[i] * scale) >> 33);
  if (places)
    for (int i = 0; i < vocab; i++) out[places[i]] = table[steps[i]];
  else
    lookup(steps, vocab, table, out);
  uint32_t rest = (uint32_t)((uint64_t)1 << bits) - sum_of(out, vocab);
  int top = first_zero(steps, vocab);
  out[places ? places[top] : top] += rest;
}

// ---- range coder

void RangeEncoder::shift() {
  if (low_ < 0xff000000u || low_ > 0xffffffffu) {
    uint8_t carry = (uint8_t)(low_ >> 32);
    if (!first_) out_.push_back(cache_ + carry);  // the first byte is always 0 and is not written
    first_ = false;
    for (; pending_; pending_--) out_.push_back((uint8_t)(0xff + carry));
    cache_ = (uint8_t)(low_ >> 24);
  } else {
    pending_++;
  }
  low_ = (low_ & 0x00ffffffu) << 8;
}

void RangeEncoder::encode(uint32_t low, uint32_t freq, int bits) {
  uint32_t unit = range_ >> bits;
  low_ += (uint64_t)unit * low;
  range_ = unit * freq;
  while (range_ < (1u << 24)) {
    range_ <<= 8;
    shift();
  }
}

std::vector<uint8_t> RangeEncoder::finish() {
  // Of the numbers in [low, low + range), the one with most zeros at its end: the decoder reads zeros past the end.
  uint64_t high = low_ + range_ - 1;
  for (int zeros = 32; zeros >= 0; zeros--) {
    uint64_t value = high >> zeros << zeros;
    if (value >= low_) {
      low_ = value;
      break;
    }
  }
  for (int i = 0; i < 5; i++) shift();
  while (!out_.empty() && out_.back() == 0) out_.pop_back();
  return std::move(out_);
}

RangeDecoder::RangeDecoder(const uint8_t* data, size_t size) : data_(data, data + size) {
  for (int i = 0; i < 4; i++) code_ = code_ << 8 | next();
  overrun_ = 0;  // a short code may end within its first word
}

uint8_t RangeDecoder::next() {
  if (at_ < data_.size()) return data_[at_++];
  overrun_++;
  return 0;
}

uint32_t RangeDecoder::target(int bits) { return std::min(code_ / (range_ >> bits), (1u << bits) - 1); }

void RangeDecoder::consume(uint32_t low, uint32_t freq, int bits) {
  uint32_t unit = range_ >> bits;
  code_ -= unit * low;
  range_ = unit * freq;
  while (range_ < (1u << 24)) {
    range_ <<= 8;
    code_ = code_ << 8 | next();
  }
}

bool RangeDecoder::bit(uint32_t p) {
  bool one = code_ < (range_ >> 16) * p;
  consume(one ? 0 : p, one ? p : 65536 - p, 16);
  return one;
}

// ---- mixer

namespace {

constexpr int ORDERS = 6;                                 // hashed contexts
constexpr int LM = 0, TRIM = 1, UNI = 2, HASHED = 3, MATCH = HASHED + ORDERS, BIAS = MATCH + 1, INPUTS = BIAS + 1;
constexpr int GRID = 25;                                  // points of a correction curve
constexpr int MIN_MATCH = 4, MAX_MATCH = 32;
constexpr int SETS_A = 32 * 8, SETS_B = 16 * 8;

uint32_t scatter(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

struct Lane {
  uint32_t context[ORDERS] = {};
  int64_t match = -1;  // place in the history that follows the match
  int length = 0;
};

// A probability in Q22 with a count in the low 10 bits: its step is 1 / (count + 1.5), down to 1 / limit.
struct Rates {
  uint32_t step[1024];
  Rates() {
    for (int n = 0; n < 1024; n++) step[n] = 131072 / (2 * n + 3);
  }
};
const Rates rates;

inline void learn(uint32_t& e, int bit, uint32_t limit) {
  uint32_t n = e & 1023;
  int64_t p = e >> 10;
  p += ((((int64_t)bit << 22) - p) * rates.step[n]) >> 16;
  e = (uint32_t)p << 10 | (n < limit ? n + 1 : n);
}

}  // namespace

class Mixer {
 public:
  Mixer(const Tables& tables, int depth, int lanes, int64_t per_lane, int64_t symbols)
      : t(tables), depth(depth), lane(lanes), per_lane(per_lane), history(std::max<int64_t>(symbols, 1), OPEN) {
    int groups = (depth + 3) / 4;
    int size = 10;
    while (size < 20 && ((int64_t)1 << size) < symbols * groups * 3 / 2) size++;
    mask = (1u << size) - 1;
    for (auto& table : tables_) table.assign((size_t)16 << size, 0);
    int match_size = 10;
    while (match_size < 22 && ((int64_t)1 << match_size) < symbols * 2) match_size++;
    match_mask = (1u << match_size) - 1;
    matches.assign((size_t)1 << match_size, -1);
    nodes = (size_t)1 << depth;
    unigram.assign(nodes, 32768u << 16);
    for (int i = 0; i < ORDERS; i++) {
      maps[i].resize((size_t)256 * depth);
      for (size_t s = 0; s < maps[i].size(); s++) maps[i][s] = (uint32_t)t.guess[s % 256] << 16;
    }
    match_map.resize((size_t)(MAX_MATCH + 1) * 4);
    for (size_t i = 0; i < match_map.size(); i++) {
      uint32_t len = (uint32_t)i / 4;
      match_map[i] = (uint32_t)(65535 - 65536 / (len + 2)) << 16;
    }
    int curve_size = 10;
    while (curve_size < 16 && ((int64_t)1 << curve_size) < symbols * depth) curve_size++;
    curve_mask = (1u << curve_size) - 1;
    trim.resize((size_t)(curve_mask + 1) * GRID);
    final.resize((size_t)(curve_mask + 1) * GRID);
    uint16_t line[GRID];
    for (int g = 0; g < GRID; g++) line[g] = (uint16_t)t.squash((g - GRID / 2) * 256);
    for (size_t i = 0; i < trim.size(); i++) trim[i] = line[i % GRID];
    for (size_t i = 0; i < final.size(); i++) final[i] = line[i % GRID];
    weights_a.resize((size_t)SETS_A * INPUTS);
    weights_b.resize((size_t)SETS_B * INPUTS);
    for (auto* w : {&weights_a, &weights_b})
      for (size_t i = 0; i < w->size(); i++) {
        int k = (int)(i % INPUTS);
        (*w)[i] = k == LM ? 40000 : k == TRIM ? 16000 : k == UNI ? 1000 : k == MATCH ? 14000 : k == BIAS ? 0 : 9000;
      }
    for (int l = 0; l < lanes; l++) settle(l, 0);
  }

  void start(int l) {
    now = &lane[l];
    first = (int64_t)l * per_lane;
    expected = -1;
    if (now->match >= 0) {
      uint32_t id = history[now->match];
      if (id != OPEN) expected = (int64_t)rank_of[id];
    }
  }

  // Looks up what each context remembers of the next four bits.
  void enter(int level, uint32_t prefix) {
    for (int i = 0; i < ORDERS; i++)
      line[i] = find(i, scatter(now->context[i] + prefix * 0x9e3779b1u + (uint32_t)level * 0x85ebca6bu));
  }

  // P(1) in Q16 of the bit `level` counted from the top, at the node whose upper bits are `prefix`.
  int predict(int level, uint32_t prefix, uint64_t yes, uint64_t no) {
    int local = level % 4;
    within = (1u << local) | (prefix & ((1u << local) - 1));
    node = (1u << level) | prefix;
    int raw = t.odds(yes, no);
    x[LM] = raw;
    size_t curve = node & curve_mask;
    x[TRIM] = t.stretch[refine(trim, curve, raw, trim_at) >> 4];
    x[UNI] = t.stretch[unigram[node] >> 20];
    int seen = 0;
    for (int i = 0; i < ORDERS; i++) {
      int state = line[i][within];
      slot[i] = &maps[i][(size_t)level * 256 + state];
      x[HASHED + i] = state ? t.stretch[*slot[i] >> 20] : 0;
      if (state && i < 5) seen++;
    }
    x[MATCH] = 0;
    guess = -1;
    if (expected >= 0 && (uint64_t)(expected >> (depth - level)) == prefix) {
      guess = (int)(expected >> (depth - 1 - level)) & 1;
      match_slot = &match_map[(size_t)now->length * 4 + std::min(level, 3)];
      int s = t.stretch[*match_slot >> 20];
      x[MATCH] = guess ? s : -s;
    }
    x[BIAS] = 256;
    int len = guess < 0 ? 0 : now->length < 8 ? 1 : now->length < 16 ? 2 : now->length < 32 ? 3 : 4;
    wa = &weights_a[(size_t)(std::min(level, 31) * 8 + len) * INPUTS];
    int sure = std::min(std::abs(raw) >> 7, 15);
    wb = &weights_b[(size_t)(sure * 8 + seen) * INPUTS];
    pa = dot(wa);
    pb = dot(wb);
    mixed = std::clamp((pa + pb) >> 1, -ODDS, ODDS);
    uint32_t c = scatter(now->context[0] + node * 0x9e3779b1u) & curve_mask;
    int p = t.squash(mixed);
    int q = refine(final, c, mixed, final_at);
    p = (p * 3 + q) >> 2;
    return std::clamp(p, 1, 65535);
  }

  void update(int bit) {
    adjust(wa, pa, bit);
    adjust(wb, pb, bit);
    nudge(trim, trim_at, bit, 6);
    nudge(final, final_at, bit, 6);
    learn(unigram[node], bit, 255);
    for (int i = 0; i < ORDERS; i++) {
      uint8_t& state = line[i][within];
      learn(*slot[i], bit, 255);
      state = t.after[(size_t)state * 2 + bit];
    }
    if (guess >= 0) learn(*match_slot, guess == bit, 1023);
  }

  // The lane takes `id` as its symbol of `step`.
  void take(int l, int64_t step, uint32_t id) {
    int64_t at = (int64_t)l * per_lane + step;
    history[at] = id;
    Lane& s = lane[l];
    if (s.match >= 0 && history[s.match] == id) {
      s.match++;
      if (s.length < MAX_MATCH) s.length++;
      if (s.match >= (int64_t)history.size()) s.match = -1, s.length = 0;
    } else {
      s.match = -1;
      s.length = 0;
    }
    if (step + 1 >= MIN_MATCH) {
      uint32_t h = 0;
      for (int k = 0; k < MIN_MATCH; k++) h = (h + history[at - k] + 1) * 0x9e3779b1u;
      int64_t& entry = matches[scatter(h) & match_mask];
      if (s.match < 0 && entry >= 0) {
        int length = 0;
        while (length < MAX_MATCH && length <= step && length < entry && history[entry - 1 - length] == history[at - length]) length++;
        if (length >= MIN_MATCH) s.match = entry, s.length = length;
      }
      entry = at + 1 < (int64_t)history.size() ? at + 1 : -1;
    }
    settle(l, step + 1);
  }

  std::vector<uint32_t> history;
  const int32_t* rank_of = nullptr;

 private:
  void settle(int l, int64_t length) {
    auto past = [&](int k) -> uint32_t { return k <= length ? history[(int64_t)l * per_lane + length - k] + 2 : 1; };
    uint32_t* c = lane[l].context;
    uint32_t h = 0;
    for (int k = 1; k <= 6; k++) {
      h = (h + past(k)) * 0x2c1b3c6du + 0x297a2d39u * k;
      if (k <= 4) c[k - 1] = h;
      if (k == 6) c[4] = h;
    }
    c[5] = (past(2) * 0x2c1b3c6du + past(3)) * 0x846ca68bu + 77;
  }

  uint8_t* find(int order, uint32_t h) {
    uint8_t check = (uint8_t)(h >> 24) | 1;
    uint8_t* base = tables_[order].data();
    uint8_t* a = base + (size_t)(h & mask) * 16;
    if (a[0] == check) return a;
    uint8_t* b = base + (size_t)((h & mask) ^ 1) * 16;
    if (b[0] == check) return b;
    uint8_t* out = t.total[a[1]] <= t.total[b[1]] ? a : b;
    std::memset(out, 0, 16);
    out[0] = check;
    return out;
  }

  int refine(const std::vector<uint16_t>& curves, size_t context, int odds, size_t& at) const {
    int pos = odds + 12 * 256;
    int low = pos >> 8, w = pos & 255;
    size_t i = context * GRID + low;
    at = i + (w >> 7);
    return (curves[i] * (256 - w) + curves[i + 1] * w) >> 8;
  }

  static void nudge(std::vector<uint16_t>& curves, size_t at, int bit, int rate) {
    int p = curves[at];
    curves[at] = (uint16_t)(p + (((bit ? 65535 : 0) - p) >> rate));
  }

  int dot(const int32_t* w) const {
    int64_t sum = 0;
    for (int i = 0; i < INPUTS; i++) sum += (int64_t)w[i] * x[i];
    return (int)std::clamp<int64_t>(sum >> 16, -ODDS, ODDS);
  }

  void adjust(int32_t* w, int odds, int bit) {
    int error = ((bit << 16) - t.squash(odds)) * RATE;
    for (int i = 0; i < INPUTS; i++) w[i] = std::clamp(w[i] + (int32_t)(((int64_t)x[i] * error + (1 << 19)) >> 20), -HEAVIEST, HEAVIEST);
  }

  const Tables& t;
  int depth;
  std::vector<Lane> lane;
  int64_t per_lane, first = 0;
  uint32_t mask, match_mask, curve_mask;
  size_t nodes;
  std::vector<uint8_t> tables_[ORDERS];
  std::vector<int64_t> matches;
  std::vector<uint32_t> unigram, maps[ORDERS], match_map;
  std::vector<uint16_t> trim, final;
  std::vector<int32_t> weights_a, weights_b;

  Lane* now = nullptr;
  int64_t expected = -1;
  uint8_t* line[ORDERS] = {};
  uint32_t* slot[ORDERS] = {};
  uint32_t* match_slot = nullptr;
  uint32_t within = 1, node = 1;
  size_t trim_at = 0, final_at = 0;
  int guess = -1, pa = 0, pb = 0, mixed = 0;
  int32_t *wa = nullptr, *wb = nullptr;
  int x[INPUTS] = {};
  static constexpr int RATE = 6, HEAVIEST = 1 << 22;
};

// ---- drafts

// Where each short context last stood, to guess what comes next while decoding. No byte of any file depends on it.
class Guide {
 public:
  explicit Guide(int64_t symbols) : text(std::max<int64_t>(symbols, 1), OPEN) {
    int size = 10;
    while (size < 20 && ((int64_t)1 << size) < symbols * 2) size++;
    mask = (1u << size) - 1;
    for (auto& table : last) table.assign((size_t)1 << size, -1);
  }

  // `id` stands at place `at`; `known` symbols of its lane stand before it.
  void take(int64_t at, int64_t known, uint32_t id) {
    text[at] = id;
    for (int o = 0; o < 4; o++)
      if (known >= SPANS[o]) last[o][hash(at, SPANS[o])] = at;
  }

  // What followed the longest context before place `at`; the shorter the context, the shorter the guess.
  void draft(int64_t at, int64_t known, int width, int32_t* out) const {
    for (int o = 0; o < 4; o++) {
      if (known < SPANS[o]) continue;
      int64_t from = last[o][hash(at, SPANS[o])];
      int same = 0;
      while (same < known && same < from && text[from - 1 - same] == text[at - 1 - same]) same++;
      if (from < 0 || same < SPANS[o]) continue;
      int most = std::min(width, same >= 8 ? width : same);
      for (int s = 0; s < most && from + s < (int64_t)text.size() && text[from + s] != OPEN; s++) out[s] = (int32_t)text[from + s];
      if (out[0] >= 0) return;
    }
  }

 private:
  static constexpr int SPANS[4] = {6, 4, 3, 2};
  size_t hash(int64_t at, int span) const {
    uint32_t h = (uint32_t)span;
    for (int k = 1; k <= span; k++) h = (h + text[at - k] + 1) * 0x9e3779b1u;
    return scatter(h) & mask;
  }
  std::vector<uint32_t> text;
  std::vector<int64_t> last[4];
  uint32_t mask;
};

// ---- chunk

Chunk::Chunk(std::shared_ptr<Tables> tables, int vocab, std::vector<int32_t> places, int lanes, int64_t symbols, bool adapt)
    : vocab(vocab), lanes(lanes), symbols(symbols), t_(std::move(tables)), rank_(std::move(places)), id_(vocab) {
  for (int i = 0; i < vocab; i++) id_[rank_[i]] = i;
  per_lane_ = std::max<int64_t>((symbols + lanes - 1) / lanes, 1);
  depth_ = 1;
  while ((1 << depth_) < vocab) depth_++;
  bits_ = vocab <= 4096 ? 24 : 28;
  steps_.resize(vocab);
  freq_.resize(vocab);
  if (adapt) {
    mixer_ = std::make_unique<Mixer>(*t_, depth_, lanes, per_lane_, symbols);
    mixer_->rank_of = rank_.data();
  }
}

Chunk::~Chunk() = default;

template <bool ENCODE>
int Chunk::symbol(int lane, const float* scores, int id) {
  if (scores)
    frequencies(*t_, scores, vocab, bits_, rank_.data(), steps_.data(), freq_.data());
  else if (!flat_) {
    std::vector<float> equal(vocab, 0.0f);
    frequencies(*t_, equal.data(), vocab, bits_, rank_.data(), steps_.data(), freq_.data());
  }
  flat_ = !scores;
  if (mixer_) mixer_->start(lane);
  uint64_t range = (uint64_t)1 << bits_;
  uint32_t prefix = 0;
  uint32_t rank = ENCODE ? rank_[id] : 0;
  for (int level = 0; level < depth_; level++) {
    int below = depth_ - 1 - level;
    uint32_t low = prefix << (below + 1), middle = low + (1u << below);
    int bit = 0;
    if (mixer_ && level % 4 == 0) mixer_->enter(level, prefix);
    if (middle < (uint32_t)vocab) {
      uint64_t no = sum_of(freq_.data() + low, 1 << below), yes = range - no;  // a left child is never cut short
      int p = mixer_ ? mixer_->predict(level, prefix, yes, no) : (int)std::clamp<uint64_t>((yes << 16) / range, 1, 65535);
      if (ENCODE) {
        bit = rank >> below & 1;
        encoder_.encode(bit ? 0 : p, bit ? p : 65536 - p, 16);
      } else {
        bit = decoder_->bit(p);
      }
      if (mixer_) mixer_->update(bit);
      range = bit ? yes : no;
    }
    prefix = prefix << 1 | bit;
  }
  return ENCODE ? id : id_[prefix];
}

void Chunk::encode(const float* scores, int64_t lane_stride, int64_t step_stride, const int32_t* ids, int width) {
  for (int s = 0; s < width; s++, step_++)
    for (int l = 0; l < lanes; l++)
      if (active(l)) {
        int id = ids[l * width + s];
        symbol<true>(l, scores ? scores + l * lane_stride + s * step_stride : nullptr, id);
        if (mixer_) mixer_->take(l, step_, id);
      }
}

std::vector<uint8_t> Chunk::finish() { return encoder_.finish(); }

void Chunk::open(const uint8_t* data, size_t size) {
  decoder_ = std::make_unique<RangeDecoder>(data, size);
  guide_ = std::make_unique<Guide>(symbols);
}

int Chunk::decode(const float* scores, int64_t lane_stride, int64_t step_stride, const int32_t* tokens, const int32_t* counts, int width, int32_t* out) {
  if (!decoder_) throw std::logic_error("open comes before decode");
  std::vector<int> good(lanes, 1);
  for (int s = 0; s < width; s++, step_++) {
    bool any = false;
    for (int l = 0; l < lanes; l++)
      if (active(l)) {
        any = true;
        if (scores && s >= good[l]) return s;
      }
    if (!any) return s;
    for (int l = 0; l < lanes; l++)
      if (active(l)) {
        int id = symbol<false>(l, scores ? scores + l * lane_stride + s * step_stride : nullptr, 0);
        if (mixer_) mixer_->take(l, step_, id);
        out[l * width + s] = id;
        if (scores) guide_->take((int64_t)l * per_lane_ + step_, step_, id);
        if (scores && s + 1 < counts[l] && tokens[l * width + s + 1] == id) good[l] = s + 2;
      }
  }
  return width;
}

void Chunk::draft(int width, int32_t* out) const {
  std::fill(out, out + (size_t)lanes * width, -1);
  if (guide_)
    for (int l = 0; l < lanes; l++)
      if (active(l)) guide_->draft((int64_t)l * per_lane_ + step_, std::min<int64_t>(step_, 64), width, out + (size_t)l * width);
}

size_t Chunk::overrun() const { return decoder_ ? decoder_->overrun() : 0; }

}  // namespace steno::coder
