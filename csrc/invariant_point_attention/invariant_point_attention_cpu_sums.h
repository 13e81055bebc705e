// What the gradients have of sums over all queries, and how the sums become gradients.
//
// The blocks of an item belong to at most kSplits splits. A split goes through its blocks in order and has sums of its own;
// at the end the splits' sums are added in order.
#pragma once

#include "invariant_point_attention_cpu_plan.h"

namespace paperops::ipa {

constexpr int64_t kSplits = 8;

// The sums over queries of one split of an item.
template <typename T>
struct Sums {
  Sums(const Sizes& s, int64_t pitch, int64_t z_pitch, char* memory)
      : key_pitch(padded<T>(s.channels)), value_pitch(padded<T>(s.value_rows())) {
    Carver carver(memory);
    keys = carver.take<T>(s.heads * s.n * key_pitch);
    points = carver.take<T>(s.heads * s.query_coordinates * pitch);
    values = carver.take<T>(s.heads * s.n * value_pitch);
    weight = carver.take<T>(s.heads * z_pitch);
    constant = carver.take<double>(s.heads);
    point_weights = carver.take<double>(s.heads);
    used = carver.used();
  }
  int64_t key_pitch, value_pitch;
  T* keys;                // [H, N, key_pitch]: dk
  T* points;              // [H, 3 Pq, pitch]: dk_points
  T* values;              // [H, N, value_pitch]: dv, dv_points
  T* weight;              // [H, z_pitch]: dbias_weight / W_L
  double* constant;       // [H]: dbias_bias / W_L
  double* point_weights;  // [H]: -dpoint_weights
  int64_t used;
};

// Values into a parameter's gradient; nothing where the parameter is None (an empty tensor).
template <typename T>
void store_gradient(const Tensor& to, const T* values, int64_t count, double factor, int64_t offset = 0) {
  if (to.numel() == 0) {
    return;
  }
  with_type(to.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    std::transform(values, values + count, static_cast<S*>(to.data_ptr()) + offset,
                   [factor](T value) { return static_cast<S>(static_cast<Wide<S>>(value * factor)); });
  });
}

}  // namespace paperops::ipa
