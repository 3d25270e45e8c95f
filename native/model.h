// A loaded model: packed weights, and the scratch memory of the forward that is running.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "rope.h"

namespace steno {

struct Config {
  int width, layers, heads, kv_heads, head_dim, inner, vocab, context;
  float norm_eps;
  bool tied;           // the head is the embedding
  bool int8;           // matrices as bytes, else as floats
  std::vector<int> windows;   // per layer; 0: sees everything
  std::vector<int> rotary;    // per layer; 0: no positions
  std::vector<float> frequency;
  int threads;
};

struct Layer {
  Matrix qkv, out, gate_up, down;
  float *norm_in = nullptr, *norm_mid = nullptr, *norm_q = nullptr, *norm_k = nullptr;
};

// Scratch of one forward. `own` pieces exist once per thread.
struct Workspace {
  Scratch<float> x, h, qkv, o, y, gu, act, scale;
  Scratch<int8_t> bytes;
  Scratch<float> own;
  Scratch<int32_t> best_id;
  Scratch<float> best;
  std::atomic<int> unit{0};
};

class Model {
 public:
  enum Part { QKV, OUT, GATE_UP, DOWN, HEAD };
  enum Norm { NORM_IN, NORM_MID, NORM_Q, NORM_K, NORM_OUT };
  enum Kind { EMBED_F32, EMBED_BF16, EMBED_F16 };

  explicit Model(Config c);

  // Rows row..row + n of a matrix. Floats are quantised where the model is int8; bytes need it to be.
  void put_floats(Part part, int layer, int row, int n, int k, const float* w);
  void put_bytes(Part part, int layer, int row, int n, int k, const int8_t* w, const float* scale);
  void put_bias(Part part, int layer, int row, int n, const float* b);
  void put_norm(Norm which, int layer, int n, const float* w);
  // Embedding rows apart from the head. A tied model without them reads its embedding from the head's matrix.
  void put_embedding(Kind kind, const void* rows);
  void ready();  // all in place: derived values

  void embed(int token, float* out) const;  // width values and zeros up to the padded width

  const Config c;
  const Kernels& k;
  int dp, op, ip;  // padded width, heads * head_dim, inner
  std::vector<Layer> layer;
  Matrix head;
  float* norm_out = nullptr;
  Rope rope;
  Workspace work;
  std::mutex lock;  // held by a running forward

  size_t weight_bytes() const;
  // All weight memory in a fixed order, for hashing.
  std::vector<std::pair<const void*, size_t>> pieces() const;

 private:
  Matrix matrix(int n, int k);
  Matrix& part(Part p, int layer);
  float* floats(size_t n);
  template <class T> T* take(size_t n);
  std::vector<std::unique_ptr<Memory>> memory_;
  Kind embed_kind_ = EMBED_F32;
  const void* embed_rows_ = nullptr;
};

}  // namespace steno
