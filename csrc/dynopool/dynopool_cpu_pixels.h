// Maps of channels_last: a vector is channels of one pixel. For one instruction set.
#pragma once

#include "dynopool_cpu_lanes.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// Rows of samples, as pixels of some channels `stride` apart; pixel 0 is the one before the map.
template <typename T>
struct PixelRow {
  const T* data;
  int64_t stride;
};

// Interpolates channels [c0, c0 + count) of the pixels of two rows of x by f, or gives its derivative by f.
template <bool slope, typename X, typename T = Wide<X>>
PAPEROPS_INLINE void blend_pixels(const Problem<X>& p, const X* a, const X* b, T f, int64_t c0, int64_t count, T* to) {
  const auto part = [&](int64_t from, int64_t size, T* into) {
    slope ? blend_slope(a + from, b + from, f, size, into) : blend(a + from, b + from, f, size, into);
  };
  if (count == p.channels) {
    part(0, count * p.columns.pixels, to);
    return;
  }
  for (int64_t x = 0; x < p.columns.pixels; ++x) {
    part(x * p.channels + c0, count, to + x * count);
  }
}

// Row e of samples, in x itself where it is a row of it, else in `to` [pixels + 2, channels of the task].
template <typename X, typename T = Wide<X>>
PAPEROPS_INLINE PixelRow<T> sample_pixels(const Problem<X>& p, const Task& task, int64_t e, T* to) {
  const int64_t at = p.rows.at(e), count = task.c1 - task.c0, width = p.columns.pixels;
  const T f = p.rows.fraction.data()[at];
  const X* map = p.x + task.item * p.channels * p.pixels();
  const X* first = row_of(p, map, p.rows.first.data()[at]);
  if constexpr (std::is_same<X, T>::value) {
    if (f == T{0} && !p.zeros && first + p.row_size() + kLanes<T> <= p.x_end()) {
      return {first - p.channels + task.c0, p.channels};
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    to[c] = to[(width + 1) * count + c] = T{0};
  }
  blend_pixels<false>(p, first, row_of(p, map, p.rows.second.data()[at]), f, task.c0, count, to + count);
  return {to, count};
}

template <typename Integer, int64_t count>
struct Integers {
  typedef Integer Type __attribute__((vector_size(count * static_cast<int64_t>(sizeof(Integer)))));
};

// Writes the choices, 0 to 3 a lane, of the channels from c on; `to` has the pixel's first four in its first byte.
template <typename T, class Extent>
PAPEROPS_INLINE void store_choices(uint8_t* to, int64_t c, Bits<T> choices, Extent extent) {
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (lanes < kPacked) {
    for (int64_t lane = 0; lane < count_of<T>(extent); ++lane) {
      const int64_t channel = c + lane, shift = 2 * (channel % kPacked);
      uint8_t& byte = to[channel / kPacked];
      byte = static_cast<uint8_t>((shift == 0 ? 0 : byte) | choices[lane] << shift);
    }
  } else {
    using Words = typename Integers<uint32_t, lanes / kPacked>::Type;
    using Bytes = typename Integers<uint8_t, lanes / kPacked>::Type;
    const auto shifted = choices << (2 * (lane_numbers<T>() & (kPacked - 1)));
    Words words = (Words)__builtin_convertvector(shifted, typename VectorOf<T, uint8_t>::Type);
    words |= words >> 16;
    words |= words >> 8;
    const Bytes bytes = __builtin_convertvector(words, Bytes);
    if constexpr (std::is_same<Extent, Whole>::value) {
      std::memcpy(to + c / kPacked, &bytes, sizeof(bytes));
    } else {
      std::memcpy(to + c / kPacked, &bytes, divide_up(extent.count, kPacked));
    }
  }
}

// The reverse.
template <typename T, class Extent>
PAPEROPS_INLINE Bits<T> load_choices(const uint8_t* from, int64_t c, Extent extent) {
  uint32_t pairs = 0;
  if constexpr (std::is_same<Extent, Whole>::value) {
    std::memcpy(&pairs, from + c / kPacked, divide_up(kLanes<T>, kPacked));
  } else {
    std::memcpy(&pairs, from + c / kPacked, divide_up(extent.count, kPacked));
  }
  pairs >>= 2 * (c % kPacked);
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  return ((Bits<T>{} + static_cast<Integer>(pairs)) >> (lane_numbers<T>() * 2)) & 3;
}

// Where the fraction is 0 the second pixel does not count.
template <typename T>
PAPEROPS_INLINE Vector<T> between_pixels(const T* first, const T* second, T f) {
  const Vector<T> a = load_vector(first);
  if (f == T{0}) {
    return a;
  }
  return Simd<T>::multiply_add(Simd<T>::broadcast(f), load_vector(second) - a, a);
}

template <Mode mode, typename X>
void forward_pixels(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const Axis<T>& columns = p.columns;
  const int64_t count = task.c1 - task.c0, pitch = (columns.pixels + 2) * count + kLanes<T>, bytes = p.groups();
  T* buffers = scratch.get(K * pitch);
  for (int64_t i = task.r0; i < task.r1; ++i) {
    PixelRow<T> rows[K];
    for (int s = 0; s < K; ++s) {
      rows[s] = sample_pixels(p, task, K * i + s, buffers + s * pitch);
    }
    for (int64_t j = 0; j < columns.cells; ++j) {
      const int64_t cell = (task.item * p.rows.cells + i) * columns.cells + j;
      X* out = p.out + cell * p.channels + task.c0;
      uint8_t* choices = p.choices == nullptr ? nullptr : p.choices + cell * bytes + task.c0 / kPacked;
      const T *first[K][K], *second[K][K];
      T f[K];
      for (int t = 0; t < K; ++t) {
        const int64_t at = t * columns.pitch + j;
        f[t] = columns.fraction.data()[at];
        for (int s = 0; s < K; ++s) {
          first[s][t] = rows[s].data + columns.first.data()[at] * rows[s].stride;
          second[s][t] = rows[s].data + columns.second.data()[at] * rows[s].stride;
        }
      }
      each_vector<T>(count, [&](int64_t c, auto extent) {
        Vector<T> v[K][K];
        for (int s = 0; s < K; ++s) {
          for (int t = 0; t < K; ++t) {
            v[s][t] = between_pixels<T>(first[s][t] + c, second[s][t] + c, f[t]);
          }
        }
        if constexpr (mode == Mode::max) {
          const Most<T> most = most_of<T>(v);
          store<T>(out + c, most.value, extent);
          if (choices != nullptr) {
            const Mask<T> there = lanes_between<T>(0, count_of<T>(extent));
            store_choices<T>(choices, c, where<T>(most.low & there, 1) | where<T>(most.high & there, 2), extent);
          }
        } else if constexpr (mode == Mode::mean) {
          store<T>(out + c, ((v[0][0] + v[0][1]) + (v[1][0] + v[1][1])) * Simd<T>::broadcast(T{0.25}), extent);
        } else {
          store<T>(out + c, v[0][0], extent);
        }
      });
    }
  }
}

// The gradient of sample (s, t) of a cell, channels from c on.
template <Mode mode, typename X, class Extent, typename T = Wide<X>>
PAPEROPS_INLINE Vector<T> sample_gradient(const Problem<X>& p, int64_t cell, int64_t c, int number, Extent extent) {
  const Vector<T> g = load<T>(p.grad + cell * p.channels + c, extent);
  if constexpr (mode == Mode::max) {
    const Bits<T> chosen = load_choices<T>(p.chosen + cell * p.groups(), c, extent);
    return choose((Mask<T>)equal_to<T>(chosen, number), g, Vector<T>{});
  } else if constexpr (mode == Mode::mean) {
    return g * Simd<T>::broadcast(T{0.25});
  } else {
    return g;
  }
}

// The gradient of x where every sample lies on a pixel of its own: nothing is summed.
template <Mode mode, typename X>
void backward_pixels_exact(const Problem<X>& p, const Task& task) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  for (int64_t y = task.r0; y < task.r1; ++y) {
    const int64_t e = p.rows.begin.data()[y], i = e / K;
    for (int64_t x = 0; x < p.columns.pixels; ++x) {
      const int64_t sample = p.columns.begin.data()[x];
      X* pixel = p.dx + ((task.item * p.rows.pixels + y) * p.columns.pixels + x) * p.channels;
      const bool touched = p.rows.count.data()[y] > 0 && p.columns.count.data()[x] > 0;
      const int64_t cell = (task.item * p.rows.cells + i) * p.columns.cells + sample / K;
      const int which = static_cast<int>(K * (e % K) + sample % K);
      each_vector<T>(task.c1 - task.c0, [&](int64_t c, auto extent) {
        const Vector<T> g = touched ? sample_gradient<mode>(p, cell, task.c0 + c, which, extent) : Vector<T>{};
        store<T>(pixel + task.c0 + c, g, extent);
      });
    }
  }
}

template <Mode mode, typename X>
void backward_pixels(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const Axis<T>& columns = p.columns;
  if (p.rows.single() && columns.single()) {
    return backward_pixels_exact<mode>(p, task);
  }
  const int64_t width = columns.pixels, height = task.r1 - task.r0, count = task.c1 - task.c0;
  const int64_t padded = divide_up(count, kLanes<T>) * kLanes<T>;
  T* dx = scratch.get(height * width * padded);
  for (int64_t i = 0; i < height * width * padded; ++i) {
    dx[i] = T{0};
  }
  int64_t from, to;
  p.rows.touching(task.r0, task.r1, from, to);
  for (int64_t e = from; e < to; ++e) {
    const int64_t at = p.rows.at(e), i = e / K;
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
    const int64_t row = (task.item * p.rows.cells + i) * columns.cells;
    each_vector<T>(count, [&](int64_t c, auto extent) {
      const auto add = [&](int64_t pixel, Vector<T> v) {  // numbered from 1
        for (int side = 0; side < 2; ++side) {
          if (reached[side] && pixel >= 1 && pixel <= width) {
            add_to<T>(dx + (number[side] * width + pixel - 1) * padded + c, weight[side], v);
          }
        }
      };
      // From sample to sample: the sums of the pixel before it, and of the one after that.
      Vector<T> here{}, next{};
      int64_t pixel = columns.first.data()[0];
      for (int64_t j = 0; j < columns.cells; ++j) {
        for (int t = 0; t < K; ++t) {
          const int64_t place = t * columns.pitch + j, first = columns.first.data()[place];
          if (first != pixel) {
            add(pixel, here);
            here = next;
            if (first != pixel + 1) {
              add(pixel + 1, next);
              here = Vector<T>{};
            }
            next = Vector<T>{};
            pixel = first;
          }
          const int which = static_cast<int>(K * (e % K) + t);
          const Vector<T> g = sample_gradient<mode>(p, row + j, task.c0 + c, which, extent);
          const T part = columns.fraction.data()[place];
          here = Simd<T>::multiply_add(Simd<T>::broadcast(1 - part), g, here);
          if (part != T{0}) {
            next = Simd<T>::multiply_add(Simd<T>::broadcast(part), g, next);
          }
        }
      }
      add(pixel, here);
      add(pixel + 1, next);
    });
  }
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      X* pixel = p.dx + ((task.item * p.rows.pixels + task.r0 + y) * width + x) * p.channels + task.c0;
      each_vector<T>(count, [&](int64_t c, auto extent) {
        store<T>(pixel + c, load_vector(dx + (y * width + x) * padded + c), extent);
      });
    }
  }
}

template <Mode mode, typename X>
void slopes_pixels(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch, double* sums) {
  using T = Wide<X>;
  constexpr int K = mode == Mode::max || mode == Mode::mean ? 2 : 1;
  const Axis<T>& columns = p.columns;
  const int64_t count = task.c1 - task.c0, pitch = (columns.pixels + 2) * count + kLanes<T>;
  T* buffers = scratch.get(2 * K * pitch);
  const X* map = p.x + task.item * p.channels * p.pixels();
  for (int64_t i = task.r0; i < task.r1; ++i) {
    PixelRow<T> rows[K], row_slopes[K];
    for (int s = 0; s < K; ++s) {
      const int64_t at = p.rows.at(K * i + s);
      T* slope = buffers + (K + s) * pitch;
      rows[s] = sample_pixels(p, task, K * i + s, buffers + s * pitch);
      for (int64_t c = 0; c < count; ++c) {
        slope[c] = slope[(columns.pixels + 1) * count + c] = T{0};
      }
      blend_pixels<true>(p, row_of(p, map, p.rows.first.data()[at]), row_of(p, map, p.rows.second.data()[at]),
                         p.rows.fraction.data()[at], task.c0, count, slope + count);
      row_slopes[s] = {slope, count};
    }
    Vector<T> by_row{}, by_column{};
    for (int64_t j = 0; j < columns.cells; ++j) {
      const int64_t cell = (task.item * p.rows.cells + i) * columns.cells + j;
      each_vector<T>(count, [&](int64_t c, auto extent) {
        const Mask<T> there = lanes_between<T>(0, count_of<T>(extent));
        const Vector<T> g = load<T>(p.grad + cell * p.channels + task.c0 + c, extent);
        Bits<T> number{};
        if constexpr (mode == Mode::max) {
          number = load_choices<T>(p.chosen + cell * p.groups(), task.c0 + c, extent);
        }
        for (int s = 0; s < K; ++s) {
          const T row_step = p.rows.step.data()[p.rows.at(K * i + s)];
          for (int t = 0; t < K; ++t) {
            Mask<T> taken = there;
            if constexpr (mode == Mode::max) {
              taken = static_cast<Mask<T>>(taken & (Mask<T>)equal_to<T>(number, 2 * s + t));
            }
            const int64_t at = t * columns.pitch + j;
            const T f = columns.fraction.data()[at];
            const auto place = [&](const PixelRow<T>& row, const int32_t* pixel) { return row.data + pixel[at] * row.stride + c; };
            const Mask<T> any = (Mask<T>)not_zero(Simd<T>::broadcast(f));
            const Vector<T> across = slope_between<T>(load_vector(place(rows[s], columns.first.data())),
                                                      load_vector(place(rows[s], columns.second.data())), any);
            const Vector<T> down = between_pixels<T>(place(row_slopes[s], columns.first.data()),
                                                     place(row_slopes[s], columns.second.data()), f);
            const T share = mode == Mode::mean ? T{0.25} : T{1};
            by_column = add_product<T>(g * Simd<T>::broadcast(share * columns.step.data()[at]), across, by_column, taken);
            by_row = add_product<T>(g * Simd<T>::broadcast(share * row_step), down, by_row, taken);
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
