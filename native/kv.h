// Committed keys and values of a row: the newest tokens open, in floats, the older ones as a cache form keeps them.
//
// Both stand in pages of some slots, all layers and heads together, that forks share by reference. A page is written
// once, slot after slot. Whoever continues a page exactly where its last writer stopped goes on in place, since nobody
// else looks behind the end of his own row; anyone else first copies the part that is his. So a fork costs the pages it
// changes, and the first to go on pays nothing.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"

namespace steno {

constexpr int OPEN_SLOTS = 64;

// A cache form in numbers. Of n committed tokens, max(0, n - residual) / block * block have left the open ones.
struct Form {
  int residual = 0, block = 0;  // block 0: all stay
  bool coded = false;           // those that left are kept in `coding`; else they are dropped, save the first `sinks`
  Coding coding;
  int sinks = 0, window = 0;    // window > 0: a query sees the first `sinks` tokens and the newest `window`

  int due(int length) const { return block && length > residual ? (length - residual) / block * block : 0; }
  // Tokens that may be committed at `length` before `due` changes.
  int room(int length, int most) const { return block ? std::min(most, residual + due(length) + block - length) : most; }
};

struct Page {
  explicit Page(std::shared_ptr<Pieces> from) : pieces(std::move(from)), data(static_cast<uint8_t*>(pieces->take())) {}
  ~Page() { pieces->give(data); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  size_t bytes() const { return pieces->bytes; }
  const std::shared_ptr<Pieces> pieces;
  uint8_t* const data;
  int filled = 0;  // slots written, by whichever row went furthest
};

struct Pages {
  std::vector<std::shared_ptr<Page>> page;  // null where nothing is held
  std::vector<uint8_t*> data;               // the same for the kernels
  void put(size_t i, std::shared_ptr<Page> p);
  void cut(size_t count);
};

struct Row {
  int length = 0, sealed = 0;
  Pages open, codes;
};

struct CacheBytes {
  size_t payload = 0, scales = 0, open = 0;
};

// What all rows of a session have in common.
class Kv {
 public:
  Kv(const Config& c, const Kernels& k, const Form& form, bool poison);

  const Form form;
  const int layers, heads, head_dim, head_pad;
  const Places places;

  Store open(const Row& r, int layer, int head) const;
  Store sealed(const Row& r, int layer, int head) const;
  float* key(const Row& r, int layer, int head, int slot) const;    // of an open slot; channels lie PANEL apart
  float* value(const Row& r, int layer, int head, int slot) const;

  void reserve(Row& r, int count) const;  // open slots [length, length + count) can be written
  // Hands over what is due; row names it in errors. Throws Fault::MODEL where a number does not fit the form.
  void seal(Row& r, int row, int threads) const;
  void crop(Row& r, int length) const;
  // What is held of a layer and head in the slots [from, to), as floats [to - from, head_dim]; NaN where a token was
  // dropped.
  void read(const Row& r, int layer, int head, int from, int to, float* keys, float* values) const;
  // The reverse, into `count` open slots that are reserved.
  void write(Row& r, int layer, int head, int from, int count, const float* keys, const float* values) const;
  // Pages of sealed tokens as they lie, one after another, and a row of `sealed` tokens made of them.
  size_t code_bytes(int sealed) const { return form.coded ? (sealed + sealed_slots_ - 1) / sealed_slots_ * places.end * layers * heads : 0; }
  void copy_codes(const Row& r, uint8_t* out) const;
  void restore(Row& r, int sealed, const uint8_t* codes) const;
  CacheBytes bytes(const std::vector<Row>& rows) const;

 private:
  void writable(Pages& pages, int index, int used, bool open) const;
  void scrub(Page& page, int used) const;  // poison for open slots from `used` on
  const Kernels& kernels_;
  const bool poison_;
  const int sealed_slots_;
  const size_t open_part_;  // bytes of one layer and head of an open page
  const std::shared_ptr<Pieces> open_pages_, sealed_pages_;
};

}  // namespace steno
