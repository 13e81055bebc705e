// What lies between the products, for one instruction set: included by triangle_multiplication_cpu_{portable,avx2,avx512}.cpp,
// see common/simd.h. Formulas are in triangle_multiplication_cpu.h.
#pragma once

#include "../common/simd_math.h"
#include "triangle_multiplication_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using triangle::Kernels;
using triangle::Norm;
using triangle::Statistics;

// Rows whose sum is formed apart before it is added to that of the others: short chains of roundings.
constexpr int64_t kSumRows = 32;

// --- LayerNorm ------------------------------------------------------------------------------------------------------

template <typename T, typename S>
void measure(const S* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> statistics) {
  const T width = static_cast<T>(norm.width);
  for (int64_t r = 0; r < rows; ++r, v += row_stride) {
    Vector<T> total = Vector<T>{};
    each_vector<T>(norm.width, [&](int64_t c, auto extent) { total += load<T>(v + c, extent); });
    const T mean = sum<T>(total) / width;
    const Vector<T> means = Simd<T>::broadcast(mean);
    Vector<T> squares = Vector<T>{};
    total = Vector<T>{};
    each_vector<T>(norm.width, [&](int64_t c, auto extent) {
      const Vector<T> centred = only<T>(load<T>(v + c, extent) - means, extent);
      total += centred;
      squares = Simd<T>::multiply_add(centred, centred, squares);
    });
    const T rest = sum<T>(total) / width;  // by how much the mean was rounded
    statistics.mean[r] = mean + rest;
    // Fused: the square of a large rest alone is infinite.
    statistics.scale[r] = 1 / std::sqrt(std::fma(-rest, rest, sum<T>(squares) / width) + norm.eps);
  }
}

template <typename T, typename S, typename P>
void normalise(const S* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> known, P* out) {
  for (int64_t r = 0; r < rows; ++r, v += row_stride, out += norm.width) {
    const Vector<T> mean = Simd<T>::broadcast(known.mean[r]), scale = Simd<T>::broadcast(known.scale[r]);
    each_vector<T>(norm.width, [&](int64_t c, auto extent) {
      const Vector<T> normal = (load<T>(v + c, extent) - mean) * scale;
      store<T>(out + c, Simd<T>::multiply_add(normal, load<T>(norm.weight + c, extent), load<T>(norm.bias + c, extent)),
               extent);
    });
  }
}

template <typename T, typename G, typename S>
void normalise_backward(const G* grad, const S* v, int64_t rows, const Norm<T>& norm, Statistics<T> known, S* out) {
  for (int64_t r = 0; r < rows; ++r, grad += norm.width, v += norm.width, out += norm.width) {
    const Vector<T> mean = Simd<T>::broadcast(known.mean[r]), scale = Simd<T>::broadcast(known.scale[r]);
    const auto weighted = [&](int64_t c, auto extent) {
      return load<T>(grad + c, extent) * load<T>(norm.weight + c, extent);
    };
    const auto normal = [&](int64_t c, auto extent) { return (load<T>(v + c, extent) - mean) * scale; };
    Vector<T> total = Vector<T>{}, total_normal = Vector<T>{};
    each_vector<T>(norm.width, [&](int64_t c, auto extent) {
      const Vector<T> u = weighted(c, extent);
      total += u;
      total_normal += only<T>(u * normal(c, extent), extent);
    });
    const T width = static_cast<T>(norm.width);
    const Vector<T> mean_u = Simd<T>::broadcast(sum<T>(total) / width);
    const Vector<T> mean_u_normal = Simd<T>::broadcast(sum<T>(total_normal) / width);
    each_vector<T>(norm.width, [&](int64_t c, auto extent) {
      store<T>(out + c, scale * (weighted(c, extent) - mean_u - normal(c, extent) * mean_u_normal), extent);
    });
  }
}

template <typename T, typename G, typename S>
void norm_sums(const G* grad, const S* v, int64_t rows, int64_t width, Statistics<T> known, T* weight, T* bias) {
  each_vector<T>(width, [&](int64_t c, auto extent) {
    Vector<T> all_weight = load<T>(weight + c, extent), all_bias = load<T>(bias + c, extent);
    for (int64_t begin = 0; begin < rows; begin += kSumRows) {
      const int64_t end = begin + kSumRows < rows ? begin + kSumRows : rows;
      Vector<T> some_weight = Vector<T>{}, some_bias = Vector<T>{};
      for (int64_t r = begin; r < end; ++r) {
        const Vector<T> g = load<T>(grad + r * width + c, extent);
        const Vector<T> normal = (load<T>(v + r * width + c, extent) - Simd<T>::broadcast(known.mean[r])) *
                                 Simd<T>::broadcast(known.scale[r]);
        some_weight = Simd<T>::multiply_add(g, normal, some_weight);
        some_bias += g;
      }
      all_weight += some_weight;
      all_bias += some_bias;
    }
    store<T>(weight + c, all_weight, extent);
    store<T>(bias + c, all_bias, extent);
  });
}

template <typename T, typename S>
void row_sums(const S* v, int64_t rows, int64_t width, T* total) {
  each_vector<T>(width, [&](int64_t c, auto extent) {
    Vector<T> all = load<T>(total + c, extent);
    for (int64_t begin = 0; begin < rows; begin += kSumRows) {
      const int64_t end = begin + kSumRows < rows ? begin + kSumRows : rows;
      Vector<T> some = Vector<T>{};
      for (int64_t r = begin; r < end; ++r) {
        some += load<T>(v + r * width + c, extent);
      }
      all += some;
    }
    store<T>(total + c, all, extent);
  });
}

// --- copies ---------------------------------------------------------------------------------------------------------

template <typename T, typename From, typename To>
void convert(const From* v, int64_t count, To* out) {
  each_vector<T>(count, [&](int64_t i, auto extent) { store<T>(out + i, load<T>(v + i, extent), extent); });
}

// By squares that stay in the first cache, widened on the way in and narrowed on the way out.
template <typename T, typename From, typename To>
void transpose(const From* v, int64_t v_stride, int64_t rows, int64_t columns, To* out, int64_t out_stride) {
  constexpr int64_t kSide = 16;
  T square[kSide * kSide];
  for (int64_t c = 0; c < columns; c += kSide) {
    const int64_t width = columns - c < kSide ? columns - c : kSide;
    for (int64_t r = 0; r < rows; r += kSide) {
      const int64_t height = rows - r < kSide ? rows - r : kSide;
      if (width == kSide && height == kSide) {
        for (int64_t i = 0; i < kSide; ++i) {
          T row[kSide];
          convert<T>(v + (r + i) * v_stride + c, kSide, row);
          for (int64_t j = 0; j < kSide; ++j) {
            square[j * kSide + i] = row[j];
          }
        }
      } else {
        for (int64_t i = 0; i < height; ++i) {
          for (int64_t j = 0; j < width; ++j) {
            square[j * kSide + i] = static_cast<T>(v[(r + i) * v_stride + c + j]);
          }
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        convert<T>(square + j * kSide, height, out + (c + j) * out_stride + r);
      }
    }
  }
}

template <typename T, typename P>
void add_to(const P* v, int64_t count, bool add, T* out) {
  each_vector<T>(count, [&](int64_t i, auto extent) {
    const Vector<T> value = load<T>(v + i, extent);
    store<T>(out + i, add ? load<T>(out + i, extent) + value : value, extent);
  });
}

template <typename T, typename P>
void scale_channels(P* v, int64_t pitch, int64_t channels, int64_t positions, const T* factor) {
  for (int64_t k = 0; k < channels; ++k, v += pitch) {
    each_vector<T>(positions, [&](int64_t i, auto extent) {
      store<T>(v + i, load<T>(v + i, extent) * load<T>(factor + i, extent), extent);
    });
  }
}

// --- gates ----------------------------------------------------------------------------------------------------------

template <typename T, typename P>
void gate(const P* pg, int64_t pg_pitch, int64_t channels, int64_t positions, const T* bias, const T* mask, P* ab,
          P* gates, int64_t pitch) {
  for (int64_t k = 0; k < channels; ++k) {
    const P* p = pg + k * pg_pitch;
    const P* g = pg + (channels + k) * pg_pitch;
    const Vector<T> p_bias = Simd<T>::broadcast(bias[k]), g_bias = Simd<T>::broadcast(bias[channels + k]);
    each_vector<T>(positions, [&](int64_t i, auto extent) {
      const Vector<T> s = sigmoid<T>(load<T>(g + i, extent) + g_bias);
      Vector<T> value = s * (load<T>(p + i, extent) + p_bias);
      if (mask != nullptr) {
        value *= load<T>(mask + i, extent);
      }
      store<T>(ab + k * pitch + i, value, extent);
      if (gates != nullptr) {
        store<T>(gates + k * pitch + i, s, extent);
      }
    });
  }
}

template <typename T, typename P>
void gate_backward(const P* dab, const P* ab, const P* gates, int64_t pitch, int64_t channels, int64_t positions,
                   const T* mask, P* dpg, int64_t dpg_pitch, T* bias) {
  const Vector<T> one = Simd<T>::broadcast(1);
  for (int64_t k = 0; k < channels; ++k) {
    P* dp = dpg + k * dpg_pitch;
    P* dg = dpg + (channels + k) * dpg_pitch;
    Vector<T> p_total = Vector<T>{}, g_total = Vector<T>{};
    each_vector<T>(positions, [&](int64_t i, auto extent) {
      const Vector<T> d = load<T>(dab + k * pitch + i, extent), s = load<T>(gates + k * pitch + i, extent);
      const Vector<T> g = d * load<T>(ab + k * pitch + i, extent) * (one - s);
      Vector<T> p = d * s;
      if (mask != nullptr) {
        p *= load<T>(mask + i, extent);
      }
      p_total += p;
      g_total += g;
      store<T>(dp + i, p, extent);
      store<T>(dg + i, g, extent);
    });
    bias[k] += sum<T>(p_total);
    bias[channels + k] += sum<T>(g_total);
  }
}

template <typename T, typename P, typename X>
void finish(const P* q, const T* q_bias, const P* v, const T* v_bias, int64_t rows, int64_t width, X* out) {
  for (int64_t r = 0; r < rows; ++r, q += width, v += width, out += width) {
    each_vector<T>(width, [&](int64_t c, auto extent) {
      const Vector<T> s = sigmoid<T>(load<T>(q + c, extent) + load<T>(q_bias + c, extent));
      store<T>(out + c, s * (load<T>(v + c, extent) + load<T>(v_bias + c, extent)), extent);
    });
  }
}

template <typename T, typename P>
void gate_rows(const P* q, const T* q_bias, int64_t rows, int64_t width, P* v) {
  for (int64_t r = 0; r < rows; ++r, q += width, v += width) {
    each_vector<T>(width, [&](int64_t c, auto extent) {
      const Vector<T> s = sigmoid<T>(load<T>(q + c, extent) + load<T>(q_bias + c, extent));
      store<T>(v + c, s * load<T>(v + c, extent), extent);
    });
  }
}

template <typename T, typename P, typename X>
void add_bias(const P* v, const T* bias, int64_t rows, int64_t width, X* out) {
  for (int64_t r = 0; r < rows; ++r, v += width, out += width) {
    each_vector<T>(width, [&](int64_t c, auto extent) {
      store<T>(out + c, load<T>(v + c, extent) + load<T>(bias + c, extent), extent);
    });
  }
}

template <typename T, typename P, typename X>
void finish_backward(const X* dy, const T* q_bias, const T* v_bias, int64_t rows, int64_t width, P* q, P* v) {
  const Vector<T> one = Simd<T>::broadcast(1);
  for (int64_t r = 0; r < rows; ++r, dy += width, q += width, v += width) {
    each_vector<T>(width, [&](int64_t c, auto extent) {
      const Vector<T> s = sigmoid<T>(load<T>(q + c, extent) + load<T>(q_bias + c, extent));
      const Vector<T> d = load<T>(dy + c, extent) * s;
      store<T>(q + c, d * (load<T>(v + c, extent) + load<T>(v_bias + c, extent)) * (one - s), extent);
      store<T>(v + c, d, extent);
    });
  }
}

template <typename T, typename P>
void gate_rows_backward(const T* q_bias, int64_t rows, int64_t width, P* q, P* n, P* du) {
  const Vector<T> one = Simd<T>::broadcast(1);
  for (int64_t r = 0; r < rows; ++r, q += width, n += width, du += width) {
    each_vector<T>(width, [&](int64_t c, auto extent) {
      const Vector<T> s = sigmoid<T>(load<T>(q + c, extent) + load<T>(q_bias + c, extent));
      const Vector<T> gated = s * load<T>(n + c, extent), d = load<T>(du + c, extent);
      store<T>(q + c, d * gated * (one - s), extent);
      store<T>(n + c, gated, extent);
      store<T>(du + c, d * s, extent);
    });
  }
}

template <typename X, typename P>
Kernels<X, P> kernels() {
  using T = Wide<X>;
  Kernels<X, P> all;
  all.measure_x = measure<T, X>;
  all.measure_p = measure<T, P>;
  all.normalise_x = normalise<T, X, P>;
  all.normalise_p = normalise<T, P, P>;
  all.normalise_backward_x = normalise_backward<T, T, X>;
  all.normalise_backward_p = normalise_backward<T, P, P>;
  all.norm_sums_x = norm_sums<T, T, X>;
  all.norm_sums_p = norm_sums<T, P, P>;
  all.row_sums = row_sums<T, P>;
  all.transpose_xp = transpose<T, X, P>;
  all.transpose_px = transpose<T, P, X>;
  all.transpose_pp = transpose<T, P, P>;
  all.convert_px = convert<T, P, X>;
  all.convert_xp = convert<T, X, P>;
  all.add_pt = add_to<T, P>;
  all.scale = scale_channels<T, P>;
  all.gate = gate<T, P>;
  all.gate_backward = gate_backward<T, P>;
  all.finish = finish<T, P, X>;
  all.gate_rows = gate_rows<T, P>;
  all.add_bias = add_bias<T, P, X>;
  all.finish_backward = finish_backward<T, P, X>;
  all.gate_rows_backward = gate_rows_backward<T, P>;
  return all;
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// Defines the instances of a function of the header for this instruction set.
#define PAPEROPS_TRIANGLE_INSTANCE(X, P, FUNCTION)                 \
  template <>                                                      \
  Kernels<X, P> FUNCTION<X, P>() {                                 \
    return ::paperops::PAPEROPS_SIMD_NAMESPACE::kernels<X, P>();   \
  }
#define PAPEROPS_TRIANGLE_INSTANCES(FUNCTION) PAPEROPS_TRIANGLE_TYPES(PAPEROPS_TRIANGLE_INSTANCE, FUNCTION)
