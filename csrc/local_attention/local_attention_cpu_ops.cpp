// Local attention on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/local_attention.py; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "../common/tensors.h"
#include "local_attention_cpu.h"

namespace paperops::local_attention {
namespace {

constexpr int64_t kTasks = 16;       // as many there should be, to be shared by threads
constexpr int64_t kSmall = 1 << 18;  // products of numbers up to which no thread is woken

// Whether the channels of a pixel lie side by side: paperops/ops/local_attention.py, `by_pixels`.
bool by_pixels(const Tensor& q) { return q.size(2) > 1 && q.stride(2) == 1 && q.stride(4) != 1; }

// An uninitialised tensor [B, H, D, height, width] in the layout of q.
Tensor empty_like(const Tensor& q, int64_t height, int64_t width) {
  const int64_t sizes[5] = {q.size(0), q.size(1), q.size(2), height, width};
  const int64_t heads = sizes[1], d = sizes[2], pixels = height * width;
  const int64_t contiguous[5] = {heads * d * pixels, d * pixels, pixels, width, 1};
  const int64_t pixel = heads * d, by_pixel[5] = {pixel * pixels, d, 1, pixel * width, pixel};
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(q.scalar_type()));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(5, sizes, by_pixels(q) ? by_pixel : contiguous, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <typename X>
Map<X> map_of(const Tensor& tensor) {
  return {static_cast<X*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1),
          tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

Window checked_window(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias,
                      int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  STD_TORCH_CHECK(q.dim() == 5, "q must be [B, H, D, h, w]");
  for (const Tensor* other : {&k, &v}) {
    STD_TORCH_CHECK(other->dim() == 5 && other->scalar_type() == q.scalar_type(), "k and v must be like q");
    for (int64_t d = 0; d < 5; ++d) {
      STD_TORCH_CHECK(other->size(d) == q.size(d), "k and v must be like q");
    }
  }
  const int64_t h = q.size(3), w = q.size(4), limit = int64_t{1} << 31;
  STD_TORCH_CHECK(q.size(2) >= 1 && h >= 1 && w >= 1 && h < limit && w < limit, "a map must have channels and pixels");
  STD_TORCH_CHECK(kernel >= 1 && kernel % 2 == 1 && kernel < (1 << 15), "kernel_size must be odd, and less than 2^15");
  STD_TORCH_CHECK(stride >= 1 && stride < limit && dilation >= 1 && dilation < limit && padding >= 0 && padding <= 3,
                  "stride and dilation must be from 1 to 2^31, padding from 0 to 3");
  // Beyond the map there is one query, and no neighbour.
  const int64_t most = std::max(h, w);
  const Window window{kernel, std::min(stride, most), std::min(dilation, most), static_cast<Padding>(padding)};
  const int64_t least = window.padding == Padding::reflect ? kernel / 2 * dilation + 1
                        : window.padding == Padding::shift ? kernel * dilation
                                                           : 1;
  STD_TORCH_CHECK(h >= least && w >= least, "the map is too small for this window");
  STD_TORCH_CHECK(!bias.has_value() || (bias->dim() == 3 && bias->size(0) == q.size(1) && bias->size(1) == kernel &&
                                        bias->size(2) == kernel &&
                                        (bias->scalar_type() == q.scalar_type() ||
                                         bias->scalar_type() == accumulator(q.scalar_type()))),
                  "bias must be [H, k, k], in the dtype of q or float32");
  return window;
}

// How a call is cut into tasks of some rows of queries: by its sizes alone, so that sums are too.
struct Tasks {
  Tasks(int64_t maps, int64_t heads, int64_t queries, int64_t least_rows, int64_t wanted)
      : heads(heads), queries(queries) {
    const int64_t parts = std::min(divide_up(wanted, maps), std::max<int64_t>(queries / least_rows, 1));
    rows = divide_up(queries, parts);
    bands = divide_up(queries, rows);
    count = maps * bands;
  }
  Task operator[](int64_t number) const {
    const int64_t map = number / bands, i0 = number % bands * rows;
    return {map / heads, map % heads, i0, std::min(i0 + rows, queries)};
  }

  int64_t heads, queries, rows, bands, count;
};

// Calls work(number, scratch) for each task, on several threads. The scratch is zeroed once.
template <typename T, class Work>
void run(int64_t tasks, bool parallel, int64_t scratch_size, const Work& work) {
  run_tasks(tasks, parallel, [&](const auto& next) {
    int64_t number = next();
    if (number < 0) {
      return;
    }
    const Buffer<T> scratch(scratch_size);
    std::memset(static_cast<void*>(scratch.data()), 0, scratch_size * sizeof(T));
    for (; number >= 0; number = next()) {
      work(number, scratch.data());
    }
  });
}

bool worth_threads(const Tensor& q, const Rows& rows, const Columns& columns) {
  return q.size(0) * q.size(1) * q.size(2) * rows.queries * columns.queries * rows.kernel * rows.kernel > kSmall;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias,
                                   int64_t kernel, int64_t stride, int64_t dilation, int64_t padding, double scale) {
  const Window window = checked_window(q, k, v, bias, kernel, stride, dilation, padding);
  const int64_t b = q.size(0), heads = q.size(1);
  const Rows rows(q.size(3), window);
  const Columns columns(q.size(4), window);
  const Tensor out = empty_like(q, rows.queries, columns.queries);
  const Tensor logsumexp = empty_cpu({b, heads, rows.queries, columns.queries}, accumulator(q.scalar_type()));
  if (b * heads == 0) {
    return {out, logsumexp};
  }
  with_type(q.scalar_type(), [&](auto zero) {
    using X = decltype(zero);
    using T = Wide<X>;
    std::optional<Elements<T>> given;
    if (bias.has_value()) {
      given.emplace(*bias);
    }
    Problem<X> p{b, heads, q.size(2), rows, columns, window.padding, window.stride, window.dilation, static_cast<T>(scale),
                 given.has_value() ? given->data() : nullptr, map_of<const X>(q), map_of<const X>(k), map_of<const X>(v)};
    p.out = map_of<X>(out);
    p.logsumexp = static_cast<T*>(logsumexp.data_ptr());
    const Kernels<X> of_set = kernels<X>();
    // Rows of keys at the edge of a task are staged twice.
    const Tasks tasks(b * heads, heads, rows.queries, divide_up(kernel * window.dilation, window.stride), kTasks);
    run<T>(tasks.count, worth_threads(q, rows, columns), of_set.forward_scratch(p),
           [&](int64_t number, T* scratch) { of_set.forward(p, tasks[number], scratch); });
  });
  return {out, logsumexp};
}

// The sums of the tasks' dbias [tasks, k * k] by head, in order.
template <typename T>
void sum_bias(const Tasks& tasks, const T* parts, int64_t slots, const Tensor& dbias) {
  with_type(dbias.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    S* found = static_cast<S*>(dbias.data_ptr());
    for (int64_t head = 0; head < tasks.heads; ++head) {
      for (int64_t slot = 0; slot < slots; ++slot) {
        double total = 0;
        for (int64_t map = head; map < tasks.count / tasks.bands; map += tasks.heads) {
          for (int64_t number = map * tasks.bands; number < (map + 1) * tasks.bands; ++number) {
            total += static_cast<double>(parts[number * slots + slot]);
          }
        }
        found[head * slots + slot] = static_cast<S>(static_cast<Wide<S>>(total));
      }
    }
  });
}

template <typename X>
void run_backward(const Problem<X>& p, bool parallel, const std::optional<Tensor>& dbias) {
  using T = Wide<X>;
  const Kernels<X> of_set = kernels<X>();
  const Rows& rows = p.rows;
  const int64_t least = 2 * divide_up(rows.kernel * p.dilation, p.stride), row = p.channels * p.columns.size;
  const Tasks tasks(p.batch * p.heads, p.heads, rows.queries, least, kTasks / 2);
  const Buffer<T> dbias_parts(dbias.has_value() ? tasks.count * p.slots() : 0);
  // Where a map has several tasks, each leaves sums of the rows of keys that it reaches, [2, rows, D, w].
  const auto first = [&](int64_t band) { return rows.lowest[band * tasks.rows]; };
  const auto end = [&](int64_t band) { return rows.highest[std::min((band + 1) * tasks.rows, rows.queries) - 1] + 1; };
  std::vector<int64_t> begins(tasks.bands + 1, 0);  // of the bands of a map
  for (int64_t band = 0; band < tasks.bands; ++band) {
    begins[band + 1] = begins[band] + (tasks.bands > 1 ? 2 * (end(band) - first(band)) * row : 0);
  }
  const int64_t map_size = begins[tasks.bands];
  const Buffer<T> sums(map_size * p.batch * p.heads);
  run<T>(tasks.count, parallel, of_set.backward_scratch(p), [&](int64_t number, T* scratch) {
    Partial<T> partial{dbias.has_value() ? dbias_parts.data() + number * p.slots() : nullptr};
    if (tasks.bands > 1) {
      const int64_t band = number % tasks.bands;
      partial.first = first(band);
      partial.dk = sums.data() + number / tasks.bands * map_size + begins[band];
      partial.dv = partial.dk + (end(band) - partial.first) * row;
    }
    of_set.backward(p, tasks[number], partial, scratch);
  });
  if (tasks.bands > 1) {
    const int64_t scratch_size = round_up(row) + kRound;  // rows are read in fours
    run<T>(p.batch * p.heads * rows.size, parallel, scratch_size, [&](int64_t number, T* scratch) {
      const int64_t map = number / rows.size, r = number % rows.size;
      std::vector<const T*> parts;
      for (int64_t of_values = 0; of_values < 2; ++of_values) {
        parts.clear();
        for (int64_t band = 0; band < tasks.bands; ++band) {
          if (r >= first(band) && r < end(band)) {
            const int64_t at = r - first(band) + of_values * (end(band) - first(band));
            parts.push_back(sums.data() + map * map_size + begins[band] + at * row);
          }
        }
        const Map<X>& of = of_values ? p.dv : p.dk;
        const int64_t count = static_cast<int64_t>(parts.size());
        of_set.finish(p, of, of.at(map / p.heads, map % p.heads, r), parts.data(), count, scratch);
      }
    });
  }
  if (dbias.has_value()) {
    sum_bias(tasks, dbias_parts.data(), p.slots(), *dbias);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const std::optional<Tensor>& bias, const Tensor& out,
                                                    const Tensor& given_logsumexp, int64_t kernel, int64_t stride,
                                                    int64_t dilation, int64_t padding, double scale, bool wants_bias) {
  const Window window = checked_window(q, k, v, bias, kernel, stride, dilation, padding);
  const int64_t b = q.size(0), heads = q.size(1);
  const Rows rows(q.size(3), window);
  const Columns columns(q.size(4), window);
  for (const Tensor* given : {&grad, &out}) {
    STD_TORCH_CHECK(given->dim() == 5 && given->scalar_type() == q.scalar_type() && given->size(0) == b &&
                        given->size(1) == heads && given->size(2) == q.size(2) && given->size(3) == rows.queries &&
                        given->size(4) == columns.queries,
                    "grad and out must be [B, H, D, Ho, Wo] in the dtype of q");
  }
  const Tensor logsumexp = as_contiguous(given_logsumexp);
  STD_TORCH_CHECK(logsumexp.numel() == b * heads * rows.queries * columns.queries &&
                      logsumexp.scalar_type() == accumulator(q.scalar_type()),
                  "logsumexp must be [B, H, Ho, Wo], float32 or, of float64, float64");
  const Tensor dq = empty_like(q, q.size(3), q.size(4)), dk = empty_like(q, q.size(3), q.size(4)),
               dv = empty_like(q, q.size(3), q.size(4));
  const ScalarType bias_type = bias.has_value() ? bias->scalar_type() : q.scalar_type();
  const bool has_dbias = wants_bias && bias.has_value();
  const Tensor dbias = has_dbias ? empty_cpu({heads, kernel, kernel}, bias_type) : empty_cpu({0}, bias_type);
  if (heads == 0) {
    return {dq, dk, dv, dbias};
  }
  if (b == 0) {
    if (has_dbias) {
      std::memset(dbias.data_ptr(), 0, dbias.numel() * dbias.element_size());
    }
    return {dq, dk, dv, dbias};
  }
  with_type(q.scalar_type(), [&](auto zero) {
    using X = decltype(zero);
    using T = Wide<X>;
    std::optional<Elements<T>> given;
    if (bias.has_value()) {
      given.emplace(*bias);
    }
    Problem<X> p{b, heads, q.size(2), rows, columns, window.padding, window.stride, window.dilation, static_cast<T>(scale),
                 given.has_value() ? given->data() : nullptr, map_of<const X>(q), map_of<const X>(k), map_of<const X>(v)};
    p.logsumexp = static_cast<T*>(logsumexp.data_ptr());
    p.grad = map_of<const X>(grad);
    p.dq = map_of<X>(dq);
    p.dk = map_of<X>(dk);
    p.dv = map_of<X>(dv);
    run_backward(p, worth_threads(q, rows, columns), has_dbias ? std::optional<Tensor>(dbias) : std::nullopt);
  });
  return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace paperops::local_attention

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("local_attention.native", TORCH_BOX(&paperops::local_attention::forward));
  m.impl("local_attention_backward.native", TORCH_BOX(&paperops::local_attention::backward));
}
