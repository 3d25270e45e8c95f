#include "pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "fault.h"

namespace steno {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The caller's thread may run with flush-to-zero or another rounding (torch can set both): the engine's bits must not.
struct PlainFloats {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  PlainFloats() { _mm_setcsr(0x1F80); }
  ~PlainFloats() { _mm_setcsr(saved); }
#elif defined(__aarch64__)
  unsigned long saved;
  PlainFloats() {
    asm volatile("mrs %0, fpcr" : "=r"(saved));
    asm volatile("msr fpcr, %0" ::"r"(0ul));
  }
  ~PlainFloats() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
};

using Clock = std::chrono::steady_clock;
constexpr int64_t ENOUGH = 50000;  // products per thread and layer, some microseconds, that a meeting is worth
constexpr int PATIENCE = 4000;  // pauses before a waiting thread lets others have its core
constexpr auto SHORT = std::chrono::milliseconds(10), LONG = std::chrono::milliseconds(1000);
constexpr unsigned TICKET = 1024;
static_assert(MAX_THREADS < TICKET);
constexpr auto SPIN = std::chrono::microseconds(50);

}  // namespace

struct Pool::State {
  std::mutex one_job;
  int workers = 0;
  // Serial number of the job and, in the low bits, its thread count: a worker that wakes late and is not part of the job
  // must learn that from the same load, because fn and arg may already belong to the next one. Workers sleep on it.
  alignas(64) std::atomic<unsigned> ticket{0};
  void (*fn)(void*, int) = nullptr;
  void* arg = nullptr;
  alignas(64) std::atomic<int> running{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> meeting{0};

  // A thread that waits for another which the system has put aside loses a whole time slice, thousands of times what
  // the wait should take. While that happens fewer threads are faster, so the number is halved, and doubled again when a
  // trial after a growing pause goes well. Results do not depend on it.
  bool insist = false;
  int granted = MAX_THREADS;
  Clock::time_point retry{};
  Clock::duration pause_for = SHORT;
  Clock::duration lost{};  // by the calling thread in the running job

  template <class Ready> void wait(const Ready& ready, bool caller) {
    for (int i = 0; i < PATIENCE; i++) {
      if (ready()) return;
      pause();
    }
    Clock::time_point from = Clock::now();
    while (!ready()) sched_yield();
    if (caller) lost += Clock::now() - from;
  }

  void learn(int threads, Clock::time_point start) {
    Clock::time_point now = Clock::now();
    if (lost * 2 > now - start) {
      granted = threads / 2;
      retry = now + pause_for;
      pause_for = std::min<Clock::duration>(pause_for * 2, LONG);
    } else if (threads > granted) {
      granted = threads;
      retry = now + SHORT;
    } else {
      pause_for = std::max<Clock::duration>(pause_for - pause_for / 64, SHORT);
    }
  }

  void work(int t, unsigned seen) {
    for (;;) {
      Clock::time_point until = Clock::now() + SPIN;
      unsigned now;
      while ((now = ticket.load(std::memory_order_acquire)) == seen) {
        for (int i = 0; i < 32; i++) pause();
        if (Clock::now() > until) ticket.wait(seen, std::memory_order_acquire);
      }
      seen = now;
      if (t >= (int)(now % TICKET)) continue;
      {
        PlainFloats plain;
        fn(arg, t);
      }
      running.fetch_sub(1, std::memory_order_release);
    }
  }
};

Pool& Pool::get() {
  // Never destroyed: its threads may still be asleep in it when the process ends. A forked child has none of the
  // threads, so it gets a pool of its own.
  static std::mutex guard;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(guard);
  if (!pool || owner != getpid()) {
    pool = new Pool(new State());
    owner = getpid();
  }
  return *pool;
}

void Pool::insist(bool always) {
  std::lock_guard<std::mutex> lock(state_->one_job);
  state_->insist = always;
}

int Pool::grant(int threads, int64_t work) {
  State& s = *state_;
  std::lock_guard<std::mutex> lock(s.one_job);
  if (s.insist) return threads;
  threads = (int)std::clamp<int64_t>(work / ENOUGH, 1, threads);
  if (threads <= s.granted) return threads;
  return Clock::now() < s.retry ? s.granted : std::min(threads, s.granted * 2);
}

void Pool::run(int threads, void (*fn)(void*, int), void* arg) {
  State& s = *state_;
  std::lock_guard<std::mutex> lock(s.one_job);
  PlainFloats plain;
  if (threads <= 1) {
    fn(arg, 0);
    return;
  }
  try {
    while (s.workers < threads - 1) {
      std::thread(&State::work, &s, s.workers + 1, s.ticket.load()).detach();
      s.workers++;
    }
  } catch (const std::system_error&) {
    throw Fault(Fault::USER, "threads: the system refused to start thread " + std::to_string(s.workers + 2) + " of " +
                                 std::to_string(threads) + ". Set STENO_THREADS to a smaller number.");
  }
  s.fn = fn;
  s.arg = arg;
  Clock::time_point start = Clock::now();
  s.lost = {};
  s.running.store(threads - 1, std::memory_order_relaxed);
  s.ticket.store((s.ticket.load() / TICKET + 1) * TICKET + threads, std::memory_order_release);
  s.ticket.notify_all();
  fn(arg, 0);
  s.wait([&] { return s.running.load(std::memory_order_acquire) == 0; }, true);
  s.learn(threads, start);
}

void Pool::meet(int threads, int t) {
  if (threads <= 1) return;
  State& s = *state_;
  unsigned now = s.meeting.load(std::memory_order_relaxed);
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.meeting.store(now + 1, std::memory_order_release);
    return;
  }
  s.wait([&] { return s.meeting.load(std::memory_order_acquire) != now; }, t == 0);
}

}  // namespace steno
