// The products of staged rows, their accumulators in registers. For one instruction set, see common/simd.h.
//
// A row of weights is [k * k, pitch], one slot after the other; of queries, results and gradients [D, pitch].
#pragma once

#include "local_attention_cpu_rows.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using local_attention::Columns;

#if PAPEROPS_SIMD_BITS == 512
constexpr int kSlotsAtOnce = 7, kChannelsAtOnce = 8, kSpreadChannels = 4, kSpreadRows = 4;
#else
constexpr int kSlotsAtOnce = 4, kChannelsAtOnce = 4, kSpreadChannels = 2, kSpreadRows = 4;
#endif

// work(start, std::integral_constant<int, n>{}) for pieces of 0 .. count - 1: of N, and then of what remains.
template <int N, class Work>
PAPEROPS_INLINE void in_pieces(int64_t count, const Work& work) {
  int64_t start = 0;
  for (; start + N <= count; start += N) {
    work(start, std::integral_constant<int, N>{});
  }
  if (start < count) {
    with_count<N>(count - start, [&](auto n) { work(start, n); });
  }
}

// A staged row of keys or values, and in which row of slots each of two rows of queries holds it; -1 for neither.
struct Visit {
  int64_t row;
  int64_t a[2];
};

// The slots a of N rows of queries that hold one row of keys: their rows of weights, and where sums begin (or null).
template <typename T, int N>
struct Slots {
  const T* x[N];
  T* weights[N];
  const T* start[N];
};

// weights[n][b][j] = start[n][b] + sum_d x[n][d][j] staged[d][offset[b] + j], for B slots.
template <int N, int B, typename T>
void dot_slots(const Slots<T, N>& slots, int64_t b, int64_t pitch, int64_t x_pitch, int64_t channels, const T* staged,
               const Columns& columns) {
  using S = Simd<T>;
  const T* at[B];
  for (int n = 0; n < B; ++n) {
    at[n] = staged + columns.offset[b + n];
  }
  const int64_t plane = columns.plane, end = columns.queries;
  for (int64_t j = 0; j < end; j += S::lanes) {
    Vector<T> sums[N][B];
    for (int n = 0; n < N; ++n) {
      for (int m = 0; m < B; ++m) {
        sums[n][m] = S::broadcast(slots.start[n] == nullptr ? T{0} : slots.start[n][b + m]);
      }
    }
    for (int64_t d = 0; d < channels; ++d) {
      Vector<T> x[N];
      for (int n = 0; n < N; ++n) {
        x[n] = S::load(slots.x[n] + d * x_pitch + j);
      }
      for (int m = 0; m < B; ++m) {
        const Vector<T> key = S::load(at[m] + d * plane + j);
        for (int n = 0; n < N; ++n) {
          sums[n][m] = S::multiply_add(x[n], key, sums[n][m]);
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      for (int m = 0; m < B; ++m) {
        S::store(slots.weights[n] + (b + m) * pitch + j, sums[n][m]);
      }
    }
  }
}

template <typename T, int N>
void dot(const Slots<T, N>& slots, int64_t pitch, int64_t x_pitch, int64_t channels, const T* staged,
         const Columns& columns) {
  const int64_t kernel = static_cast<int64_t>(columns.offset.size());
  in_pieces<kSlotsAtOnce>(kernel, [&](int64_t b, auto count) {
    dot_slots<N, count.value>(slots, b, pitch, x_pitch, channels, staged, columns);
  });
}

// What rows of queries collect: visits of both of them, of the first alone and of the second alone, in this order.
struct Visits {
  const Visit* begin[4];  // and the end
};

// out[n][d][j] = factor[n][j] * sum over visits and b of weights[n][a, b][j] staged[row][d][offset[b] + j], for C channels.
template <int N, int C, typename T, class Staged>
void weigh_channels(const Visits& visits, const T* const* weights, int64_t pitch, const Columns& columns, int64_t d,
                    const Staged& staged, const T* const* factor, T* const* out, int64_t out_pitch) {
  using S = Simd<T>;
  const int64_t plane = columns.plane, kernel = static_cast<int64_t>(columns.offset.size());
  const int64_t* offset = columns.offset.data();
  for (int64_t j = 0; j < columns.queries; j += S::lanes) {
    Vector<T> sums[N][C];
    for (int n = 0; n < N; ++n) {
      for (int c = 0; c < C; ++c) {
        sums[n][c] = S::broadcast(T{0});
      }
    }
    if constexpr (N == 2) {
      for (const Visit* visit = visits.begin[0]; visit < visits.begin[1]; ++visit) {
        const T* keys = staged(visit->row) + d * plane + j;
        const T* first = weights[0] + visit->a[0] * kernel * pitch + j;
        const T* second = weights[1] + visit->a[1] * kernel * pitch + j;
        for (int64_t b = 0; b < kernel; ++b) {
          const Vector<T> w0 = S::load(first + b * pitch), w1 = S::load(second + b * pitch);
          for (int c = 0; c < C; ++c) {
            const Vector<T> key = S::load(keys + c * plane + offset[b]);
            sums[0][c] = S::multiply_add(w0, key, sums[0][c]);
            sums[1][c] = S::multiply_add(w1, key, sums[1][c]);
          }
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      for (const Visit* visit = visits.begin[n + 1]; visit < visits.begin[n + 2]; ++visit) {
        const T* keys = staged(visit->row) + d * plane + j;
        const T* own = weights[n] + visit->a[n] * kernel * pitch + j;
        for (int64_t b = 0; b < kernel; ++b) {
          const Vector<T> w = S::load(own + b * pitch);
          for (int c = 0; c < C; ++c) {
            sums[n][c] = S::multiply_add(w, S::load(keys + c * plane + offset[b]), sums[n][c]);
          }
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      const Vector<T> own = S::load(factor[n] + j);
      for (int c = 0; c < C; ++c) {
        S::store(out[n] + (d + c) * out_pitch + j, sums[n][c] * own);
      }
    }
  }
}

template <int N, typename T, class Staged>
void weigh(const Visits& visits, const T* const* weights, int64_t pitch, const Columns& columns, int64_t channels,
           const Staged& staged, const T* const* factor, T* const* out, int64_t out_pitch) {
  in_pieces<kChannelsAtOnce>(channels, [&](int64_t d, auto count) {
    weigh_channels<N, count.value>(visits, weights, pitch, columns, d, staged, factor, out, out_pitch);
  });
}

// What a row of queries gives to A rows of keys: sums[a][d][offset[b] + j] += weights[a][b][j] x[d][j], gathered by the
// places of the keys, for C channels. Weights and x are 0 beyond the queries.
template <int A, int C, typename T>
void spread_channels(const T* const* weights, int64_t pitch, const T* x, int64_t x_pitch, const Columns& columns,
                     const Columns::Group& group, int64_t d, T* const* sums) {
  using S = Simd<T>;
  const int64_t slots = static_cast<int64_t>(group.slots.size()), plane = columns.plane;
  for (int64_t t = 0; t < group.length; t += S::lanes) {
    Vector<T> own[A][C];
    for (int a = 0; a < A; ++a) {
      for (int c = 0; c < C; ++c) {
        own[a][c] = S::broadcast(T{0});
      }
    }
    for (int64_t n = 0; n < slots; ++n) {
      const int64_t j = t - group.shifts[n];
      Vector<T> part[C];
      for (int c = 0; c < C; ++c) {
        part[c] = S::load(x + (d + c) * x_pitch + j);
      }
      for (int a = 0; a < A; ++a) {
        const Vector<T> weight = S::load(weights[a] + group.slots[n] * pitch + j);
        for (int c = 0; c < C; ++c) {
          own[a][c] = S::multiply_add(weight, part[c], own[a][c]);
        }
      }
    }
    for (int a = 0; a < A; ++a) {  // rows of keys may be the same one, mirrored
      for (int c = 0; c < C; ++c) {
        T* to = sums[a] + (d + c) * plane + group.base + t;
        S::store(to, S::load(to) + own[a][c]);
      }
    }
  }
}

// The same for all channels and rows: `rows` of them.
template <typename T>
void spread(const T* const* weights, T* const* sums, int64_t rows, int64_t pitch, const T* x, int64_t x_pitch,
            int64_t channels, const Columns& columns) {
  for (const Columns::Group& group : columns.groups) {
    in_pieces<kSpreadRows>(rows, [&](int64_t a, auto some) {
      in_pieces<kSpreadChannels>(channels, [&](int64_t d, auto count) {
        spread_channels<some.value, count.value>(weights + a, pitch, x, x_pitch, columns, group, d, sums + a);
      });
    });
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE
