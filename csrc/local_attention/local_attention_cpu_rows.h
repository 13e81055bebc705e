// Rows of maps to and from staged planes. For one instruction set, see common/simd.h.
#pragma once

#include "../common/simd_math.h"
#include "local_attention_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using local_attention::Map;
using local_attention::Run;

// work(std::integral_constant<int, n>{}) for n from 1 to N.
template <int N, class Work>
PAPEROPS_INLINE void with_count(int64_t n, const Work& work) {
  if constexpr (N > 1) {
    if (n < N) {
      return with_count<N - 1>(n, work);
    }
  }
  work(std::integral_constant<int, N>{});
}

// --- stretches ------------------------------------------------------------------------------------------------------

// Less than a vector: in two pieces of one size, which may overlap.
template <typename X>
PAPEROPS_INLINE void copy_few(const X* from, X* to, int64_t count) {
  if (count >= 8) {
    __builtin_memcpy(static_cast<void*>(to), from, 8 * sizeof(X));
    __builtin_memcpy(static_cast<void*>(to + count - 8), from + count - 8, 8 * sizeof(X));
  } else if (count >= 4) {
    __builtin_memcpy(static_cast<void*>(to), from, 4 * sizeof(X));
    __builtin_memcpy(static_cast<void*>(to + count - 4), from + count - 4, 4 * sizeof(X));
  } else {
    for (int64_t n = 0; n < count; ++n) {
      to[n] = from[n];
    }
  }
}

// to[n] = from[n], one of them of T. The last vector is a whole one too, of which some has been moved already.
template <typename T, typename From, typename To>
PAPEROPS_INLINE void move(const From* from, To* to, int64_t count) {
  constexpr int64_t lanes = Simd<T>::lanes;
  if (count >= lanes) {
    for (int64_t n = 0; n + lanes < count; n += lanes) {
      store_vector(to + n, load_vector(from + n));
    }
    store_vector(to + count - lanes, load_vector(from + count - lanes));
  } else if constexpr (std::is_same<From, To>::value) {
    copy_few(from, to, count);
  } else {
    From given[lanes] = {};
    To found[lanes];
    copy_few(from, given, count);
    store_vector(found, load_vector(given));
    copy_few(found, to, count);
  }
}

// --- pixels to planes and back: 4 x 4 transposes --------------------------------------------------------------------

template <typename T>
struct FourOf {
  typedef T Type __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T>
using Four = typename FourOf<T>::Type;

constexpr int kFew = 8;
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

// Four pixels, with channels side by side, to planes: as many channels as fours hold. Returns their number.
template <typename T, typename X>
PAPEROPS_INLINE int64_t stage_four(const X* const* pixels, int64_t channels, T* staged, int64_t plane) {
  const int64_t whole = channels / 4 * 4;
  if constexpr (std::is_same<T, X>::value) {
    for (int64_t c = 0; c < whole; c += 4) {
      transpose(pixels, c, staged + c * plane, plane);
    }
  } else {
    T wide[4][kChunk];
    const T* const rows[4] = {wide[0], wide[1], wide[2], wide[3]};
    for (int64_t start = 0; start < whole; start += kChunk) {
      const int64_t count = whole - start < kChunk ? whole - start : kChunk;
      for (int64_t n = 0; n < 4; ++n) {
        move<T>(pixels[n] + start, wide[n], count);
      }
      for (int64_t c = 0; c < count; c += 4) {
        transpose(rows, c, staged + (start + c) * plane, plane);
      }
    }
  }
  return whole;
}

// --- staging --------------------------------------------------------------------------------------------------------

// A run to planes: to[c * plane + n] = from[c * channel + n * step].
template <typename T, typename X>
PAPEROPS_INLINE void stage_run(const X* from, int64_t channel, int64_t step, int64_t channels, int64_t count, T* to,
                               int64_t plane) {
  int64_t c = 0;
  if (channel == 1 && step != 1 && count >= 4) {
    for (int64_t n = 0; n < count; n += 4) {
      const int64_t at = n + 4 <= count ? n : count - 4;  // the last four: some of them once more
      const X* const pixels[4] = {from + at * step, from + (at + 1) * step, from + (at + 2) * step, from + (at + 3) * step};
      c = stage_four(pixels, channels, to + at, plane);
    }
    from += c;
    to += c * plane;
  }
  if (step == 1) {
    for (; c < channels; ++c, from += channel, to += plane) {
      move<T>(from, to, count);
    }
  } else if (count <= kFew) {  // as at borders
    with_count<kFew>(count, [&](auto some) {
      for (; c < channels; ++c, from += channel, to += plane) {
        for (int64_t n = 0; n < some.value; ++n) {
          to[n] = static_cast<T>(from[n * step]);
        }
      }
    });
  } else {
    for (; c < channels; ++c, from += channel, to += plane) {
      for (int64_t n = 0; n < count; ++n) {
        to[n] = static_cast<T>(from[n * step]);
      }
    }
  }
}

// A row of a map to planes of T, `plane` apart: staged[c * plane + place + n] = channel c at column source + n * step, of
// every run.
template <typename T, typename X>
void stage(const X* row, const Map<const X>& map, int64_t channels, const Run* runs, int64_t count, T* staged,
           int64_t plane) {
  for (const Run* run = runs; run < runs + count; ++run) {
    stage_run(row + run->source * map.column, map.channel, run->step * map.column, channels, run->count,
              staged + run->place, plane);
  }
}

// Asks for a row that will be staged later.
template <typename X>
void prefetch(const X* row, const Map<const X>& map, int64_t channels, int64_t columns) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(X));
  const bool pixels = map.channel == 1;
  const int64_t outer = pixels ? columns : channels, inner = pixels ? channels : columns;
  const int64_t step = pixels ? map.column : map.channel;
  if (!pixels && map.column != 1) {
    return;
  }
  for (int64_t n = 0; n < outer; ++n) {
    for (int64_t i = 0; i < inner; i += line) {
      __builtin_prefetch(row + n * step + i);
    }
    __builtin_prefetch(row + n * step + inner - 1);
  }
}

// The reverse for a row as it is: columns 0 .. count - 1 of planes, to a map that is contiguous or has its channels side by
// side.
template <typename T, typename X>
void unstage(const T* staged, int64_t plane, int64_t channels, int64_t count, const Map<X>& map, X* row) {
  if (map.column == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      move<T>(staged + c * plane, row + c * map.channel, count);
    }
    return;
  }
  T wide[4][kChunk];
  for (int64_t n = 0; n < count; n += 4) {
    const int64_t j = n + 4 <= count || count < 4 ? n : count - 4, some = count < 4 ? count : 4;
    for (int64_t start = 0; start < channels; start += kChunk) {
      const int64_t rest = channels - start < kChunk ? channels - start : kChunk;
      int64_t c = 0;
      for (; c + 4 <= rest; c += 4) {  // planes end in whole vectors: there are four columns
        const T* const planes[4] = {staged + (start + c) * plane, staged + (start + c + 1) * plane,
                                    staged + (start + c + 2) * plane, staged + (start + c + 3) * plane};
        transpose(planes, j, wide[0] + c, kChunk);
      }
      for (; c < rest; ++c) {
        for (int64_t i = 0; i < 4; ++i) {
          wide[i][c] = staged[(start + c) * plane + j + i];
        }
      }
      for (int64_t i = 0; i < some; ++i) {
        move<T>(wide[i], row + (j + i) * map.column + start, rest);
      }
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
