// Contiguous maps: a vector is columns of one channel, and a task has up to four channels. For one instruction set.
#pragma once

#include "dynopool_cpu_lanes.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// The columns of one vector of cells: for each t the indices from the first on, and the fractions.
template <typename T, int K>
struct Columns {
  PAPEROPS_INLINE Columns make(const Axis<T>& axis, int64_t j) {
    Columns found;
    using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    for (int t = 0; t < K; ++t) {
      const int64_t at = t * axis.pitch + j;
      found.base[t] = axis.first.data()[at];
      const Bits<T> base = Bits<T>{} + static_cast<Integer>(found.base[t]);
      found.first[t] = load_indices<T>(axis.first.data() + at) - base;
      found.second[t] = load_indices<T>(axis.second.data() + at) - base;
      found.fraction[t] = load_vector(axis.fraction.data() + at);
      found.any[t] = (Mask<T>)not_zero(found.fraction[t]);
    }
    return found;
  }
  template <Reach reach>
  inline __attribute__((always_inline)) Vector<T> at(const T* row, int t) const {
    return between<T>(take<reach, T>(row + base[t], first[t]), take<reach, T>(row + base[t], second[t]), fraction[t], any[t]);
  }

  int64_t base[K];
  Bits<T> first[K], second[K];
  Vector<T> fraction[K];
  Mask<T> any[K];
};

// A row of x as these kernels read it: element 0 is the pixel before the map, and four vectors may be read anywhere.
template <typename T>
PAPEROPS_INLINE int64_t row_pitch(int64_t pixels) {
  return pixels + 2 + 4 * kLanes<T>;
}

// Row e of samples, in x itself where it is a row of it, else in `to`.
template <typename X, typename T = Wide<X>>
PAPEROPS_INLINE const T* sample_row(const Problem<X>& p, const X* plane, int64_t e, T* to) {
  const int64_t at = p.rows.at(e), width = p.columns.pixels;
  const T f = p.rows.fraction.data()[at];
  const X* first = row_of(p, plane, p.rows.first.data()[at]);
  if constexpr (std::is_same<X, T>::value) {
    if (f == T{0} && !p.zeros && first + width + 4 * kLanes<T> <= p.x_end()) {
      return first - 1;
    }
  }
  to[0] = to[width + 1] = T{0};
  blend(first, row_of(p, plane, p.rows.second.data()[at]), f, width, to + 1);
  return to;
}

template <Mode mode, Reach reach, typename X>
void forward_planes(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const int64_t pitch = row_pitch<T>(p.columns.pixels), width = p.columns.cells, many = task.c1 - task.c0;
  T* buffers = scratch.get(kPacked * K * pitch);
  const X* plane = p.x + (task.item * p.channels + task.c0) * p.pixels();
  X* out = p.out + (task.item * p.channels + task.c0) * p.cells();
  uint8_t* choices = p.choices == nullptr ? nullptr : p.choices + (task.item * p.groups() + task.c0 / kPacked) * p.cells();
  const bool exact = p.columns.exact;
  for (int64_t i = task.r0; i < task.r1; ++i) {
    const T* rows[kPacked][K];
    for (int64_t c = 0; c < many; ++c) {
      for (int s = 0; s < K; ++s) {
        rows[c][s] = sample_row(p, plane + c * p.pixels(), K * i + s, buffers + (c * K + s) * pitch);
      }
    }
    each_block<T>(width, [&](int64_t j, auto extent, int64_t) {
      const auto columns = Columns<T, K>::make(p.columns, j);
      Bits<T> chosen{};
      for (int64_t c = 0; c < many; ++c) {
        Vector<T> v[K][K];
        for (int s = 0; s < K; ++s) {
          for (int t = 0; t < K; ++t) {
            v[s][t] = exact ? take<reach, T>(rows[c][s] + columns.base[t], columns.first[t])
                            : columns.template at<reach>(rows[c][s], t);
          }
        }
        X* to = out + c * p.cells() + i * width + j;
        if constexpr (mode == Mode::max) {
          const Most<T> most = most_of<T>(v);
          store<T>(to, most.value, extent);
          const int shift = static_cast<int>(2 * c);
          chosen |= where<T>(most.low, 1 << shift) | where<T>(most.high, 2 << shift);
        } else if constexpr (mode == Mode::mean) {
          store<T>(to, ((v[0][0] + v[0][1]) + (v[1][0] + v[1][1])) * Simd<T>::broadcast(T{0.25}), extent);
        } else {
          store<T>(to, v[0][0], extent);
        }
      }
      if (mode == Mode::max && choices != nullptr) {
        store_bytes<T>(choices + i * width + j, chosen, extent);
      }
    });
  }
}

// The gradient of row e's samples of channel c of the task, by number in order of position.
template <Mode mode, typename X, typename T = Wide<X>>
PAPEROPS_INLINE void sample_gradients(const Problem<X>& p, const Task& task, int64_t c, int64_t e, T* to) {
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const int64_t i = e / K, s = e % K, width = p.columns.cells;
  const X* grad = p.grad + (task.item * p.channels + task.c0 + c) * p.cells() + i * width;
  const uint8_t* chosen =
      p.chosen == nullptr ? nullptr : p.chosen + (task.item * p.groups() + task.c0 / kPacked) * p.cells() + i * width;
  each_block<T>(width, [&](int64_t j, auto extent, int64_t) {
    const Vector<T> g = load<T>(grad + j, extent);
    if constexpr (mode == Mode::max) {
      const Bits<T> number = (load_bytes<T>(chosen + j, extent) >> static_cast<int>(2 * c)) & 3;
      interleave<T>(choose((Mask<T>)equal_to<T>(number, static_cast<int>(2 * s)), g, Vector<T>{}),
                    choose((Mask<T>)equal_to<T>(number, static_cast<int>(2 * s + 1)), g, Vector<T>{}), to + 2 * j);
    } else if constexpr (mode == Mode::mean) {
      const Vector<T> part = g * Simd<T>::broadcast(T{0.25});
      interleave<T>(part, part, to + 2 * j);
    } else {
      store_vector(to + j, g);
    }
  });
}

// The gradient of x where every sample lies on a pixel of its own: nothing is summed.
template <Mode mode, Reach reach, typename X>
void backward_planes_exact(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  using T = Wide<X>;
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const int64_t width = p.columns.pixels;
  T* gradients = scratch.get(p.columns.samples() + 6 * kLanes<T>);
  for (int64_t c = 0; c < task.c1 - task.c0; ++c) {
    for (int64_t y = task.r0; y < task.r1; ++y) {
      X* row = p.dx + ((task.item * p.channels + task.c0 + c) * p.rows.pixels + y) * width;
      const bool touched = p.rows.count.data()[y] > 0;
      if (touched) {
        sample_gradients<mode>(p, task, c, p.rows.begin.data()[y], gradients);
      }
      each_block<T>(width, [&](int64_t x, auto extent, int64_t) {
        Vector<T> v{};
        if (touched) {
          const int64_t base = p.columns.index.data()[x];
          const Mask<T> any = (Mask<T>)not_zero(load_vector(p.columns.weight.data() + x));
          const Bits<T> index = load_indices<T>(p.columns.index.data() + x) - (Bits<T>{} + static_cast<Integer>(base));
          v = choose(any, take<reach, T>(gradients + base, index), v);
        }
        store<T>(row + x, v, extent);
      });
    }
  }
}

template <Mode mode, Reach reach, typename X>
void backward_planes(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  using T = Wide<X>;
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const Axis<T>& columns = p.columns;
  if (p.rows.single() && columns.single()) {
    return backward_planes_exact<mode, reach>(p, task, scratch);
  }
  const int64_t width = columns.pixels, height = task.r1 - task.r0, many = task.c1 - task.c0;
  const int64_t padded = divide_up(width, kLanes<T>) * kLanes<T>, plane = height * padded;
  const int64_t of_samples = columns.samples() + 6 * kLanes<T>;
  const bool table = columns.most <= dynopool::kMostTouching;
  T* dx = scratch.get(kPacked * (plane + of_samples + padded + 2));
  T* gradients = dx + kPacked * plane;
  T* pulled = gradients + kPacked * of_samples;  // [padded + 2]: from the pixel before the map on
  for (int64_t i = 0; i < many * plane; ++i) {
    dx[i] = T{0};
  }
  int64_t from, to;
  p.rows.touching(task.r0, task.r1, from, to);
  for (int64_t e = from; e < to; ++e) {
    const int64_t at = p.rows.at(e);
    const T f = p.rows.fraction.data()[at];
    const int64_t number[2] = {p.rows.first.data()[at] - 1 - task.r0, p.rows.second.data()[at] - 1 - task.r0};
    const T weight[2] = {1 - f, f};
    bool reached[2];
    for (int side = 0; side < 2; ++side) {
      reached[side] = number[side] >= 0 && number[side] < height && weight[side] != T{0};
    }
    if (!reached[0] && !reached[1]) {
      continue;
    }
    for (int64_t c = 0; c < many; ++c) {
      sample_gradients<mode>(p, task, c, e, gradients + c * of_samples);
    }
    const auto add = [&](int64_t c, int64_t x, Vector<T> v) {
      for (int side = 0; side < 2; ++side) {
        if (reached[side]) {
          add_to<T>(dx + c * plane + number[side] * padded + x, weight[side], v);
        }
      }
    };
    if (table) {
      for (int64_t x = 0; x < padded; x += kLanes<T>) {
        const int64_t base = columns.index.data()[x];
        Vector<T> sums[kPacked] = {};
        for (int64_t n = 0; n < columns.most; ++n) {
          const Vector<T> w = load_vector(columns.weight.data() + n * columns.pixel_pitch + x);
          const Mask<T> any = (Mask<T>)not_zero(w);
          const Bits<T> index = load_indices<T>(columns.index.data() + n * columns.pixel_pitch + x) -
                                (Bits<T>{} + static_cast<Integer>(base));
          for (int64_t c = 0; c < many; ++c) {
            sums[c] = add_product<T>(w, take<reach, T>(gradients + c * of_samples + base, index), sums[c], any);
          }
        }
        for (int64_t c = 0; c < many; ++c) {
          add(c, x, sums[c]);
        }
      }
    } else {
      for (int64_t c = 0; c < many; ++c) {
        const T* of_row = gradients + c * of_samples;
        for (int64_t x = 0; x < padded + 2; ++x) {
          pulled[x] = T{0};
        }
        for (int64_t sample = 0; sample < columns.samples(); ++sample) {
          const int64_t place = columns.at(sample);
          const T part = columns.fraction.data()[place];
          pulled[columns.first.data()[place]] += (1 - part) * of_row[sample];
          if (part != T{0}) {
            pulled[columns.second.data()[place]] += part * of_row[sample];
          }
        }
        for (int64_t x = 0; x < padded; x += kLanes<T>) {
          add(c, x, load_vector(pulled + 1 + x));
        }
      }
    }
  }
  for (int64_t c = 0; c < many; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      X* row = p.dx + (task.item * p.channels + task.c0 + c) * p.pixels() + (task.r0 + y) * width;
      each_block<T>(width, [&](int64_t x, auto extent, int64_t) {
        store<T>(row + x, load_vector(dx + c * plane + y * padded + x), extent);
      });
    }
  }
}

template <Mode mode, Reach reach, typename X>
void slopes_planes(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch, double* sums) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const int64_t pitch = row_pitch<T>(p.columns.pixels), width = p.columns.cells, many = task.c1 - task.c0;
  T* buffers = scratch.get((K + 1) * pitch * kPacked * K);
  for (int64_t i = task.r0; i < task.r1; ++i) {
    Vector<T> by_row{}, by_column{};
    for (int64_t c = 0; c < many; ++c) {
      const X* plane = p.x + (task.item * p.channels + task.c0 + c) * p.pixels();
      const X* grad = p.grad + (task.item * p.channels + task.c0 + c) * p.cells() + i * width;
      const uint8_t* chosen =
          p.chosen == nullptr ? nullptr : p.chosen + (task.item * p.groups() + task.c0 / kPacked) * p.cells() + i * width;
      const T *rows[K], *row_slopes[K];
      for (int s = 0; s < K; ++s) {
        const int64_t at = p.rows.at(K * i + s);
        T* slope = buffers + (K + s) * pitch;
        rows[s] = sample_row(p, plane, K * i + s, buffers + s * pitch);
        slope[0] = slope[p.columns.pixels + 1] = T{0};
        blend_slope(row_of(p, plane, p.rows.first.data()[at]), row_of(p, plane, p.rows.second.data()[at]),
                    p.rows.fraction.data()[at], p.columns.pixels, slope + 1);
        row_slopes[s] = slope;
      }
      each_block<T>(width, [&](int64_t j, auto extent, int64_t fresh) {
        const auto columns = Columns<T, K>::make(p.columns, j);
        const Mask<T> there = lanes_between<T>(fresh, count_of<T>(extent));
        Vector<T> g = load<T>(grad + j, extent);
        Bits<T> number{};
        if constexpr (mode == Mode::max) {
          number = (load_bytes<T>(chosen + j, extent) >> static_cast<int>(2 * c)) & 3;
        } else if constexpr (mode == Mode::mean) {
          g = g * Simd<T>::broadcast(T{0.25});
        }
        for (int s = 0; s < K; ++s) {
          const Vector<T> row_step = Simd<T>::broadcast(p.rows.step.data()[p.rows.at(K * i + s)]);
          for (int t = 0; t < K; ++t) {
            Mask<T> taken = there;
            if constexpr (mode == Mode::max) {
              taken = static_cast<Mask<T>>(taken & (Mask<T>)equal_to<T>(number, 2 * s + t));
            }
            const T* row = rows[s] + columns.base[t];
            const Vector<T> across = slope_between<T>(take<reach, T>(row, columns.first[t]),
                                                      take<reach, T>(row, columns.second[t]), columns.any[t]);
            const Vector<T> down = columns.template at<reach>(row_slopes[s], t);
            const Vector<T> step = load_vector(p.columns.step.data() + t * p.columns.pitch + j);
            by_column = add_product<T>(g * step, across, by_column, taken);
            by_row = add_product<T>(g * row_step, down, by_row, taken);
          }
        }
      });
    }
    sums[0] += wide_sum<T>(by_row);
    sums[1] += wide_sum<T>(by_column);
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE
