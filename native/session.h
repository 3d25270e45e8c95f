// A model bound to rows of tokens: committed keys and values, and the last forward's nodes beside them.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kv.h"
#include "model.h"

namespace steno {

constexpr int ROOT = -1, PAD = -2;

// What to run; pointers are into the caller's arrays, [rows, width] unless said otherwise.
struct Request {
  int width = 0;
  const int32_t* tokens = nullptr;
  const int32_t* parents = nullptr;
  const int32_t* positions = nullptr;  // optional
  const bool* visible = nullptr;       // optional [rows, width, width]
  const float* embeds = nullptr;       // optional [rows, width, model width]
  int low = 0, high = 0;               // layers [low, high)
  bool logits = true;
  std::vector<int> hidden;             // layers whose states to keep
};

class Session {
 public:
  Session(std::shared_ptr<Model> model, int rows, int capacity, const Form& form, bool poison);
  std::unique_ptr<Session> fork(const std::vector<int>& rows);

  // Chains of tokens, committed as they are computed. `last`: logits [rows, vocab] after each row's last token, or null.
  // `breathe` is called between pieces and may throw, which leaves the pieces done so far committed.
  void prefill(const std::vector<std::vector<int32_t>>& prompts, float* last, const std::function<void()>& breathe);
  void forward(const Request& r);
  void commit(const std::vector<std::vector<int>>& paths);
  // To 0, or where nothing has been sealed in between.
  void crop(const std::vector<int>& lengths);
  void head(const float* hidden, int n, float* logits);  // final norm and projection of n states
  void top(int count, int32_t* ids, float* values);      // of the last forward, [rows, width, count]

  int rows() const { return (int)row_.size(); }
  int length(int r) const { return row_[r].length; }
  // Keys and values a row holds of a layer in the slots [from, to), [kv_heads, to - from, head_dim] each.
  void kept(int row, int layer, int from, int to, float* keys, float* values) const;
  // Committed tokens whose keys and values [layers, kv_heads, count, head_dim] are known already; seals what is due.
  void append(int row, int count, const float* keys, const float* values);
  // The sealed tokens of a row, and an empty row that holds them: its first `sealed` tokens.
  size_t code_bytes(int sealed) const { return kv_.code_bytes(sealed); }
  int sealed(int row) const { return row_[row].sealed; }
  void copy_codes(int row, uint8_t* out) const { kv_.copy_codes(row_[row], out); }
  void restore(int row, int sealed, const uint8_t* codes);
  const Form& form() const { return kv_.form; }
  CacheBytes cache_bytes() const { return kv_.bytes(row_); }
  size_t staging_bytes() const { return staging_.memory ? staging_.memory->bytes : 0; }

  const std::shared_ptr<Model> model;
  const int capacity;
  // Outputs of the last forward. `serial` tells a Step whether they are still its own.
  unsigned serial = 0;
  int width = 0;
  bool has_logits = false;
  size_t vocab_stride;
  Scratch<float> logits;                 // [rows * width, vocab_stride]
  Scratch<int32_t> best;                 // [rows * width]
  std::vector<int> hidden_layers;
  Scratch<float> hidden;                 // [hidden_layers, rows * width, model width]
  std::vector<uint8_t> live;             // [rows * width]: not padding

 private:
  friend struct Pass;
  struct Node {
    int row, index, token, slot, position, path, path_len;
    const float* embed;
    bool chain;  // its path is the row's first nodes in order
  };

  float* staged(int row, int layer, int g) const;
  void plan(const Request& r);                // checks a request and fills nodes_ and paths_
  void stage(int width);                      // room for width nodes per row
  void run(int low, int high, const std::vector<int>& hidden, const std::vector<int>& heads, const std::vector<int>& head_rows,
           float* logits, int32_t* best);
  void accept(int row, const int* nodes, int n);  // staged nodes become the next slots, and what is due is sealed
  void settle();                              // between steps a session stages one panel of nodes
  Session(const Session& from, const std::vector<int>& rows);

  Kv kv_;
  std::vector<Row> row_;
  std::vector<Node> nodes_;
  std::vector<int> paths_;
  std::vector<int> parents_;   // of the last forward, [rows * width]
  bool full_ = false;          // it ran all layers, and nothing has moved since: it can be committed
  int head_pad_, staged_width_ = 0;
  bool poison_;
  Scratch<float> staging_;
};

}  // namespace steno
