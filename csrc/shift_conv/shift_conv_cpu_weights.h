// The weights of a call as the kernels want them, and their gradients from the sums that the kernels leave.
#pragma once

#include <optional>

#include "../common/tensors.h"
#include "shift_conv_cpu.h"

namespace paperops::shift_conv {

constexpr int64_t kWeightTask = 8;  // channels of a task over weights

// Calls work(begin, end) for runs of channels, or of what else there are `count`, on several threads.
template <class Work>
void each_run(int64_t count, int64_t elements, const Work& work) {
  run_tasks(divide_up(count, kWeightTask), elements > 16384, [&](const auto& next) {
    for (int64_t number = next(); number >= 0; number = next()) {
      work(number * kWeightTask, std::min((number + 1) * kWeightTask, count));
    }
  });
}

// One block for `convolve`: by kOuts results (the last of them fewer), and there [input][tap][result].
template <typename T, class Get>
T* pack(int64_t outs, int64_t inputs, int64_t taps, const Get& get, T* to) {
  for (int64_t first = 0; first < outs; first += kOuts) {
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t o = first; o < std::min(first + kOuts, outs); ++o) {
          *to++ = get(o, i, tap);
        }
      }
    }
  }
  return to;
}

template <typename T>
class Weights {
 public:
  Weights(const Sizes& s, bool merged, const Tensor& conv, const Tensor& fc, const std::optional<Tensor>& bias)
      : s_(s), merged_(merged), conv_(s.channels * s.taps() * s.taps_pitch()), fc_(s.taps() * s.inputs()),
        whole_(merged ? s.channels * s.inputs() * s.taps_pitch() : 0), packed_(s.channels * planes() * s.taps()),
        back_(s.channels * planes() * s.taps()), mix_(merged ? 0 : s.taps() * s.inputs()),
        unmix_(merged ? 0 : s.taps() * s.maps) {
    const Elements<T> given(conv), from(fc);
    const std::optional<Elements<T>> offset = bias.has_value() ? std::make_optional<Elements<T>>(*bias) : std::nullopt;
    const int64_t taps = s.taps(), pitch = s.taps_pitch(), inputs = s.inputs();
    for (int64_t kk = 0; kk < taps; ++kk) {
      for (int64_t t = 0; t < inputs; ++t) {
        fc_.data()[kk * inputs + t] = t < s.maps ? from.data()[kk * s.maps + t] : offset->data()[kk];
      }
    }
    each_run(s.channels * taps, s.channels * taps * taps, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t tap = 0; tap < pitch; ++tap) {
          conv_.data()[row * pitch + tap] = tap < taps ? given.data()[row * taps + tap] : T{0};
        }
      }
    });
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  int64_t planes() const { return merged_ ? s_.inputs() : s_.taps(); }
  const T* fc() const { return fc_.data(); }
  const T* conv() const { return conv_.data(); }

  // Sets the problem's weights, forward and backward.
  template <typename X>
  void prepare(const Kernels<X>& kernels, Problem<X>& p) {
    const int64_t taps = s_.taps(), pitch = s_.taps_pitch(), inputs = s_.inputs(), many = s_.per_group();
    const int64_t outs = merged_ ? s_.maps : taps;  // of the way back
    const T* source = merged_ ? whole_.data() : conv_.data();
    each_run(s_.depth, s_.channels * planes() * taps, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * many; c < end * many && merged_; ++c) {
        kernels.mix_rows(conv_.data() + c * taps * pitch, fc_.data(), 1, inputs, inputs, taps, pitch,
                         whole_.data() + c * inputs * pitch);
      }
      for (int64_t d = begin; d < end; ++d) {
        const T* of_group = source + d * many * planes() * pitch;
        if (p.out != nullptr) {
          const auto get = [&](int64_t m, int64_t i, int64_t tap) { return of_group[(m * planes() + i) * pitch + tap]; };
          pack(many, planes(), taps, get, packed_.data() + d * many * planes() * taps);
        }
        T* to = back_.data() + d * many * outs * taps;
        for (int64_t phase = 0; phase < s_.phases() * s_.phases() && p.grad != nullptr; ++phase) {
          const int64_t py = phase / s_.phases(), px = phase % s_.phases();
          const int64_t across = divide_up(s_.kernel - px, s_.stride), of_phase = across * divide_up(s_.kernel - py, s_.stride);
          const auto get = [&](int64_t o, int64_t m, int64_t tap) {
            const int64_t dy = py + tap / across * s_.stride, dx = px + tap % across * s_.stride;
            return of_group[(m * planes() + o) * pitch + dy * s_.kernel + dx];
          };
          to = pack(outs, many, of_phase, get, to);
        }
      }
    });
    if (!merged_) {
      pack(taps, inputs, 1, [&](int64_t kk, int64_t t, int64_t) { return fc_.data()[kk * inputs + t]; }, mix_.data());
      pack(s_.maps, taps, 1, [&](int64_t t, int64_t kk, int64_t) { return fc_.data()[kk * inputs + t]; }, unmix_.data());
    }
    p.conv = packed_.data();
    p.back = back_.data();
    p.mix = mix_.data();
    p.unmix = unmix_.data();
  }

  // The gradients, from those of what was convolved with, [C][planes][taps_pitch], and unless merged of fc, [K][inputs].
  template <typename X>
  void gradients(const Kernels<X>& kernels, const T* of_conv, const T* of_fc, const Tensor& dconv, const Tensor& dfc,
                 const std::optional<Tensor>& dbias) const {
    const int64_t taps = s_.taps(), pitch = s_.taps_pitch(), inputs = s_.inputs();
    const Buffer<T> unmerged(merged_ ? s_.channels * taps * pitch : 0), found(taps * inputs);
    if (merged_) {
      each_run(s_.channels, s_.channels * taps * inputs, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          kernels.mix_rows(of_conv + c * inputs * pitch, fc_.data(), inputs, 1, taps, inputs, pitch,
                           unmerged.data() + c * taps * pitch);
        }
      });
      each_run(taps, s_.channels * taps * inputs, [&](int64_t begin, int64_t end) {
        for (int64_t kk = begin; kk < end; ++kk) {
          kernels.multiply_rows(conv_.data() + kk * pitch, taps * pitch, of_conv, inputs * pitch, s_.channels, inputs, pitch,
                                found.data() + kk * inputs);
        }
      });
      of_conv = unmerged.data();
      of_fc = found.data();
    }
    narrow(dconv, [&](int64_t n) { return of_conv[n / taps * pitch + n % taps]; });
    narrow(dfc, [&](int64_t n) { return of_fc[n / s_.maps * inputs + n % s_.maps]; });
    if (dbias.has_value()) {
      narrow(*dbias, [&](int64_t n) { return of_fc[n * inputs + s_.maps]; });
    }
  }

 private:
  template <class Get>
  static void narrow(const Tensor& to, const Get& get) {
    with_type(to.scalar_type(), [&](auto zero) {
      using X = decltype(zero);
      auto* data = static_cast<X*>(to.data_ptr());
      for (int64_t n = 0; n < to.numel(); ++n) {
        data[n] = static_cast<X>(get(n));
      }
    });
  }

  const Sizes s_;
  const bool merged_;
  const Buffer<T> conv_, fc_, whole_, packed_, back_, mix_, unmix_;
};

}  // namespace paperops::shift_conv
