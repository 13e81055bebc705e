// Rows of maps to and from staged planes. For one instruction set, see common/simd.h.
#pragma once

#include "../common/simd_math.h"
#include "local_attention_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using local_attention::Map;
using local_attention::Run;

// --- pixels to planes and back: 4 x 4 transposes --------------------------------------------------------------------

template <typename T>
struct FourOf {
  typedef T Type __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T>
using Four = typename FourOf<T>::Type;

constexpr int64_t kChunk = 64;  // channels that are converted at a time

// to[i * to_pitch + n] = from[n * from_pitch + i] for n, i in 0 .. 3
template <typename T>
PAPEROPS_INLINE void transpose(const T* const* from, int64_t at, T* to, int64_t to_pitch) {
  Four<T> a, b, c, d;
  __builtin_memcpy(&a, from[0] + at, sizeof(a));
  __builtin_memcpy(&b, from[1] + at, sizeof(b));
  __builtin_memcpy(&c, from[2] + at, sizeof(c));
  __builtin_memcpy(&d, from[3] + at, sizeof(d));
  const Four<T> ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four<T> ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four<T> rows[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                           __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                           __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                           __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (int64_t i = 0; i < 4; ++i) {
    __builtin_memcpy(to + i * to_pitch, &rows[i], sizeof(a));
  }
}

// Four pixels, `channels` side by side in each, to planes.
template <typename T, typename X>
PAPEROPS_INLINE void stage_four(const X* const* pixels, int64_t channels, T* staged, int64_t plane) {
  int64_t c = 0;
  if constexpr (std::is_same<T, X>::value) {
    for (; c + 4 <= channels; c += 4) {
      transpose(pixels, c, staged + c * plane, plane);
    }
  } else {
    T wide[4][kChunk];
    const T* const rows[4] = {wide[0], wide[1], wide[2], wide[3]};
    for (int64_t start = 0; start + 4 <= channels; start += kChunk) {
      const int64_t count = (channels - start < kChunk ? channels - start : kChunk) / 4 * 4;
      for (int64_t n = 0; n < 4; ++n) {
        each_vector<T>(count, [&](int64_t i, auto extent) {
          store<T>(wide[n] + i, load<T>(pixels[n] + start + i, extent), extent);
        });
      }
      for (c = start; c < start + count; c += 4) {
        transpose(rows, c - start, staged + c * plane, plane);
      }
    }
  }
  for (; c < channels; ++c) {
    for (int64_t n = 0; n < 4; ++n) {
      staged[c * plane + n] = static_cast<T>(pixels[n][c]);
    }
  }
}

// --- staging --------------------------------------------------------------------------------------------------------

// A row of a map to planes of T, `plane` apart: staged[c * plane + place + n] = channel c at column source + n * step, of
// every run.
template <typename T, typename X>
void stage(const X* row, const Map<const X>& map, int64_t channels, const Run* runs, int64_t count, T* staged,
           int64_t plane) {
  if (map.channel == 1 && map.column != 1 && channels >= 4) {
    for (const Run* run = runs; run < runs + count; ++run) {
      const X* from = row + run->source * map.column;
      const int64_t step = run->step * map.column;
      T* to = staged + run->place;
      int64_t n = 0;
      for (; n + 4 <= run->count; n += 4) {
        const X* const pixels[4] = {from + n * step, from + (n + 1) * step, from + (n + 2) * step, from + (n + 3) * step};
        stage_four(pixels, channels, to + n, plane);
      }
      for (; n < run->count; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
          to[c * plane + n] = static_cast<T>(from[n * step + c]);
        }
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (const Run* run = runs; run < runs + count; ++run) {
      const X* from = row + c * map.channel + run->source * map.column;
      const int64_t step = run->step * map.column;
      T* to = staged + c * plane + run->place;
      int64_t n = 0;
      if (step == 1) {
        for (; n + Simd<T>::lanes <= run->count; n += Simd<T>::lanes) {
          store_vector(to + n, load_vector(from + n));
        }
      }
      for (; n < run->count; ++n) {
        to[n] = static_cast<T>(from[n * step]);
      }
    }
  }
}

// The reverse for a row as it is: columns 0 .. count - 1 of planes, to a map that is contiguous or has its channels side by
// side.
template <typename T, typename X>
void unstage(const T* staged, int64_t plane, int64_t channels, int64_t count, const Map<X>& map, X* row) {
  if (map.column == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      each_vector<T>(count, [&](int64_t j, auto extent) {
        store<T>(row + c * map.channel + j, load<T>(staged + c * plane + j, extent), extent);
      });
    }
    return;
  }
  int64_t j = 0;
  T wide[4][kChunk];
  for (; j + 4 <= count; j += 4) {
    for (int64_t start = 0; start < channels; start += kChunk) {
      const int64_t some = channels - start < kChunk ? channels - start : kChunk;
      int64_t c = 0;
      for (; c + 4 <= some; c += 4) {
        const T* const planes[4] = {staged + (start + c) * plane, staged + (start + c + 1) * plane,
                                    staged + (start + c + 2) * plane, staged + (start + c + 3) * plane};
        transpose(planes, j, wide[0] + c, kChunk);
      }
      for (; c < some; ++c) {
        for (int64_t n = 0; n < 4; ++n) {
          wide[n][c] = staged[(start + c) * plane + j + n];
        }
      }
      for (int64_t n = 0; n < 4; ++n) {
        X* to = row + (j + n) * map.column + start;
        each_vector<T>(some, [&](int64_t i, auto extent) { store<T>(to + i, load<T>(wide[n] + i, extent), extent); });
      }
    }
  }
  for (; j < count; ++j) {
    for (int64_t c = 0; c < channels; ++c) {
      row[j * map.column + c] = static_cast<X>(staged[c * plane + j]);
    }
  }
}

// A row of zeros.
template <typename X>
void clear(const Map<X>& map, X* row, int64_t channels, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t c = 0; c < channels; ++c) {
      row[j * map.column + c * map.channel] = static_cast<X>(0.0f);
    }
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE
