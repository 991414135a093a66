// A small thread pool for loops over independent items.
//
// The caller always takes part. Workers that are late simply find nothing to do: the caller waits only for workers that have
// already entered the loop, so a descheduled worker never stalls a frame. One loop runs at a time; a caller that finds the pool
// taken (another stream in another thread) runs its loop alone.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sightline {

class Pool {
 public:
  static Pool& instance();
  void set_threads(int n);  // including the caller; n >= 1
  int threads() const { return wanted_.load(std::memory_order_relaxed); }

  // Calls body(item, worker) for every item in [0, items); worker is in [0, threads()), 0 for the caller.
  template <class F>
  void run(int items, F&& body) {
    if (items <= 0) return;
    if (items == 1 || threads() == 1 || !busy_.try_lock()) {
      for (int i = 0; i < items; ++i) body(i, 0);
      return;
    }
    std::lock_guard<std::mutex> hold(busy_, std::adopt_lock);
    if (alone_ > 0) {
      --alone_;
      for (int i = 0; i < items; ++i) body(i, 0);
      return;
    }
    call_ = [](void* f, int item, int worker) { (*static_cast<std::remove_reference_t<F>*>(f))(item, worker); };
    context_ = &body;
    distribute(items);
  }

 private:
  Pool() = default;
  void distribute(int items);
  void take(int worker);
  void work(int worker);
  void start();
  void stop();

  std::mutex busy_;
  std::atomic<int> wanted_{1};
  std::vector<std::thread> workers_;
  void (*call_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int items_ = 0;
  std::atomic<int> next_{0};
  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> quit_{false};
  // Loops to run alone: a worker that was descheduled in the middle of an item has made the caller wait, so the machine has no core
  // to spare. Doubles each time, falls back to nothing once workers keep up.
  int alone_ = 0, penalty_ = 16, good_ = 256;
  int owner_ = 0;  // process that started the workers: they do not survive a fork
};

}  // namespace sightline
