// The threads of the process: few, shared by all models, quick to wake and asleep when there is nothing to do.
#pragma once

namespace steno {

class Pool {
 public:
  static Pool& get();
  // Runs fn(arg, t) for t = 0..threads-1, t = 0 on the calling thread. One job at a time; callers queue.
  // fn must not throw.
  void run(int threads, void (*fn)(void*, int), void* arg);
  // Inside a job of `threads` threads: waits until all of them are here.
  void meet(int threads);

 private:
  struct State;
  State* state_;
  explicit Pool(State* s) : state_(s) {}
};

constexpr int MAX_THREADS = 256;

}  // namespace steno
