#include "pool.h"

#include <unistd.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#define SL_PAUSE() _mm_pause()
#else
#define SL_PAUSE() std::this_thread::yield()
#endif

namespace sightline {

namespace {
// About 20 microseconds: longer than the gap between two loops of a frame, shorter than anything a person would notice.
constexpr int kSpins = 600;
// Items are far smaller than this: whoever takes longer has lost its core.
constexpr std::chrono::microseconds kTooLong{1500};
}  // namespace

Pool& Pool::instance() {
  // Never destroyed: workers may still sleep in it while the interpreter shuts down.
  static Pool* pool = new Pool();
  return *pool;
}

void Pool::set_threads(int n) {
  std::lock_guard<std::mutex> hold(busy_);
  if (n < 1) n = 1;
  if (n == wanted_.load()) return;
  stop();
  wanted_.store(n);
}

void Pool::start() {
  const int me = (int)getpid();
  if (owner_ != me && !workers_.empty()) {
    // After a fork the handles are there but the threads are not.
    new std::vector<std::thread>(std::move(workers_));
    workers_.clear();
    inside_.store(0);
    sleeping_.store(0);
  }
  owner_ = me;
  while ((int)workers_.size() < wanted_.load() - 1) {
    const int index = (int)workers_.size() + 1;
    workers_.emplace_back([this, index] { work(index); });
  }
}

void Pool::stop() {
  if (owner_ != (int)getpid()) {
    if (!workers_.empty()) new std::vector<std::thread>(std::move(workers_));
    workers_.clear();
    return;
  }
  quit_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& t : workers_) t.join();
  workers_.clear();
  quit_.store(false);
}

void Pool::take(int worker) {
  for (;;) {
    const int i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= items_) return;
    call_(context_, i, worker);
  }
}

void Pool::distribute(int items) {
  start();
  items_ = items;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true);
  generation_.fetch_add(1);
  if (sleeping_.load() > 0) generation_.notify_all();
  take(0);
  open_.store(false);
  if (inside_.load() == 0) return;
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 0; inside_.load() != 0; ++spins) {
    if (spins < 4000) SL_PAUSE();
    else std::this_thread::yield();
  }
  if (std::chrono::steady_clock::now() - start > kTooLong) {
    alone_ = penalty_;
    penalty_ = penalty_ < 1024 ? penalty_ * 2 : penalty_;
  } else if (penalty_ > 16 && --good_ <= 0) {
    penalty_ /= 2;
    good_ = 256;
  }
}

void Pool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t now = generation_.load();
    for (int i = 0; now == seen && i < kSpins; ++i) {
      SL_PAUSE();
      now = generation_.load();
    }
    while (now == seen) {
      sleeping_.fetch_add(1);
      generation_.wait(seen);
      sleeping_.fetch_sub(1);
      now = generation_.load();
    }
    seen = now;
    if (quit_.load()) return;
    inside_.fetch_add(1);
    if (open_.load()) take(worker);
    inside_.fetch_sub(1);
  }
}

}  // namespace sightline
