#include "model.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
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

// To the nearest bfloat16, ties to even. Weights are finite.
uint16_t float_to_brain(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

// The least float16 that is not below f > 0.
uint16_t float_to_half_up(float f) {
  uint16_t low = 0, high = 0x7C00;
  while (low < high) {
    uint16_t middle = (uint16_t)((low + high) / 2);
    if (half_to_float(middle) < f) low = (uint16_t)(middle + 1);
    else high = middle;
  }
  return low;
}

// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }

// body(i, t) for i in [0, n), in equal runs over the threads t.
template <class Body>
void spread(int threads, int n, const Body& body) {
  struct Job { const Body& body; int threads, n; } job{body, threads, n};
  Pool::get().run(threads, [](void* p, int t) {
    Job& j = *static_cast<Job*>(p);
    for (int i = (int)((int64_t)j.n * t / j.threads); i < (int)((int64_t)j.n * (t + 1) / j.threads); i++) j.body(i, t);
  }, &job);
}

// ---- packed files: a page of header (magic, key, size; its last 64 bytes: the digest), then the weights as they lie

constexpr char MAGIC[8] = {'S', 'T', 'E', 'N', 'O', 'P', 'K', '1'};
constexpr size_t HEADER = 4096, DIGEST = 64, CHUNK_BYTES = size_t(1) << 20;

// Not against forgery: it finds a damaged or half-written file.
uint64_t digest(const char* data, size_t bytes, int threads) {
  int chunks = (int)((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES);
  std::vector<uint64_t> found(chunks);
  spread(threads, chunks, [&](int i, int) {
    size_t at = (size_t)i * CHUNK_BYTES, end = std::min(bytes, at + CHUNK_BYTES);
    uint64_t lane[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (; at < end; at += 64) {
      uint64_t word[8] = {};
      std::memcpy(word, data + at, std::min<size_t>(64, end - at));
      for (int j = 0; j < 8; j++) lane[j] = ((lane[j] ^ word[j]) * 0x9E3779B97F4A7C15u) ^ (lane[j] >> 29);
    }
    uint64_t all = 0;
    for (uint64_t v : lane) all = (all ^ v) * 0xD6E8FEB86659FD93u + (all >> 32);
    found[i] = all;
  });
  uint64_t all = bytes;
  for (uint64_t v : found) all = (all ^ v) * 0xD6E8FEB86659FD93u + (all >> 31);
  return all;
}

}  // namespace

// Hands out pieces of the weights' memory; without a base it only counts.
struct Model::Place {
  char* base;
  size_t at = 0;
  template <class T> T* take(size_t n) {
    at = (at + 63) / 64 * 64;
    T* p = base ? reinterpret_cast<T*>(base + at) : nullptr;
    at += n * sizeof(T);
    return p;
  }
  Matrix matrix(Matrix::Kind kind, int group, int n, int k, bool bias) {
    Matrix m;
    m.kind = kind;
    m.n = n;
    m.k = k;
    m.group = kind == Matrix::I4 ? group : 0;
    m.kp = round_up(k, kind == Matrix::I4 ? group : PANEL);
    m.panels = round_up(n, PANEL) / PANEL;
    size_t rows = (size_t)m.panels * PANEL, cells = rows * m.kp;
    switch (kind) {
      case Matrix::F32: m.w = take<float>(cells); break;
      case Matrix::BF16: m.w = take<uint16_t>(cells); break;
      case Matrix::I8:
        m.w = take<int8_t>(cells);
        m.scale = take<float>(rows);
        m.shift = take<int32_t>(rows);
        break;
      case Matrix::I4:
        m.w = take<uint8_t>(cells / 2);
        m.group_scale = take<uint16_t>(cells / group);
        break;
    }
    if (bias) m.bias = take<float>(rows);
    return m;
  }
};

void Model::place(Place& at) {
  auto floats = [&](int n) { return at.take<float>(round_up(n, PANEL)); };
  missing_ = 1;
  layer.assign(c.layers, {});
  for (Layer& l : layer) {
    l.norm_in = floats(c.width);
    l.norm_mid = floats(c.width);
    if (c.qk_norm) l.norm_q = floats(c.head_dim);
    if (c.qk_norm) l.norm_k = floats(c.head_dim);
    l.qkv = at.matrix(c.kind, c.group, (c.heads + 2 * c.kv_heads) * c.head_dim, c.width, c.qkv_bias);
    l.out = at.matrix(c.kind, c.group, c.width, c.heads * c.head_dim, c.out_bias);
    l.gate_up = at.matrix(c.kind, c.group, 2 * ip, c.width, c.mlp_bias);  // gate in rows [0, inner), up in [ip, ip + inner)
    l.down = at.matrix(c.kind, c.group, c.width, c.inner, c.mlp_bias);
    missing_ += 2 + 2 * c.qk_norm + l.qkv.n + l.out.n + 2 * c.inner + l.down.n;
    missing_ += c.qkv_bias * l.qkv.n + c.out_bias * l.out.n + c.mlp_bias * (2 * c.inner + l.down.n);
  }
  norm_out = floats(c.width);
  head = at.matrix(c.head_kind, c.group, c.vocab, c.width, false);
  missing_ += c.vocab;
  if (c.embedding != IN_HEAD) {
    embedding_ = at.take<char>((size_t)c.vocab * c.width * (c.embedding == ROWS_F32 ? 4 : 2));
    missing_++;
  }
  at.take<char>(4096);  // tiles and prefetches read beyond the last panel
}

Model::Model(Config config, const std::string& packed, const std::string& key)
    : c(std::move(config)), k(kernels()), dp(round_up(c.width, PANEL)), op(round_up(c.heads * c.head_dim, PANEL)),
      ip(round_up(c.inner, PANEL)), rope(c.frequency) {
  int64_t limit = 130000;  // columns whose int8 products cannot overflow 32 bits: 2^31 / (127 * 128)
  if ((c.kind == Matrix::I8 || c.head_kind == Matrix::I8) && (dp > limit || op > limit || ip > limit))
    throw Fault(Fault::MODEL, "int8: a matrix has more than 130000 columns, which 32-bit sums cannot hold. Use weights=\"fp32\".");
  Place count{nullptr};
  place(count);
  bytes_ = count.at;
  if (!packed.empty()) {
    std::string want = header(key);
    auto file = std::make_unique<Mapped>(packed.c_str());
    if (file->data && file->bytes == HEADER + bytes_ && !std::memcmp(file->data, want.data(), HEADER - DIGEST)) {
      uint64_t stored, now = digest(file->data + HEADER, bytes_, c.threads);
      std::memcpy(&stored, file->data + HEADER - DIGEST, sizeof stored);
      if (stored == now) {
        file_ = std::move(file);
        weights_ = const_cast<char*>(file_->data) + HEADER;
      }
    }
  }
  if (!weights_) {
    memory_ = std::make_unique<Memory>(bytes_);
    weights_ = static_cast<char*>(memory_->data);
  }
  Place real{weights_};
  place(real);
  if (file_) missing_ = 0;
}

Matrix& Model::part(Part p, int l, int row, int n, int k) {
  if (p != HEAD && (l < 0 || l >= c.layers)) throw Fault(Fault::VALUE, "layer " + std::to_string(l) + " is outside the model");
  Matrix& m = p == QKV ? layer[l].qkv : p == OUT ? layer[l].out : p == GATE_UP ? layer[l].gate_up : p == DOWN ? layer[l].down : head;
  if (row < 0 || n < 0 || row + n > m.n || (k && k != m.k))
    throw Fault(Fault::VALUE, "rows [" + std::to_string(row) + ", " + std::to_string(row + n) + ") x " + std::to_string(k) +
                                 " do not fit a matrix of " + std::to_string(m.n) + " x " + std::to_string(m.k));
  if (file_) throw Fault(Fault::VALUE, "a mapped model takes no weights");
  missing_ -= n;
  return m;
}

static void put_row_i8(const Matrix& m, int row, const int8_t* q) {
  int8_t* w = static_cast<int8_t*>(m.w) + (size_t)(row / PANEL) * PANEL * m.kp + (row % PANEL) * 4;
  int32_t sum = 0;
  for (int k = 0; k < m.k; k++) {
    w[(size_t)(k / 4) * 64 + k % 4] = q[k];
    sum += q[k];
  }
  m.shift[row] = -128 * sum;
}

static void put_row_i4(const Matrix& m, int row, const int8_t* q, const uint16_t* scale) {
  uint8_t* w = static_cast<uint8_t*>(m.w) + (size_t)(row / PANEL) * PANEL * m.kp / 2 + (row % PANEL) * 4;
  for (int k = 0; k < m.kp; k += 8)
    for (int j = 0; j < 4; j++) {
      int low = k + j < m.k ? q[k + j] + 8 : 8, high = k + j + 4 < m.k ? q[k + j + 4] + 8 : 8;
      w[(size_t)(k / 8) * 64 + j] = (uint8_t)(low | high << 4);
    }
  int groups = m.kp / m.group;
  for (int g = 0; g < groups; g++) m.group_scale[((size_t)(row / PANEL) * groups + g) * PANEL + row % PANEL] = scale[g];
}

void Model::put_floats(Part p, int l, int row, int n, int k, const float* w) {
  Matrix& m = part(p, l, row, n, k);
  int threads = c.threads, groups = m.group ? m.kp / m.group : 0;
  std::vector<int8_t> bytes((size_t)threads * m.kp);
  std::vector<uint16_t> scales((size_t)threads * groups);
  spread(threads, n, [&](int i, int t) {
    const float* from = w + (size_t)i * k;
    size_t at = (size_t)((row + i) / PANEL) * PANEL * m.kp + (row + i) % PANEL;
    int8_t* q = bytes.data() + (size_t)t * m.kp;
    auto peak = [&](int a, int b) {
      float top = 0;
      for (int j = a; j < b; j++) top = std::max(top, std::fabs(from[j]));
      return top;
    };
    if (m.kind == Matrix::F32) {
      for (int j = 0; j < k; j++) static_cast<float*>(m.w)[at + (size_t)j * PANEL] = from[j];
    } else if (m.kind == Matrix::BF16) {
      for (int j = 0; j < k; j++) static_cast<uint16_t*>(m.w)[at + (size_t)j * PANEL] = float_to_brain(from[j]);
    } else if (m.kind == Matrix::I8) {
      float scale = peak(0, k) / 127.0f;
      if (scale < 1e-30f) scale = 0;
      for (int j = 0; j < k; j++) q[j] = (int8_t)nearest(scale == 0 ? 0.0f : from[j] / scale);
      m.scale[row + i] = scale;
      put_row_i8(m, row + i, q);
    } else {
      // max|w| / 7.5 lets the grid [-8, 7] reach every weight of the group to within half a step; see weights.rtn.
      uint16_t* scale = scales.data() + (size_t)t * groups;
      for (int g = 0; g < groups; g++) {
        int a = g * m.group, b = std::min(a + m.group, k);
        float top = peak(a, b) / 7.5f;
        if (top > 65504.0f) top = 65504.0f;
        scale[g] = float_to_half_up(top);
        float s = half_to_float(scale[g]);
        for (int j = a; j < b; j++) q[j] = (int8_t)std::clamp(nearest(s == 0 ? 0.0f : from[j] / s), -8.0f, 7.0f);
      }
      put_row_i4(m, row + i, q, scale);
    }
  });
}

void Model::put_bytes(Part p, int l, int row, int n, int k, const int8_t* w, const float* scale) {
  Matrix& m = part(p, l, row, n, k);
  if (m.kind != Matrix::I8) throw Fault(Fault::VALUE, "only an int8 matrix takes bytes");
  spread(c.threads, n, [&](int i, int) {
    m.scale[row + i] = scale[i];
    put_row_i8(m, row + i, w + (size_t)i * k);
  });
}

void Model::put_nibbles(Part p, int l, int row, int n, int k, const int8_t* w, const uint16_t* scale) {
  Matrix& m = part(p, l, row, n, k);
  if (m.kind != Matrix::I4) throw Fault(Fault::VALUE, "only an int4 matrix takes nibbles");
  if (m.kp != k) throw Fault(Fault::VALUE, "groups of " + std::to_string(m.group) + " do not divide " + std::to_string(k) + " columns");
  int groups = m.kp / m.group;
  spread(c.threads, n, [&](int i, int) { put_row_i4(m, row + i, w + (size_t)i * k, scale + (size_t)i * groups); });
}

void Model::put_bias(Part p, int l, int row, int n, const float* b) {
  Matrix& m = part(p, l, row, n, 0);
  if (!m.bias) throw Fault(Fault::VALUE, "this matrix has no bias");
  std::memcpy(m.bias + row, b, (size_t)n * 4);
}

void Model::put_norm(Norm which, int l, int n, const float* w) {
  bool head_wide = which == NORM_Q || which == NORM_K;
  if (n != (head_wide ? c.head_dim : c.width) || (which != NORM_OUT && (l < 0 || l >= c.layers)) || (head_wide && !c.qk_norm))
    throw Fault(Fault::VALUE, "a norm of " + std::to_string(n) + " values does not fit");
  if (file_) throw Fault(Fault::VALUE, "a mapped model takes no weights");
  float* to = which == NORM_IN ? layer[l].norm_in : which == NORM_MID ? layer[l].norm_mid : which == NORM_Q ? layer[l].norm_q
              : which == NORM_K ? layer[l].norm_k : norm_out;
  std::memcpy(to, w, (size_t)n * 4);
  missing_--;
}

void Model::put_embedding(const void* rows) {
  if (!embedding_ || file_) throw Fault(Fault::VALUE, "this model reads its embedding from the head");
  std::memcpy(embedding_, rows, (size_t)c.vocab * c.width * (c.embedding == ROWS_F32 ? 4 : 2));
  missing_--;
}

void Model::ready() const {
  if (missing_) throw Fault(Fault::MODEL, "the model is not complete: " + std::to_string(missing_) + " rows or norms are missing");
}

// The header but for its digest.
std::string Model::header(const std::string& key) const {
  std::string h(MAGIC, sizeof MAGIC);
  h += key + "\n" + std::to_string(bytes_) + "\n";
  if (h.size() > HEADER - DIGEST) throw Fault(Fault::VALUE, "the key of a packed model is too long");
  h.resize(HEADER, '\0');
  return h;
}

void Model::save(const std::string& path, const std::string& key) const {
  std::string h = header(key);
  uint64_t sum = digest(weights_, bytes_, c.threads);
  std::memcpy(h.data() + HEADER - DIGEST, &sum, sizeof sum);
  FILE* file = std::fopen(path.c_str(), "wb");
  bool done = file && std::fwrite(h.data(), 1, HEADER, file) == HEADER && std::fwrite(weights_, 1, bytes_, file) == bytes_;
  int why = errno;
  if (file && std::fclose(file)) done = false;
  if (!done) throw Fault(Fault::USER, path + ": cannot be written: " + std::strerror(why));
}

void Model::embed(int token, float* out) const {
  for (int j = c.width; j < dp; j++) out[j] = 0;
  size_t at = (size_t)token * c.width;
  if (c.embedding == ROWS_F32) {
    std::memcpy(out, static_cast<const float*>(embedding_) + at, (size_t)c.width * 4);
    return;
  }
  if (c.embedding != IN_HEAD) {
    const uint16_t* h = static_cast<const uint16_t*>(embedding_) + at;
    for (int j = 0; j < c.width; j++) out[j] = c.embedding == ROWS_BF16 ? brain_to_float(h[j]) : half_to_float(h[j]);
    return;
  }
  size_t panel = (size_t)(token / PANEL) * PANEL * head.kp;
  int r = token % PANEL;
  switch (head.kind) {
    case Matrix::F32:
      for (int j = 0; j < c.width; j++) out[j] = static_cast<const float*>(head.w)[panel + (size_t)j * PANEL + r];
      break;
    case Matrix::BF16:
      for (int j = 0; j < c.width; j++) out[j] = brain_to_float(static_cast<const uint16_t*>(head.w)[panel + (size_t)j * PANEL + r]);
      break;
    case Matrix::I8: {
      const int8_t* w = static_cast<const int8_t*>(head.w) + panel + r * 4;
      for (int j = 0; j < c.width; j++) out[j] = (float)w[(size_t)(j / 4) * 64 + j % 4] * head.scale[token];
      break;
    }
    case Matrix::I4: {
      const uint8_t* w = static_cast<const uint8_t*>(head.w) + panel / 2 + r * 4;
      const uint16_t* scale = head.group_scale + (size_t)(token / PANEL) * (head.kp / head.group) * PANEL + r;
      for (int j = 0; j < c.width; j++) {
        int both = w[(size_t)(j / 8) * 64 + j % 4], q = (j % 8 < 4 ? both & 15 : both >> 4) - 8;
        out[j] = (float)q * half_to_float(scale[(size_t)(j / head.group) * PANEL]);
      }
    }
  }
}

}  // namespace steno
