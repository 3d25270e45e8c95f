// What the engine asks of an instruction set: one table of functions, one table per set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace steno {

constexpr int PANEL = 16;       // rows of a matrix that are packed together
constexpr int TILE = 4;         // queries whose sums run side by side in registers
constexpr int QUERIES = 32;     // queries an attention call takes at once: what is unpacked for one serves them all
constexpr int MAX_WIDTH = 256;  // nodes a row may have in one forward
constexpr int CHUNK = 256;      // key slots summed apart from the others; part of the arithmetic, see attend()
constexpr int COLUMNS = 32;     // an int4 matrix is padded to a multiple of this
constexpr int K_BLOCK = 256;    // columns of a float matrix summed apart from the others; part of the arithmetic

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// A weight matrix [n, k] in panels of 16 rows, k padded to kp, missing rows zero.
//   F32   panel: [kp][16] floats
//   BF16  panel: [kp][16] upper halves of floats
//   I8    panel: [kp / 4][16][4] signed bytes; value = byte * scale[row]
//   I4    panel: [kp / 8][16][4] bytes: columns 8j..8j+3 in the low halves, 8j+4..8j+7 in the high ones, each + 8;
//         value = (number - 8) * group_scale[panel][column / group][row]
struct Matrix {
  enum Kind : uint8_t { F32, BF16, I8, I4 };
  Kind kind = F32;
  int n = 0, k = 0, kp = 0, panels = 0;
  int group = 0;                   // I4: columns that share a scale
  void* w = nullptr;
  float* scale = nullptr;          // I8
  int32_t* shift = nullptr;        // I8: -128 * row sum, undoes the +128 of unsigned activations
  uint16_t* group_scale = nullptr; // I4: float16
  float* bias = nullptr;
};

// Rows of activations in the form that a kind of matrix multiplies. Bytes come with a scale per row, and for I4 with the
// sum of every group of columns. A row of bytes is `stride` apart from the next, and zero beyond kp up to a multiple of 64;
// there are readable rows up to a multiple of 16.
struct Acts {
  const float* f = nullptr;  // stride kp
  const int8_t* q = nullptr;
  size_t stride = 0;
  const float* scale = nullptr;
  const int32_t* sums = nullptr;  // stride kp / group
};

inline size_t byte_stride(int kp) {  // an odd number of cache lines: rows then fall into different sets of the cache
  int lines = (kp + 63) / 64;
  return (size_t)(lines | 1) * 64;
}

// Where row m of a product goes: base + (map ? map[m] : m) * stride.
struct Rows {
  float* base;
  size_t stride;
  const int32_t* map;
  float* operator[](int m) const { return base + (size_t)(map ? map[m] : m) * stride; }
};

// Some slots of a row, of one layer and key head: page i holds slots [i * slots, (i + 1) * slots), from its byte `at` on.
// slots is a multiple of 16.
struct Store {
  uint8_t* const* page;
  int slots;
  size_t at;
};

// Open tokens, in floats: keys [slots / 16][head_dim][16], then values [slots][head_pad].
//
// Sealed tokens, in halves (16 bits) or in signed codes of 8, 4, 3 or 2 bits with x = code * scale + (zero + scale *
// 2^(bits - 1)); a key channel has its scale and zero per `group` slots, a slot's values per `channels` channels. Codes
// come in tables of rows of 16 lanes: for keys one table per 16 slots, with a row per channel and a lane per slot; for
// values one per 16 slots and 16 channels, with a row per slot and a lane per channel. A byte of lane j holds the codes
// of 8 / bits rows, the first in its lowest bits; 3 bits are a table of their low two bits and one of their signs.
// Scales and zeros are halves: [slots / group][2][head_pad] of keys, [slots / 16][head_dim / channels][2][16] of values.
struct Coding {
  int key_bits = 16, value_bits = 16, group = 16, channels = 16;
};

inline size_t table_bytes(int bits, int rows) {
  int quads = (rows + 3) / 4, octets = (rows + 7) / 8;
  if (bits == 16) return (size_t)rows * 32;
  if (bits == 8) return (size_t)rows * 16;
  if (bits == 4) return (size_t)(rows + 1) / 2 * 16;
  return (size_t)(bits == 3 ? quads + octets : quads) * 16;
}

// Where the parts of one layer and head stand in a page of sealed tokens, in bytes from `at`; keys come first.
struct Places {
  size_t key_scales, values, value_scales, end;
};

inline Places places(const Coding& c, int slots, int head_dim, int head_pad) {
  size_t panels = slots / PANEL;
  Places p;
  p.key_scales = panels * table_bytes(c.key_bits, head_dim);
  p.values = p.key_scales + (c.key_bits < 16 ? (size_t)slots / c.group * 2 * head_pad * 2 : 0);
  p.value_scales = p.values + panels * (head_pad / PANEL) * table_bytes(c.value_bits, PANEL);
  p.end = p.value_scales + (c.value_bits < 16 ? panels * (head_dim / c.channels) * 2 * PANEL * 2 : 0);
  return p;
}

// Panels that are unpacked at once: what fits the first cache beside the sums.
inline int panels_at_once(int head_pad) { return head_pad <= 64 ? 4 : head_pad <= 128 ? 2 : 1; }
inline size_t unpacked_floats(int head_pad) { return (size_t)(panels_at_once(head_pad) + 2) * PANEL * head_pad; }

// Attention of up to QUERIES queries that share one row's committed keys.
// Slots 0..length-1 are the committed tokens, those below `seal` in `sealed`; slot length + j is staged node path[q][j].
// Query q sees the slots [from[q], lead) and [low[q], its own].
//   staged keys [nodes / 16][head_dim][16], values [nodes][head_pad]
struct Attend {
  int queries, head_dim, head_pad, length, seal, lead;
  int staged;  // nodes that any path may name
  Store open, sealed;
  Coding coding;
  Places places;
  const float *staged_keys, *staged_values;
  const float* query[QUERIES];
  float* out[QUERIES];
  int from[QUERIES], low[QUERIES];
  const int32_t* path[QUERIES];
  int path_len[QUERIES];
  bool chain[QUERIES];  // path[q][j] == j for all j
  float* scores;  // QUERIES rows of score_stride floats, by slot
  size_t score_stride;
  float* staged_scores;  // QUERIES rows of MAX_WIDTH floats
  float* sums;           // 2 * QUERIES rows of head_pad floats
  float* unpacked;       // unpacked_floats
};

// Moves open tokens [from, to) into sealed pages. from and to are multiples of coding.group where there are codes.
struct Seal {
  int head_dim, head_pad, from, to;
  Store open, sealed;
  Coding coding;
  Places places;
};

struct Kernels {
  const char* name;
  // out = x / rms(x) * w, over d values padded with zeros to a multiple of 16
  void (*norm)(const float* x, const float* w, float eps, int d, float* out);
  // one row of activations as `w` (I8 or I4) wants it
  void (*quantise)(const Matrix& w, const float* x, int8_t* q, float* scale, int32_t* sums);
  // panels [p0, p1) of w times rows of activations
  void (*matmul)(const Matrix& w, int p0, int p1, int rows, const Acts& x, const Rows& y);
  void (*add)(float* x, const float* y, int n);
  void (*swiglu)(const float* gate, const float* up, float* out, int n);
  // rotates the pairs (x[j], x[j + half])
  void (*rotate)(float* x, const float* cos, const float* sin, int half);
  void (*scale)(float* x, float by, int n);
  void (*attend)(const Attend& a);
  // false where a number is not finite or leaves the range of float16
  bool (*seal)(const Seal& s);
  // lowest index of the largest value in [from, to); NaN is never the largest
  int (*argmax)(const float* x, int from, int to, float* best);
  // standard Gumbel noise of ids [0, n), a function of the four words of the key; see sample.cpp
  void (*gumbel)(const uint32_t* key, int n, float* out);
  // argmax of logits + noise, the lowest id among equals
  int (*draw)(const uint32_t* key, const float* logits, int n);
  // the count largest, best first, ties by the lower index; ids and values have room for count
  void (*top)(const float* x, int n, int count, int32_t* ids, float* values);
};

const Kernels& kernels();              // of the instruction set in use
const Kernels* kernels_by_name(const char* name);  // null where this processor cannot run it
const char* const* kernel_names();     // those this processor can run, best first, null at the end

#define STENO_DECLARE(target) namespace target { extern const Kernels table; }
STENO_DECLARE(scalar)
STENO_DECLARE(avx2)
STENO_DECLARE(avx512)
STENO_DECLARE(avx512vnni)
STENO_DECLARE(amx)
STENO_DECLARE(neon)
STENO_DECLARE(neondot)
#undef STENO_DECLARE

}  // namespace steno
