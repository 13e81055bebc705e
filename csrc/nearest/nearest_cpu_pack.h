// What both plans (nearest_cpu.cpp, nearest_cpu_pruned.cpp) do to memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../common/parallel.h"

namespace paperops::nearest {

// columns [D, stride] <- points [count, D]; NaN beyond.
template <typename T>
void pack_columns(const T* points, int64_t count, int64_t dimensions, int64_t stride, T* columns) {
  for (int64_t d = 0; d < dimensions; ++d) {
    T* column = columns + d * stride;
    for (int64_t i = 0; i < count; ++i) {
      column[i] = points[i * dimensions + d];
    }
    std::fill(column + count, column + stride, std::numeric_limits<T>::quiet_NaN());
  }
}

// Rows [begin, end) of one cloud's outputs.
template <typename T>
void fill_rows(T* distances, int64_t* indices, int64_t begin, int64_t end, int64_t k, T distance) {
  std::fill(distances + begin * k, distances + end * k, distance);
  std::fill(indices + begin * k, indices + end * k, int64_t{-1});
}

}  // namespace paperops::nearest
