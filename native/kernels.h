// What the engine asks of an instruction set: one table of functions, one table per set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace steno {

constexpr int PANEL = 16;       // rows of a matrix that are packed together
constexpr int QUERIES = 4;      // queries an attention call takes at once
constexpr int MAX_WIDTH = 256;  // nodes a row may have in one forward
constexpr int CHUNK = 256;      // key slots summed apart from the others; part of the arithmetic, see attend()
constexpr int K_BLOCK = 256;    // columns of a float matrix summed apart from the others; part of the arithmetic

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// A weight matrix [n, k] in panels of 16 rows, k padded to kp, missing rows zero.
//   F32  panel: [kp][16] floats
//   I8   panel: [kp / 4][16][4] signed bytes; value = byte * scale[row]
struct Matrix {
  enum Kind : uint8_t { F32, I8 };
  Kind kind = F32;
  int n = 0, k = 0, kp = 0, panels = 0;
  void* w = nullptr;
  float* scale = nullptr;
  int32_t* shift = nullptr;  // I8: -128 * row sum, undoes the +128 of unsigned activations
  float* bias = nullptr;
};

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
  // bytes and scale of one row; kp a multiple of 16
  void (*quantise)(const float* x, int kp, int8_t* q, float* scale);
  void (*matmul_i8)(const Matrix& w, int p0, int p1, int rows, const int8_t* x, size_t stride, const float* scale, const Rows& y);
  void (*matmul_f32)(const Matrix& w, int p0, int p1, int rows, const float* x, size_t stride, const Rows& y);
  void (*add)(float* x, const float* y, int n);
  void (*swiglu)(const float* gate, const float* up, float* out, int n);
  // rotates the pairs (x[j], x[j + half])
  void (*rotate)(float* x, const float* cos, const float* sin, int half);
  void (*scale)(float* x, float by, int n);
  void (*attend)(const Attend& a);
  // lowest index of the largest value in [from, to); NaN is never the largest
  int (*argmax)(const float* x, int from, int to, float* best);
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
STENO_DECLARE(neon)
STENO_DECLARE(neondot)
#undef STENO_DECLARE

}  // namespace steno
