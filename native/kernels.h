// What the engine asks of an instruction set: one table of functions, one table per set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace steno {

constexpr int PANEL = 16;       // rows of a matrix that are packed together
constexpr int QUERIES = 4;      // queries an attention call takes at once
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

// Attention of up to QUERIES queries that share one row's committed keys.
// Slots 0..length-1 are the committed keys, slot length + j is staged node path[q][j].
//   keys    [slots / 16][head_dim][16]     values  [slots][head_pad]      (staged ones alike, by node)
struct Attend {
  int queries, head_dim, head_pad, length, staged;  // staged: nodes that any path may name
  const float *keys, *values, *staged_keys, *staged_values;
  const float* query[QUERIES];
  float* out[QUERIES];
  int low[QUERIES];  // first visible slot
  const int32_t* path[QUERIES];
  int path_len[QUERIES];
  float* scores;  // QUERIES rows of score_stride floats
  size_t score_stride;
  float* staged_scores;  // QUERIES rows of MAX_WIDTH floats
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
