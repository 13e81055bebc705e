// ACmix's convolution path on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/shift_conv.py; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "shift_conv_cpu_weights.h"

namespace paperops::shift_conv {
namespace {

constexpr int64_t kBytes = 768 << 10;  // of a task: it stays in a second-level cache
constexpr int64_t kGroups = 8;         // of a task where channels are neighbours in memory
constexpr int64_t kLeastRows = 4;      // of a task; those at its edges are read twice
constexpr int64_t kTasks = 16;         // as many there should be, to be shared by threads
constexpr int64_t kRuns = 32;          // of tasks whose sums are kept apart
constexpr int64_t kSmall = 200000;     // multiply-adds up to which no thread is woken

using Optional = std::optional<Tensor>;

// An uninitialised tensor [b, channels..., h, w], contiguous or with the channels of a pixel next to each other.
Tensor empty_map(std::initializer_list<int64_t> sizes, ScalarType type, bool channels_last) {
  const int64_t count = static_cast<int64_t>(sizes.size());
  const int64_t* size = sizes.begin();
  int64_t strides[5], stride = 1;
  const auto next = [&](int64_t d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(size[d], 1);
  };
  if (channels_last) {
    for (int64_t d = count - 3; d > 0; --d) {
      next(d);
    }
    next(count - 1);
    next(count - 2);
  } else {
    for (int64_t d = count - 1; d > 0; --d) {
      next(d);
    }
  }
  next(0);
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(count, size, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void copy_strides(const Tensor& from, int64_t* to) {
  for (int64_t d = 0; d < from.dim(); ++d) {
    to[d] = from.stride(d);
  }
}

Sizes checked(int64_t batch, int64_t depth, int64_t height, int64_t width, const Tensor& fc, const Tensor& conv,
              const Optional& bias, int64_t stride, ScalarType type) {
  STD_TORCH_CHECK(fc.dim() == 2 && conv.dim() == 4 && conv.size(2) == conv.size(3) && conv.size(2) % 2 == 1 &&
                      conv.size(1) == conv.size(2) * conv.size(2) && fc.size(0) == conv.size(1),
                  "fc_weight must be [K, T] and conv_weight [C, K, k, k]");
  STD_TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == fc.size(0)), "fc_bias must be [K]");
  const auto typed = [&](const Tensor& value) {
    return value.scalar_type() == type || value.scalar_type() == accumulator(type);
  };
  STD_TORCH_CHECK(typed(fc) && typed(conv) && (!bias.has_value() || typed(*bias)), "a weight has the wrong dtype");
  STD_TORCH_CHECK(depth >= 1 && height >= 1 && width >= 1 && fc.size(1) >= 1, "sizes must be positive");
  STD_TORCH_CHECK(stride >= 1 && stride < int64_t{1} << 31, "stride must be from 1 to 2^31");
  STD_TORCH_CHECK(conv.size(0) >= 1 && conv.size(0) % depth == 0, "C must be a multiple of D");
  return {batch, fc.size(1), depth, height, width, conv.size(0), conv.size(2), stride, bias.has_value()};
}

// How a call is cut into tasks of some groups and rows: by its sizes alone, so that sums are too.
struct Tasks {
  template <typename X>
  Tasks(const Kernels<X>& kernels, const Problem<X>& p, int64_t rows, bool channels_last) : rows(rows) {
    const Sizes& s = p.sizes;
    bands.groups = channels_last ? std::min(kGroups, s.depth) : 1;
    blocks = divide_up(s.depth, bands.groups);
    parts = 1;
    const auto cut = [&] {
      bands.rows = divide_up(rows, parts);
      return bands.rows > kLeastRows &&
             (s.batch * blocks * parts < kTasks || kernels.scratch(p, bands) * static_cast<int64_t>(sizeof(Wide<X>)) > kBytes);
    };
    while (cut()) {
      ++parts;
    }
    parts = divide_up(rows, bands.rows);
    depth = s.depth;
    units = s.batch * parts;
    scratch = kernels.scratch(p, bands);
    const int64_t work = s.batch * s.rows() * s.columns() * s.channels * s.taps() * std::min(s.maps, s.taps());
    parallel = work > kSmall;
  }
  Task task(int64_t block, int64_t unit) const {
    const int64_t d0 = block * bands.groups, r0 = unit % parts * bands.rows;
    return {unit / parts, d0, std::min(d0 + bands.groups, depth), r0, std::min(r0 + bands.rows, rows)};
  }

  Bands bands;
  int64_t rows, depth, blocks, parts, units, scratch;
  bool parallel;
};

Tensor forward(const Tensor& x, const Tensor& fc, const Tensor& conv, const Optional& bias, int64_t stride,
               bool channels_last) {
  STD_TORCH_CHECK(x.dim() == 5 && x.size(1) == fc.size(1), "x must be [B, T, D, h, w]");
  const Sizes s = checked(x.size(0), x.size(2), x.size(3), x.size(4), fc, conv, bias, stride, x.scalar_type());
  Tensor out = empty_map({s.batch, s.channels, s.rows(), s.columns()}, x.scalar_type(), channels_last);
  if (s.batch == 0) {
    return out;
  }
  with_type(x.scalar_type(), [&](auto zero) {
    using X = decltype(zero);
    using T = Wide<X>;
    const Kernels<X> of_set = kernels<X>();
    Problem<X> p{};
    p.sizes = s;
    p.merged = s.merged();
    p.x = static_cast<const X*>(x.data_ptr());
    p.out = static_cast<X*>(out.data_ptr());
    copy_strides(x, p.x_strides);
    copy_strides(out, p.out_strides);
    Weights<T> weights(s, p.merged, conv, fc, bias);
    weights.prepare(of_set, p);
    const Tasks tasks(of_set, p, s.rows(), channels_last);
    run_tasks(tasks.units * tasks.blocks, tasks.parallel, [&](const auto& next) {
      const Buffer<T> scratch(tasks.scratch);
      for (int64_t number = next(); number >= 0; number = next()) {
        of_set.forward(p, tasks.bands, tasks.task(number % tasks.blocks, number / tasks.blocks), scratch.data());
      }
    });
  });
  return out;
}

// Runs the tasks of a backward call: dx is written, and the sums over all pixels are left in `of_conv` [C][planes][pitch]
// and `of_fc` [K][inputs]. Each run of tasks has sums of its own, and these are added in their order.
template <typename X, typename T = Wide<X>>
void run_backward(const Kernels<X>& kernels, const Problem<X>& p, int64_t planes, bool channels_last, T* of_conv, T* of_fc) {
  const Sizes& s = p.sizes;
  const Tasks tasks(kernels, p, s.rows() + s.reach(), channels_last);
  const int64_t chunks = std::min(tasks.units, divide_up(kRuns, tasks.blocks)), pitch = s.taps_pitch();
  const int64_t of_group = s.per_group() * planes, conv_size = s.depth * of_group * pitch, fc_size = s.taps() * s.inputs();
  const bool sums = p.x != nullptr;
  const int64_t conv_lanes = tasks.bands.groups * of_group * s.taps() * kernels.lanes, fc_lanes = fc_size * kernels.lanes;
  const Buffer<T> conv_parts(sums ? chunks * conv_size : 0), fc_parts(sums ? chunks * tasks.blocks * fc_size : 0);
  run_tasks(chunks * tasks.blocks, tasks.parallel, [&](const auto& next) {
    const Buffer<T> scratch(tasks.scratch), own(sums ? conv_lanes + fc_lanes : 0);
    for (int64_t number = next(); number >= 0; number = next()) {
      const int64_t block = number % tasks.blocks, chunk = number / tasks.blocks;
      std::fill(own.data(), own.data() + (sums ? conv_lanes + fc_lanes : 0), T{0});
      for (int64_t unit = tasks.units * chunk / chunks; unit < tasks.units * (chunk + 1) / chunks; ++unit) {
        kernels.backward(p, tasks.bands, tasks.task(block, unit), scratch.data(), {own.data(), own.data() + conv_lanes});
      }
      if (sums) {
        const Task task = tasks.task(block, 0);
        kernels.add_lanes(own.data(), (task.d1 - task.d0) * of_group, s.taps(), pitch,
                          conv_parts.data() + chunk * conv_size + task.d0 * of_group * pitch);
        kernels.add_lanes(own.data() + conv_lanes, 1, fc_size, fc_size, fc_parts.data() + number * fc_size);
      }
    }
  });
  if (!sums) {
    return;
  }
  const auto total = [](const T* parts, int64_t count, int64_t size, int64_t n) {
    double sum = 0.0;
    for (int64_t part = 0; part < count; ++part) {
      sum += parts[part * size + n];
    }
    return static_cast<T>(sum);
  };
  each_run(s.channels * planes, conv_size * chunks, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t tap = 0; tap < pitch; ++tap) {
        const int64_t n = row * pitch + tap;
        of_conv[n] = tap < s.taps() ? total(conv_parts.data(), chunks, conv_size, n) : T{0};
      }
    }
  });
  for (int64_t n = 0; n < fc_size; ++n) {
    of_fc[n] = total(fc_parts.data(), chunks * tasks.blocks, fc_size, n);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Optional& x, const Tensor& fc,
                                                    const Tensor& conv, const Optional& bias, int64_t depth,
                                                    int64_t height, int64_t width, int64_t stride, bool wants_x,
                                                    bool channels_last) {
  STD_TORCH_CHECK(grad.dim() == 4, "grad must be [B, C, Ho, Wo]");
  const ScalarType type = grad.scalar_type();
  const Sizes s = checked(grad.size(0), depth, height, width, fc, conv, bias, stride, type);
  STD_TORCH_CHECK(grad.size(1) == s.channels && grad.size(2) == s.rows() && grad.size(3) == s.columns(),
                  "grad must be [B, C, Ho, Wo]");
  STD_TORCH_CHECK(!x.has_value() || (x->dim() == 5 && x->size(0) == s.batch && x->size(1) == s.maps &&
                                     x->size(2) == depth && x->size(3) == height && x->size(4) == width &&
                                     x->scalar_type() == type),
                  "x must be [B, T, D, h, w], of the dtype of grad");
  Tensor dx = wants_x ? empty_map({s.batch, s.maps, depth, height, width}, type, channels_last) : empty_cpu({0}, type);
  const bool sums = x.has_value();
  Tensor dfc = sums ? empty_cpu({s.taps(), s.maps}, fc.scalar_type()) : empty_cpu({0}, fc.scalar_type());
  Tensor dconv = sums ? empty_cpu({s.channels, s.taps(), s.kernel, s.kernel}, conv.scalar_type())
                      : empty_cpu({0}, conv.scalar_type());
  Tensor dbias = empty_cpu({sums && s.bias ? s.taps() : 0}, s.bias ? bias->scalar_type() : type);
  if (s.batch == 0) {
    for (Tensor* found : {&dfc, &dconv, &dbias}) {
      torch::stable::zero_(*found);
    }
    return {dx, dfc, dconv, dbias};
  }
  with_type(type, [&](auto zero) {
    using X = decltype(zero);
    using T = Wide<X>;
    const Kernels<X> of_set = kernels<X>();
    Problem<X> p{};
    p.sizes = s;
    p.merged = s.merged();
    p.grad = static_cast<const X*>(grad.data_ptr());
    copy_strides(grad, p.grad_strides);
    if (sums) {
      p.x = static_cast<const X*>(x->data_ptr());
      copy_strides(*x, p.x_strides);
    }
    if (wants_x) {
      p.dx = static_cast<X*>(dx.data_ptr());
      copy_strides(dx, p.dx_strides);
    }
    Weights<T> weights(s, p.merged, conv, fc, bias);
    weights.prepare(of_set, p);
    const Buffer<T> of_conv(s.channels * weights.planes() * s.taps_pitch()), of_fc(s.taps() * s.inputs());
    run_backward(of_set, p, weights.planes(), channels_last, of_conv.data(), of_fc.data());
    if (sums) {
      weights.gradients(of_set, of_conv.data(), of_fc.data(), dconv, dfc, s.bias ? Optional(dbias) : std::nullopt);
    }
  });
  return {dx, dfc, dconv, dbias};
}

}  // namespace
}  // namespace paperops::shift_conv

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("shift_conv.native", TORCH_BOX(&paperops::shift_conv::forward));
  m.impl("shift_conv_backward.native", TORCH_BOX(&paperops::shift_conv::backward));
}
