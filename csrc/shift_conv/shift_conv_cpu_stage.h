// Rows of maps to planes and back: widened, with zeros around them, by phases. For one instruction set.
//
// In both layouts eight pixels of eight channels are moved at a time where one of the two is contiguous in memory.
#pragma once

#include "shift_conv_cpu_rows.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using shift_conv::Lattice;
using shift_conv::Maps;

template <typename T>
PAPEROPS_INLINE void zero(T* to, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    to[n] = T{0};
  }
}

#if PAPEROPS_SIMD_BITS > 0
PAPEROPS_INLINE __m256 load_eight(const float* p) { return _mm256_loadu_ps(p); }
PAPEROPS_INLINE __m256 load_eight(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PAPEROPS_INLINE __m256 load_eight(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
PAPEROPS_INLINE void store_eight(float* p, __m256 a) { _mm256_storeu_ps(p, a); }
PAPEROPS_INLINE void store_eight(Half* p, __m256 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
PAPEROPS_INLINE void store_eight(BFloat16* p, __m256 a) {
  float lanes[8];
  _mm256_storeu_ps(lanes, a);
  for (int lane = 0; lane < 8; ++lane) {
    p[lane] = static_cast<BFloat16>(lanes[lane]);
  }
}

// Eight rows of eight elements, turned.
template <typename From, typename To>
PAPEROPS_INLINE void turn_eight(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = load_eight(from + i * from_stride);
  }
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    store_eight(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    store_eight(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
// A row of pixels.
template <typename T, typename From, typename To>
PAPEROPS_INLINE void move_row(const From* from, To* to, int64_t pixels) {
  int64_t p = 0;
  for (; p + kLanes<T> <= pixels; p += kLanes<T>) {
    store_vector(to + p, load_vector(from + p));
  }
  if constexpr (std::is_same<T, float>::value) {
    for (; p < pixels && pixels >= 8; p += 8) {
      const int64_t p0 = smaller(p, pixels - 8);
      store_eight(to + p0, load_eight(from + p0));
    }
  }
  for (; p < pixels; ++p) {
    to[p] = static_cast<To>(static_cast<T>(from[p]));
  }
}
template <typename T>
constexpr bool kTurns = std::is_same<T, float>::value;
#else
template <typename T, typename From, typename To>
PAPEROPS_INLINE void move_row(const From* from, To* to, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p) {
    to[p] = static_cast<To>(static_cast<T>(from[p]));
  }
}
template <typename From, typename To>
PAPEROPS_INLINE void turn_eight(const From*, int64_t, To*, int64_t) {}
template <typename T>
constexpr bool kTurns = false;
#endif

// to[c][p] = from[c][p] for channels c and pixels p. T is what is computed in. The last block of eight begins earlier where
// there are not as many left: what it moves again is the same.
template <typename T, typename From, typename To>
void move(const From* from, int64_t from_channel, int64_t from_pixel, To* to, int64_t to_channel, int64_t to_pixel,
          int64_t channels, int64_t pixels) {
  if (from_pixel == 1 && to_pixel == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      move_row<T>(from + c * from_channel, to + c * to_channel, pixels);
    }
    return;
  }
  if constexpr (kTurns<T>) {
    const bool in = from_channel == 1 && to_pixel == 1, out = from_pixel == 1 && to_channel == 1;
    if ((in || out) && channels >= 8 && pixels >= 8) {
      for (int64_t c = 0; c < channels; c += 8) {
        const int64_t c0 = smaller(c, channels - 8);
        for (int64_t p = 0; p < pixels; p += 8) {
          const int64_t p0 = smaller(p, pixels - 8);
          if (in) {
            turn_eight(from + c0 + p0 * from_pixel, from_pixel, to + c0 * to_channel + p0, to_channel);
          } else {
            turn_eight(from + c0 * from_channel + p0, from_channel, to + c0 + p0 * to_pixel, to_pixel);
          }
        }
      }
      return;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      to[c * to_channel + p * to_pixel] = static_cast<To>(static_cast<T>(from[c * from_channel + p * from_pixel]));
    }
  }
}

// The rows or columns of one phase that are pixels: [first, last) of [0, count).
PAPEROPS_INLINE void within(int64_t step, int64_t before, int64_t pixels, int64_t phase, int64_t count, int64_t& first,
                            int64_t& last) {
  const int64_t start = before - phase;  // row * step >= start
  first = start > 0 ? (start + step - 1) / step : 0;
  const int64_t stop = pixels + start;  // row * step < stop
  last = stop > 0 ? (stop + step - 1) / step : 0;
  last = last < count ? last : count;
  first = first < last ? first : last;
}

// Rows [r0, r1) of the lattice of some channels to planes, the first row at to[channel * to_channel + phase * plane];
// behind the last one zeros follow up to the plane's end, `size` elements from there.
template <typename T, typename X>
void stage(const Maps<const X>& maps, const Lattice& at, int64_t channels, int64_t r0, int64_t r1, T* to,
           int64_t to_channel, int64_t plane, int64_t size) {
  for (int64_t number = 0; number < at.phases * at.phases; ++number) {
    const int64_t py = number / at.phases, px = number % at.phases;
    T* planes = to + number * plane;
    int64_t first, last;
    within(at.step, at.before, at.width, px, at.pitch, first, last);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t y = r * at.step + py - at.before;
      T* row = planes + (r - r0) * at.pitch;
      const bool inside = y >= 0 && y < at.height && last > first;
      for (int64_t c = 0; c < channels; ++c) {
        zero(row + c * to_channel, inside ? first : at.pitch);
        if (inside) {
          zero(row + c * to_channel + last, at.pitch - last);
        }
      }
      if (inside) {
        const X* from = maps.data + y * maps.row_stride + (first * at.step + px - at.before) * maps.column_stride;
        move<T>(from, maps.channel_stride, at.step * maps.column_stride, row + first, to_channel, 1, channels, last - first);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      zero(planes + c * to_channel + (r1 - r0) * at.pitch, size - (r1 - r0) * at.pitch);
    }
  }
}

// A map of ones in the same way: 1 where there is a pixel.
template <typename T>
void stage_ones(const Lattice& at, int64_t r0, int64_t r1, T* to, int64_t plane, int64_t size) {
  for (int64_t number = 0; number < at.phases * at.phases; ++number) {
    const int64_t py = number / at.phases, px = number % at.phases;
    T* planes = to + number * plane;
    int64_t first, last;
    within(at.step, at.before, at.width, px, at.pitch, first, last);
    zero(planes, size);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t y = r * at.step + py - at.before;
      for (int64_t c = first; c < last && y >= 0 && y < at.height; ++c) {
        planes[(r - r0) * at.pitch + c] = T{1};
      }
    }
  }
}

// Pixels of rows y in [y0, y1) of some channels from planes whose first row is r0; 0 where the planes have none.
template <typename T, typename X>
void unstage(const T* from, int64_t from_channel, int64_t plane, const Lattice& at, int64_t channels, int64_t r0,
             int64_t rows, int64_t y0, int64_t y1, const Maps<X>& maps) {
  for (int64_t y = y0; y < y1; ++y) {
    const int64_t py = (y + at.before) % at.step, r = (y + at.before) / at.step;
    X* to = maps.data + y * maps.row_stride;
    for (int64_t px = 0; px < at.step; ++px) {
      int64_t first, last, beyond;
      within(at.step, at.before, at.width, px, at.width + at.before + 1, first, beyond);
      last = py < at.phases && px < at.phases && r < rows ? smaller(beyond, at.pitch) : first;
      const auto pixel = [&](int64_t column) { return to + (column * at.step + px - at.before) * maps.column_stride; };
      if (last > first) {
        const T* row = from + (py * at.phases + px) * plane + (r - r0) * at.pitch;
        move<T>(row + first, from_channel, 1, pixel(first), maps.channel_stride, at.step * maps.column_stride, channels,
                last - first);
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t column = larger(first, last); column < beyond; ++column) {
          pixel(column)[c * maps.channel_stride] = X(T{0});
        }
      }
    }
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE
