// Products of matrices by torch's own BLAS, from within our threads.
//
// The functions called here are those that torch's ahead-of-time compiler calls: no dispatcher, no autograd. Inside a
// parallel region (run_in_threads below) a product is computed by the calling thread alone, so that its bits do not
// depend on how many there are.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "parallel.h"

namespace paperops {

// A view of somebody's memory as a matrix.
template <typename T>
struct Matrix {
  T* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride = 1;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

inline int32_t torch_dtype(float) { return aoti_torch_dtype_float32(); }
inline int32_t torch_dtype(double) { return aoti_torch_dtype_float64(); }
inline int32_t torch_dtype(torch::headeronly::BFloat16) { return aoti_torch_dtype_bfloat16(); }

// A torch tensor over a matrix's memory.
class MatrixHandle {
 public:
  template <typename T>
  explicit MatrixHandle(const Matrix<T>& matrix) {
    const int64_t sizes[2] = {matrix.rows, matrix.columns};
    const int64_t strides[2] = {matrix.row_stride, matrix.column_stride};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        matrix.data, 2, sizes, strides, 0, torch_dtype(T{}), aoti_torch_device_type_cpu(), 0, &handle_));
  }
  ~MatrixHandle() { aoti_torch_delete_tensor_object(handle_); }
  MatrixHandle(const MatrixHandle&) = delete;
  MatrixHandle& operator=(const MatrixHandle&) = delete;
  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

// out = a b, or out += a b. No dimension may be 0.
template <typename T>
void multiply(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b, bool add = false) {
  const MatrixHandle result(out), left(a), right(b);
  if (add) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  }
}

// Memory that every worker has for itself: made once for all the parallel regions of a call, since fresh pages are dear.
class Workspaces {
 public:
  explicit Workspaces(int64_t bytes)
      : bytes_((bytes + 63) / 64 * 64), memory_(bytes_ * std::max<int64_t>(1, torch::stable::get_num_threads())) {}
  char* get(int64_t worker) const { return memory_.data() + worker * bytes_; }

 private:
  int64_t bytes_;
  Buffer<char> memory_;
};

// Hands out pieces of a workspace, each aligned to a cache line. Without one it only adds up what will be needed.
class Carver {
 public:
  explicit Carver(char* memory = nullptr) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Runs work(task, workspace) for tasks 0 .. tasks - 1 on torch's threads, as run_tasks does, but always within a parallel
// region where there is more than one thread: products are then serial, whatever the number of tasks.
template <class Work>
void run_in_threads(int64_t tasks, const Workspaces& workspaces, const Work& work) {
  std::atomic<int64_t> counter{0}, workers{0};
  const auto worker = [&](int64_t, int64_t) {
    char* workspace = workspaces.get(workers.fetch_add(1, std::memory_order_relaxed));
    for (;;) {
      const int64_t task = counter.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) {
        return;
      }
      work(task, workspace);
    }
  };
  const int64_t threads = torch::stable::get_num_threads();
  if (threads <= 1) {
    worker(0, 1);
  } else {
    torch::stable::parallel_for(0, std::max<int64_t>(2, std::min(tasks, threads)), 1, worker);
  }
}

}  // namespace paperops
