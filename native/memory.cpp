#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace steno {
namespace {
constexpr size_t LARGE = size_t(1) << 20, HUGE_PAGE = size_t(2) << 20;

// Memory that pieces are cut from: mapped, and only touched as pieces are used. Small pieces are few enough to stand alone.
constexpr size_t SLAB = size_t(32) << 20, SMALL = size_t(1) << 18;

size_t mapped(size_t bytes) { return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE; }
}  // namespace

// Large pieces come from the system: they are zero without being touched, so a session pays for the context it uses and not
// for the one it may use. The piece is aligned by mapping one huge page too many and remembering nothing: the base is found
// again in a header just below the data.
void* allocate(size_t bytes) {
  if (bytes == 0) bytes = 64;
  if (bytes < LARGE) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, (bytes + 63) / 64 * 64);
    return p;
  }
  void* base = mmap(nullptr, mapped(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  size_t at = reinterpret_cast<size_t>(base);
  size_t data = at / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;  // strictly above `at`, and at least 4096 above it
  std::memcpy(reinterpret_cast<void*>(data - sizeof(void*)), &base, sizeof(void*));
#if defined(MADV_HUGEPAGE)
  madvise(reinterpret_cast<void*>(data), bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
  return reinterpret_cast<void*>(data);
}

void release(void* p, size_t bytes) {
  if (!p) return;
  if (bytes < LARGE) {
    std::free(p);
    return;
  }
  void* base;
  std::memcpy(&base, static_cast<char*>(p) - sizeof(void*), sizeof(void*));
  munmap(base, mapped(bytes));
}

Pieces::Pieces(size_t n)
    : bytes((n + 63) / 64 * 64), per_slab_(bytes < SMALL ? 1 : (int)std::max<size_t>(1, SLAB / bytes)) {}

void* Pieces::take() {
  std::lock_guard<std::mutex> hold(lock_);
  for (Slab& s : slabs_) {
    if (s.free.empty()) continue;
    int i = s.free.back();
    s.free.pop_back();
    return static_cast<char*>(s.memory->data) + i * bytes;
  }
  Slab fresh{std::make_unique<Memory>(per_slab_ * bytes), {}};
  for (int i = per_slab_ - 1; i > 0; i--) fresh.free.push_back(i);
  slabs_.push_back(std::move(fresh));
  return slabs_.back().memory->data;
}

void Pieces::give(void* piece) {
  std::lock_guard<std::mutex> hold(lock_);
  for (size_t n = 0; n < slabs_.size(); n++) {
    size_t at = static_cast<char*>(piece) - static_cast<char*>(slabs_[n].memory->data);
    if (at >= per_slab_ * bytes) continue;  // below the start it wraps to a large number
    slabs_[n].free.push_back((int)(at / bytes));
    if ((int)slabs_[n].free.size() == per_slab_) slabs_.erase(slabs_.begin() + n);
    return;
  }
}

Mapped::Mapped(const char* path) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  struct stat about;
  if (fstat(file, &about) == 0 && about.st_size > 0) {
    size_t size = (size_t)about.st_size, room = mapped(size);
    void* base = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base != MAP_FAILED) {
      base_ = base;
      base_bytes_ = room;
      size_t at = (reinterpret_cast<size_t>(base) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
      void* got = mmap(reinterpret_cast<void*>(at), size, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0);
      if (got != MAP_FAILED) {
        data = static_cast<const char*>(got);
        bytes = size;
#if defined(MADV_HUGEPAGE)
        madvise(got, size, MADV_HUGEPAGE);
#endif
      }
    }
  }
  close(file);
}

Mapped::~Mapped() {
  if (base_) munmap(base_, base_bytes_);
}

}  // namespace steno
