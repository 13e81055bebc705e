// DynOPool's pooling and resampling on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/dynopool.py; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/pages.h"
#include "../common/tensors.h"
#include "dynopool_cpu.h"

namespace paperops::dynopool {
namespace {

constexpr int64_t kTaskBytes = 128 << 10;  // what a task of the backward pass adds to: it stays in a second-level cache
constexpr int64_t kChannels = 128;         // channels of a task of channels_last: runs of memory that prefetching sees
constexpr int64_t kTasks = 16;             // as many there should be, to be shared by threads
constexpr int64_t kSmall = 32768;          // elements up to which no thread is woken

using torch::headeronly::MemoryFormat;

// An uninitialised tensor [b, c, h, w] in one of the two layouts.
Tensor empty_map(int64_t b, int64_t c, int64_t h, int64_t w, ScalarType type, bool channels_last) {
  const int64_t sizes[4] = {b, c, h, w};
  const auto some = [](int64_t size) { return size > 0 ? size : 1; };
  const int64_t contiguous[4] = {some(c) * some(h) * some(w), some(h) * some(w), some(w), 1};
  const int64_t by_pixels[4] = {some(c) * some(h) * some(w), 1, some(w) * some(c), some(c)};
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  const auto failed = aoti_torch_empty_strided(4, sizes, channels_last ? by_pixels : contiguous, dtype,
                                               aoti_torch_device_type_cpu(), 0, &handle);
  STD_TORCH_CHECK(!failed, "no memory for a map of shape [", b, ", ", c, ", ", h, ", ", w, "]");
  const Tensor map(handle);
  prefer_large_pages(map.data_ptr(), map.numel() * static_cast<int64_t>(map.element_size()));
  return map;
}

// The tensor [b, c, h, w] in that layout: itself, or a copy.
Tensor laid_out(const Tensor& tensor, bool channels_last) {
  if (!channels_last) {
    return as_contiguous(tensor);
  }
  const int64_t c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  const int64_t expected[4] = {c * h * w, 1, w * c, c};
  for (int64_t d = 0; d < 4; ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != expected[d]) {
      return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
    }
  }
  return tensor;
}

struct Scale {
  explicit Scale(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.numel() == 2, "scale must be [2]");
    with_type(tensor.scalar_type(), [&](auto zero) {
      const Tensor own = as_contiguous(tensor);
      const auto* data = static_cast<const decltype(zero)*>(own.data_ptr());
      height = static_cast<double>(data[0]);
      width = static_cast<double>(data[1]);
    });
  }
  double height, width;
};

template <typename T>
Axis<T> axis(int64_t pixels, int64_t cells, double ratio, Mode mode, bool zeros) {
  const bool four = mode == Mode::max || mode == Mode::mean, corners = mode == Mode::corners;
  return {pixels, cells, ratio, four ? 2 : 1, four ? 0.25 : corners ? 0.0 : 0.5, corners ? 0.0 : 0.5, zeros};
}

Mode checked_mode(int64_t mode) {
  STD_TORCH_CHECK(mode >= 0 && mode <= 3, "mode must be from 0 to 3");
  return static_cast<Mode>(mode);
}

void check_size(int64_t height, int64_t width) {
  const int64_t limit = (int64_t{1} << 30) - 2 * kPad;  // two samples a cell are numbered in 32 bits
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height < limit && width < limit, "a side must be from 1 to 2^30");
}

// How a call is cut into tasks of some channels and rows: by its sizes alone, so that sums are too.
struct Tasks {
  template <typename X>
  Tasks(const Problem<X>& p, int64_t rows, int64_t row_bytes)
      : channels(p.channels), rows(rows), per_task(p.channels_last ? kChannels : kPacked),
        groups(divide_up(p.channels, per_task)) {
    const int64_t maps = p.batch * groups, parts = divide_up(kTasks, maps);
    // A channel of the layout's rows has row_bytes; rows at the edge of a task are interpolated twice.
    const int64_t fit = kTaskBytes / (row_bytes * std::min(per_task, p.channels)), least = 8;
    height = std::clamp<int64_t>(std::min(fit, divide_up(rows, parts)), std::min(least, rows), rows);
    blocks = divide_up(rows, height);
    count = maps * blocks;
  }
  Task operator[](int64_t number) const {
    const int64_t map = number / blocks, r0 = number % blocks * height, c0 = map % groups * per_task;
    return {map / groups, c0, std::min(c0 + per_task, channels), r0, std::min(r0 + height, rows)};
  }

  int64_t channels, rows, per_task, groups, height, blocks, count;
};

// Calls work(number, task, scratch) for each task, on several threads.
template <typename T, class Work>
void run(const Tasks& tasks, int64_t elements, const Work& work) {
  run_tasks(tasks.count, elements > kSmall, [&](const auto& next) {
    Scratch<T> scratch;
    for (int64_t number = next(); number >= 0; number = next()) {
      work(number, tasks[number], scratch);
    }
  });
}

// A row of zeros where the map is surrounded by them.
template <typename X>
Buffer<X> zero_row(int64_t size, bool zeros) {
  Buffer<X> row(zeros ? size : 0);
  std::fill(row.data(), row.data() + (zeros ? size : 0), X{});
  return row;
}

std::tuple<Tensor, Tensor> forward(const Tensor& given, const Tensor& scale, int64_t height, int64_t width,
                                   int64_t mode_number, bool zeros, bool keep, bool channels_last) {
  const Mode mode = checked_mode(mode_number);
  STD_TORCH_CHECK(given.dim() == 4, "x must be [B, C, H, W]");
  const Tensor x = laid_out(given, channels_last);
  const int64_t b = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  check_size(h, w);
  check_size(height, width);
  const Scale ratio(scale);
  Tensor out = empty_map(b, c, height, width, x.scalar_type(), channels_last);
  const bool choices = keep && mode == Mode::max;
  Tensor chosen = choices ? empty_map(b, divide_up(c, kPacked), height, width, ScalarType::Byte, channels_last)
                          : empty_cpu({0}, ScalarType::Byte);
  if (b == 0 || c == 0) {
    return {out, chosen};
  }
  with_type(x.scalar_type(), [&](auto zero) {
    using X = decltype(zero);
    using T = Wide<X>;
    const Axis<T> rows = axis<T>(h, height, ratio.height, mode, zeros), columns = axis<T>(w, width, ratio.width, mode, zeros);
    const Buffer<X> none = zero_row<X>(w * (channels_last ? c : 1), zeros);
    const Problem<X> p{b, c, mode, zeros, channels_last, rows, columns, static_cast<const X*>(x.data_ptr()), nullptr, nullptr,
                       static_cast<X*>(out.data_ptr()), choices ? static_cast<uint8_t*>(chosen.data_ptr()) : nullptr,
                       nullptr, none.data()};
    const Kernels<X> of_set = kernels<X>();
    const Tasks tasks(p, height, width * static_cast<int64_t>(sizeof(T)));
    run<T>(tasks, out.numel() + x.numel(), [&](int64_t, const Task& task, Scratch<T>& scratch) { of_set.forward(p, task, scratch); });
  });
  return {out, chosen};
}

std::tuple<Tensor, Tensor> backward(const Tensor& given_grad, const Tensor& given_chosen, const Tensor& scale,
                                    const std::optional<Tensor>& given_x, int64_t height, int64_t width,
                                    int64_t mode_number, bool zeros, bool wants_x, bool channels_last) {
  const Mode mode = checked_mode(mode_number);
  STD_TORCH_CHECK(given_grad.dim() == 4, "grad must be [B, C, Ho, Wo]");
  const Tensor grad = laid_out(given_grad, channels_last);
  const int64_t b = grad.size(0), c = grad.size(1), cells_h = grad.size(2), cells_w = grad.size(3);
  check_size(height, width);
  check_size(cells_h, cells_w);
  const Scale ratio(scale);
  std::optional<Tensor> x, chosen;
  if (given_x.has_value()) {
    STD_TORCH_CHECK(given_x->dim() == 4 && given_x->size(0) == b && given_x->size(1) == c && given_x->size(2) == height &&
                        given_x->size(3) == width && given_x->scalar_type() == grad.scalar_type(),
                    "x must be [B, C, H, W], of the dtype of grad");
    x = laid_out(*given_x, channels_last);
  }
  if (mode == Mode::max) {
    STD_TORCH_CHECK(given_chosen.dim() == 4 && given_chosen.size(0) == b && given_chosen.size(1) == divide_up(c, kPacked) &&
                        given_chosen.size(2) == cells_h && given_chosen.size(3) == cells_w &&
                        given_chosen.scalar_type() == ScalarType::Byte,
                    "chosen must be [B, ceil(C / 4), Ho, Wo], uint8");
    chosen = laid_out(given_chosen, channels_last);
  }
  const ScalarType type = grad.scalar_type();
  Tensor dx = wants_x ? empty_map(b, c, height, width, type, channels_last) : empty_cpu({0}, type);
  Tensor dscale = empty_cpu({x.has_value() ? 2 : 0}, scale.scalar_type());
  double totals[2] = {0, 0};
  if (b > 0 && c > 0) {
    with_type(type, [&](auto zero) {
      using X = decltype(zero);
      using T = Wide<X>;
      const Axis<T> rows = axis<T>(height, cells_h, ratio.height, mode, zeros);
      const Axis<T> columns = axis<T>(width, cells_w, ratio.width, mode, zeros);
      const Buffer<X> none = zero_row<X>(width * (channels_last ? c : 1), zeros);
      const auto data = [](const std::optional<Tensor>& tensor) { return tensor.has_value() ? tensor->data_ptr() : nullptr; };
      const Problem<X> p{b, c, mode, zeros, channels_last, rows, columns, static_cast<const X*>(data(x)),
                         static_cast<const X*>(grad.data_ptr()), static_cast<const uint8_t*>(data(chosen)), nullptr, nullptr,
                         wants_x ? static_cast<X*>(dx.data_ptr()) : nullptr, none.data()};
      const Kernels<X> of_set = kernels<X>();
      const int64_t elements = grad.numel() + p.batch * p.channels * p.pixels();
      if (wants_x) {
        const Tasks tasks(p, height, width * static_cast<int64_t>(sizeof(T)));
        run<T>(tasks, elements, [&](int64_t, const Task& task, Scratch<T>& scratch) { of_set.backward(p, task, scratch); });
      }
      if (x.has_value()) {
        const Tasks tasks(p, cells_h, cells_w * static_cast<int64_t>(sizeof(T)));
        const Buffer<double> sums(2 * tasks.count);
        run<T>(tasks, elements, [&](int64_t number, const Task& task, Scratch<T>& scratch) {
          double own[2] = {0, 0};
          of_set.slopes(p, task, scratch, own);
          sums.data()[2 * number] = own[0];
          sums.data()[2 * number + 1] = own[1];
        });
        for (int64_t number = 0; number < tasks.count; ++number) {
          totals[0] += sums.data()[2 * number];
          totals[1] += sums.data()[2 * number + 1];
        }
      }
    });
  }
  if (x.has_value()) {
    with_type(scale.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      S* found = static_cast<S*>(dscale.data_ptr());
      // Divided twice: the square of a small ratio is 0.
      found[0] = static_cast<S>(static_cast<Wide<S>>(-totals[0] / ratio.height / ratio.height));
      found[1] = static_cast<S>(static_cast<Wide<S>>(-totals[1] / ratio.width / ratio.width));
    });
  }
  return {dx, dscale};
}

}  // namespace
}  // namespace paperops::dynopool

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("dynopool.native", TORCH_BOX(&paperops::dynopool::forward));
  m.impl("dynopool_backward.native", TORCH_BOX(&paperops::dynopool::backward));
}
