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
  Matrix::Kind kind, head_kind;  // of the layers' matrices, of the head
  int group;                     // I4: columns that share a scale
  int embedding;                 // Model::Embedding: where the rows are
  bool qkv_bias, out_bias, mlp_bias, qk_norm;
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
  Scratch<int32_t> sums;
  Scratch<float> own;
  Scratch<int32_t> best_id;
  Scratch<float> best;
  std::atomic<int> unit{0};
};

// Every weight lies in one piece of memory, in an order that follows from the config: a packed model is that piece in a
// file, mapped instead of made again. Layouts are the same for every instruction set.
class Model {
 public:
  enum Part { QKV, OUT, GATE_UP, DOWN, HEAD };
  enum Norm { NORM_IN, NORM_MID, NORM_Q, NORM_K, NORM_OUT };
  enum Embedding { IN_HEAD, ROWS_F32, ROWS_BF16, ROWS_F16 };

  // With `packed`, the file is used where it holds this model under `key`; then `mapped()` and nothing needs to be put.
  explicit Model(Config c, const std::string& packed = "", const std::string& key = "");

  // Rows row..row + n of a matrix, rounded to its kind.
  void put_floats(Part part, int layer, int row, int n, int k, const float* w);
  void put_bytes(Part part, int layer, int row, int n, int k, const int8_t* w, const float* scale);         // I8
  void put_nibbles(Part part, int layer, int row, int n, int k, const int8_t* w, const uint16_t* scale);    // I4; [n, k / group]
  void put_bias(Part part, int layer, int row, int n, const float* b);
  void put_norm(Norm which, int layer, int n, const float* w);
  void put_embedding(const void* rows);
  void ready() const;  // all in place, or a Fault
  void save(const std::string& path, const std::string& key) const;

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

  bool mapped() const { return file_ != nullptr; }
  const char* weights() const { return weights_; }
  size_t weight_bytes() const { return bytes_; }

 private:
  struct Place;
  void place(Place& at);
  Matrix& part(Part p, int layer, int row, int n, int k);
  std::string header(const std::string& key) const;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Mapped> file_;
  char* weights_ = nullptr;
  size_t bytes_ = 0;
  int64_t missing_ = 0;  // rows and norms that nobody has put yet
  void* embedding_ = nullptr;
};

}  // namespace steno
