// The threads of the process: few, shared by all models, quick to wake and asleep when there is nothing to do.
#pragma once
#include <cstdint>

namespace steno {

class Pool {
 public:
  static Pool& get();
  // How many of `threads` to use now for so many products per layer: fewer where there is little to do, and fewer while
  // other processes hold the cores (see Pool::State::learn).
  int grant(int threads, int64_t work);
  // Grant all that is asked for, always: lets tests reach the threaded paths with small models.
  void insist(bool always);
  // Runs fn(arg, t) for t = 0..threads-1, t = 0 on the calling thread. One job at a time; callers queue.
  // fn must not throw.
  void run(int threads, void (*fn)(void*, int), void* arg);
  // Inside a job of `threads` threads, by thread t: waits until all of them are here.
  void meet(int threads, int t);

 private:
  struct State;
  State* state_;
  explicit Pool(State* s) : state_(s) {}
};

constexpr int MAX_THREADS = 256;

}  // namespace steno
