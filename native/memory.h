// Aligned memory, counted references to it, equal pieces of it, and scratch that grows.
#pragma once
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace steno {

// Zeroed, aligned to 64 bytes; large pieces to 2 MiB, on huge pages where the system has them.
void* allocate(size_t bytes);
void release(void* p, size_t bytes);

struct Memory {
  void* data;
  size_t bytes;
  explicit Memory(size_t n) : data(allocate(n)), bytes(n) {}
  ~Memory() { release(data, bytes); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

// Pieces of one size, cut side by side out of large memory, so that the system can give them huge pages however small one
// is. A piece is 64-byte aligned and holds what its last user left. Memory whose pieces have all come back is released.
class Pieces {
 public:
  explicit Pieces(size_t bytes);
  const size_t bytes;  // of a piece
  void* take();
  void give(void* piece);

 private:
  struct Slab {
    std::unique_ptr<Memory> memory;
    std::vector<int> free;  // the next to be taken is the last
  };
  const int per_slab_;
  std::mutex lock_;
  std::vector<Slab> slabs_;
};

// A file of weights in memory, for reading, aligned so that the system can use huge pages for it.
struct Mapped {
  const char* data = nullptr;
  size_t bytes = 0;
  explicit Mapped(const char* path);  // data stays null where the file cannot be opened
  ~Mapped();
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

 private:
  void* base_ = nullptr;
  size_t base_bytes_ = 0;
};

// Memory of at least `count` items. Growing drops the contents and makes new memory: whoever still holds the old piece
// (a numpy view handed out before) keeps it.
template <class T>
struct Scratch {
  std::shared_ptr<Memory> memory;
  T* get(size_t count) {
    if (!memory || memory->bytes < count * sizeof(T)) memory = std::make_shared<Memory>(count * sizeof(T));
    return static_cast<T*>(memory->data);
  }
  T* data() const { return memory ? static_cast<T*>(memory->data) : nullptr; }
};

}  // namespace steno
