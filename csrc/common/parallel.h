// Threads and scratch memory for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace paperops {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Uninitialised memory, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(size > 0 ? static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), alignment())) : nullptr) {}

  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t alignment() { return std::align_val_t(64); }
  struct Free {
    void operator()(T* data) const { ::operator delete(data, alignment()); }
  };
  std::unique_ptr<T, Free> data_;
};

// Runs worker(next) on torch's threads. Each worker takes tasks by calling next(), which hands out 0 .. tasks - 1 once
// each and then -1: whoever is free takes the next one. What a task computes must not depend on who runs it.
// Where `parallel` is false (too little work to wake a thread) everything runs in the calling thread.
template <class Worker>
void run_tasks(int64_t tasks, bool parallel, const Worker& worker) {
  std::atomic<int64_t> counter{0};
  const auto next = [&]() -> int64_t {
    const int64_t task = counter.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  const int64_t workers = parallel ? std::min<int64_t>(tasks, torch::stable::get_num_threads()) : 1;
  if (workers <= 1) {
    worker(next);
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { worker(next); });
}

}  // namespace paperops
