#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fault.h"
#include "pool.h"

namespace steno {
namespace {

float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, u;
  if (e == 31) {
    u = sign | 0x7F800000u | m << 13;
  } else if (e) {
    u = sign | (e + 112) << 23 | m << 13;
  } else {  // subnormal: the value is m * 2^-24, exact in float
    float f = (float)m * 0x1p-24f;
    std::memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

float brain_to_float(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <class Body>
void spread(int threads, int n, const Body& body) {
  struct Job { const Body& body; int threads, n; } job{body, threads, n};
  Pool::get().run(threads, [](void* p, int t) {
    Job& j = *static_cast<Job*>(p);
    for (int i = (int)((int64_t)j.n * t / j.threads); i < (int)((int64_t)j.n * (t + 1) / j.threads); i++) j.body(i);
  }, &job);
}

}  // namespace

template <class T> T* Model::take(size_t n) {
  memory_.push_back(std::make_unique<Memory>(n * sizeof(T)));
  return static_cast<T*>(memory_.back()->data);
}

float* Model::floats(size_t n) { return take<float>(round_up((int)n, PANEL)); }

Matrix Model::matrix(int n, int k) {
  Matrix m;
  m.kind = c.int8 ? Matrix::I8 : Matrix::F32;
  m.n = n;
  m.k = k;
  m.kp = round_up(k, PANEL);
  m.panels = round_up(n, PANEL) / PANEL;
  size_t cells = (size_t)m.panels * PANEL * m.kp;
  if (c.int8) {
    m.w = take<int8_t>(cells);
    m.scale = take<float>(m.panels * PANEL);
    m.shift = take<int32_t>(m.panels * PANEL);
  } else {
    m.w = take<float>(cells);
  }
  return m;
}

Model::Model(Config config)
    : c(std::move(config)), k(kernels()), dp(round_up(c.width, PANEL)), op(round_up(c.heads * c.head_dim, PANEL)),
      ip(round_up(c.inner, PANEL)), rope(c.frequency) {
  int64_t limit = 130000;  // columns whose int8 products cannot overflow 32 bits: 2^31 / (127 * 128)
  if (c.int8 && (dp > limit || op > limit || ip > limit))
    throw Fault(Fault::MODEL, "int8: a matrix has more than 130000 columns, which 32-bit sums cannot hold. Use weights=\"fp32\".");
  layer.resize(c.layers);
  for (Layer& l : layer) {
    l.qkv = matrix((c.heads + 2 * c.kv_heads) * c.head_dim, c.width);
    l.out = matrix(c.width, c.heads * c.head_dim);
    l.gate_up = matrix(2 * ip, c.width);  // the gate fills rows [0, inner), the up projection rows [ip, ip + inner)
    l.down = matrix(c.width, c.inner);
  }
  head = matrix(c.vocab, c.width);
}

Matrix& Model::part(Part p, int l) {
  if (p != HEAD && (l < 0 || l >= c.layers)) throw Fault(Fault::VALUE, "layer " + std::to_string(l) + " is outside the model");
  switch (p) {
    case QKV: return layer[l].qkv;
    case OUT: return layer[l].out;
    case GATE_UP: return layer[l].gate_up;
    case DOWN: return layer[l].down;
    default: return head;
  }
}

static void check_rows(const Matrix& m, int row, int n, int k) {
  if (row < 0 || n < 0 || row + n > m.n || (k && k != m.k))
    throw Fault(Fault::VALUE, "rows [" + std::to_string(row) + ", " + std::to_string(row + n) + ") x " + std::to_string(k) +
                                 " do not fit a matrix of " + std::to_string(m.n) + " x " + std::to_string(m.k));
}

static void put_row(const Matrix& m, int row, const int8_t* q) {
  int8_t* w = static_cast<int8_t*>(m.w) + (size_t)(row / PANEL) * PANEL * m.kp + (row % PANEL) * 4;
  int32_t sum = 0;
  for (int k = 0; k < m.k; k++) {
    w[(size_t)(k / 4) * 64 + k % 4] = q[k];
    sum += q[k];
  }
  m.shift[row] = -128 * sum;
}

void Model::put_floats(Part p, int l, int row, int n, int k, const float* w) {
  Matrix& m = part(p, l);
  check_rows(m, row, n, k);
  if (!c.int8) {
    spread(c.threads, n, [&](int i) {
      float* to = static_cast<float*>(m.w) + (size_t)((row + i) / PANEL) * PANEL * m.kp + (row + i) % PANEL;
      const float* from = w + (size_t)i * k;
      for (int j = 0; j < k; j++) to[(size_t)j * PANEL] = from[j];
    });
    return;
  }
  Scratch<int8_t> bytes;
  int8_t* q0 = bytes.get((size_t)c.threads * m.kp);
  struct Job { Matrix& m; int row, n, k, threads; const float* w; int8_t* q; } job{m, row, n, k, c.threads, w, q0};
  Pool::get().run(c.threads, [](void* arg, int t) {
    Job& j = *static_cast<Job*>(arg);
    int8_t* q = j.q + (size_t)t * j.m.kp;
    for (int i = t; i < j.n; i += j.threads) {
      const float* from = j.w + (size_t)i * j.k;
      float peak = 0;
      for (int x = 0; x < j.k; x++) peak = std::max(peak, std::fabs(from[x]));
      float scale = peak / 127.0f;
      if (scale < 1e-30f) scale = 0;
      for (int x = 0; x < j.k; x++) {
        // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
        float v = scale == 0 ? 0.0f : from[x] / scale;
        q[x] = (int8_t)((v + 12582912.0f) - 12582912.0f);
      }
      j.m.scale[j.row + i] = scale;
      put_row(j.m, j.row + i, q);
    }
  }, &job);
}

void Model::put_bytes(Part p, int l, int row, int n, int k, const int8_t* w, const float* scale) {
  Matrix& m = part(p, l);
  check_rows(m, row, n, k);
  if (!c.int8) throw Fault(Fault::VALUE, "a float model takes no bytes");
  spread(c.threads, n, [&](int i) {
    m.scale[row + i] = scale[i];
    put_row(m, row + i, w + (size_t)i * k);
  });
}

void Model::put_bias(Part p, int l, int row, int n, const float* b) {
  Matrix& m = part(p, l);
  check_rows(m, row, n, 0);
  if (!m.bias) m.bias = floats(m.panels * PANEL);
  std::memcpy(m.bias + row, b, (size_t)n * 4);
}

void Model::put_norm(Norm which, int l, int n, const float* w) {
  int want = which == NORM_Q || which == NORM_K ? c.head_dim : c.width;
  if (n != want || (which != NORM_OUT && (l < 0 || l >= c.layers)))
    throw Fault(Fault::VALUE, "a norm of " + std::to_string(n) + " values does not fit");
  float* to = floats(n);
  std::memcpy(to, w, (size_t)n * 4);
  switch (which) {
    case NORM_IN: layer[l].norm_in = to; break;
    case NORM_MID: layer[l].norm_mid = to; break;
    case NORM_Q: layer[l].norm_q = to; break;
    case NORM_K: layer[l].norm_k = to; break;
    default: norm_out = to;
  }
}

void Model::put_embedding(Kind kind, const void* rows) {
  size_t bytes = (size_t)c.vocab * c.width * (kind == EMBED_F32 ? 4 : 2);
  memory_.push_back(std::make_unique<Memory>(bytes));
  std::memcpy(memory_.back()->data, rows, bytes);
  embed_kind_ = kind;
  embed_rows_ = memory_.back()->data;
}

void Model::ready() {
  bool whole = norm_out && (embed_rows_ || c.tied);
  for (Layer& l : layer) whole = whole && l.norm_in && l.norm_mid && !l.norm_q == !l.norm_k;
  if (!whole) throw Fault(Fault::MODEL, "the model is not complete: a norm or the embedding is missing");
}

void Model::embed(int token, float* out) const {
  for (int j = c.width; j < dp; j++) out[j] = 0;
  if (!embed_rows_) {
    size_t panel = (size_t)(token / PANEL) * PANEL * head.kp;
    int r = token % PANEL;
    if (c.int8) {
      const int8_t* w = static_cast<const int8_t*>(head.w) + panel + r * 4;
      float s = head.scale[token];
      for (int j = 0; j < c.width; j++) out[j] = (float)w[(size_t)(j / 4) * 64 + j % 4] * s;
    } else {
      const float* w = static_cast<const float*>(head.w) + panel + r;
      for (int j = 0; j < c.width; j++) out[j] = w[(size_t)j * PANEL];
    }
    return;
  }
  size_t at = (size_t)token * c.width;
  if (embed_kind_ == EMBED_F32) {
    std::memcpy(out, static_cast<const float*>(embed_rows_) + at, (size_t)c.width * 4);
  } else {
    const uint16_t* h = static_cast<const uint16_t*>(embed_rows_) + at;
    if (embed_kind_ == EMBED_BF16)
      for (int j = 0; j < c.width; j++) out[j] = brain_to_float(h[j]);
    else
      for (int j = 0; j < c.width; j++) out[j] = half_to_float(h[j]);
  }
}

size_t Model::weight_bytes() const {
  size_t sum = 0;
  for (auto& m : memory_) sum += m->bytes;
  return sum;
}

std::vector<std::pair<const void*, size_t>> Model::pieces() const {
  std::vector<std::pair<const void*, size_t>> all;
  for (auto& m : memory_) all.emplace_back(m->data, m->bytes);
  return all;
}

}  // namespace steno
