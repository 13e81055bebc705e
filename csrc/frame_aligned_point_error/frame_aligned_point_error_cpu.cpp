// The frame aligned point error on the CPU: which pairs are taken when, and the dispatcher's side. Schemas and checks of
// the arguments are in paperops/ops/; what is checked here only keeps a direct call from reading outside its tensors.
//
// The points that count are laid out as the kernels want them. A sample's frames that count are split into groups: a task
// takes a group, and all points block by block. It alone knows its frames' gradients; its gradients of points go to a
// buffer of its own, and these are added in order of the groups. Groups depend on sizes and weights, not on threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "frame_aligned_point_error_cpu.h"

namespace paperops::fape {
namespace {

using Optional = std::optional<Tensor>;

constexpr int64_t kPointBlock = 1024;  // with their gradients they stay in the cache nearest to the processor
constexpr int64_t kFrameBlock = 32;    // frames whose gradients of a point are added in T; above that in double
constexpr int64_t kGroups = 16;        // tasks that a call is split into, about; each holds gradients of all points
constexpr int64_t kFewPairs = 20000;   // not worth a thread

struct Sizes {
  int64_t batch, frames, points;
};

template <typename T>
struct Given {
  const T *pred_rotations, *pred_translations, *target_rotations, *target_translations, *pred_positions;
  const T *target_positions, *frame_weights, *position_weights, *coefficients, *pair_weights;
  const int64_t *frame_chains, *position_chains;
  T limit[kKinds], eps;
};

template <typename T>
struct Results {
  T *loss, *sums, *d_rotations, *d_translations, *d_positions;
  bool gradients;  // whether the last three are wanted
};

// A sample's frames and points that count.
template <typename T>
struct Sample {
  std::vector<int64_t> frames, points;  // their numbers
  std::vector<int64_t> chains;          // the numbers of the points' chains, ascending
  std::vector<T> packed;                // [8, pitch]: coordinates, weights, places in `chains`
  int64_t pitch = 0;
  int64_t groups = 0;
};

template <typename T>
T place_of(const std::vector<int64_t>& chains, int64_t chain) {
  const auto found = std::lower_bound(chains.begin(), chains.end(), chain);
  return found != chains.end() && *found == chain ? static_cast<T>(found - chains.begin()) : T{-1};
}

template <typename T>
Sample<T> pack(const Sizes& s, const Given<T>& given, int64_t b) {
  Sample<T> sample;
  for (int64_t f = 0; f < s.frames; ++f) {
    if (given.frame_weights[b * s.frames + f] != 0) {
      sample.frames.push_back(f);
    }
  }
  for (int64_t p = 0; p < s.points; ++p) {
    if (given.position_weights[b * s.points + p] != 0) {
      sample.points.push_back(p);
    }
  }
  const int64_t count = static_cast<int64_t>(sample.points.size());
  const int64_t frames = count > 0 ? static_cast<int64_t>(sample.frames.size()) : 0;
  sample.groups = std::min(divide_up(frames, kFrameBlock / 2), std::max<int64_t>(1, kGroups / s.batch));
  sample.pitch = padded<T>(count);
  sample.packed.assign(8 * sample.pitch, T{0});
  if (given.frame_chains != nullptr) {
    for (const int64_t p : sample.points) {
      sample.chains.push_back(given.position_chains[b * s.points + p]);
    }
    std::sort(sample.chains.begin(), sample.chains.end());
    sample.chains.erase(std::unique(sample.chains.begin(), sample.chains.end()), sample.chains.end());
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t p = b * s.points + sample.points[i];
    T* to = sample.packed.data() + i;
    for (int64_t c = 0; c < 3; ++c) {
      to[c * sample.pitch] = given.pred_positions[3 * p + c];
      to[(3 + c) * sample.pitch] = given.target_positions[3 * p + c];
    }
    to[6 * sample.pitch] = given.position_weights[p];
    if (given.frame_chains != nullptr) {
      to[7 * sample.pitch] = place_of<T>(sample.chains, given.position_chains[p]);
    }
  }
  return sample;
}

template <typename T>
Frame<T> frame_of(const Sizes& s, const Given<T>& given, const Sample<T>& sample, int64_t b, int64_t f) {
  const int64_t row = b * s.frames + f;
  Frame<T> frame;
  std::copy_n(given.pred_rotations + 9 * row, 9, frame.pred_rotation);
  std::copy_n(given.pred_translations + 3 * row, 3, frame.pred_origin);
  std::copy_n(given.target_rotations + 9 * row, 9, frame.target_rotation);
  std::copy_n(given.target_translations + 3 * row, 3, frame.target_origin);
  frame.chain = given.frame_chains == nullptr ? T{0} : place_of<T>(sample.chains, given.frame_chains[row]);
  frame.eps = given.eps;
  const T weight = given.frame_weights[row];
  for (int kind = 0; kind < kKinds; ++kind) {
    const T* coefficients = given.coefficients + (kKinds * b + kind) * 2;
    frame.limit[kind] = given.limit[kind];
    frame.slope[kind][0] = weight * (coefficients[0] + coefficients[1]);
    frame.slope[kind][1] = weight * coefficients[1];
  }
  return frame;
}

// One task: a group of a sample's frames, with all its points. values [2, 3] and dx [3, pitch] are the group's own.
template <typename T>
void add_group(const Sizes& s, const Given<T>& given, const Sample<T>& sample, int64_t b, int64_t group, double* values,
               T* dx, const Results<T>& results) {
  const Kernels<T> kernel = kernels<T>();
  const int64_t total = static_cast<int64_t>(sample.frames.size());
  const int64_t first = total * group / sample.groups, last = total * (group + 1) / sample.groups;
  const bool gradients = dx != nullptr;
  std::vector<Sums> sums(last - first, Sums{});
  const Buffer<T> near(gradients ? 3 * kPointBlock : 0), row(given.pair_weights == nullptr ? 0 : kPointBlock);
  std::vector<double> far(gradients ? 3 * kPointBlock : 0);
  for (int64_t start = 0; start < sample.pitch; start += kPointBlock) {
    const int64_t count = std::min(kPointBlock, sample.pitch - start);
    const T* packed = sample.packed.data() + start;
    Points<T> points{packed, sample.pitch, packed + 6 * sample.pitch,
                     given.frame_chains == nullptr ? nullptr : packed + 7 * sample.pitch, count};
    std::fill(far.begin(), far.end(), 0.0);
    for (int64_t block = first; block < last; block += kFrameBlock) {
      if (gradients) {
        std::fill_n(near.data(), 3 * kPointBlock, T{0});
      }
      for (int64_t i = block; i < std::min(last, block + kFrameBlock); ++i) {
        const int64_t f = sample.frames[i];
        if (given.pair_weights != nullptr) {
          const T* pairs = given.pair_weights + (b * s.frames + f) * s.points;
          for (int64_t j = 0; j < count; ++j) {
            const bool there = start + j < static_cast<int64_t>(sample.points.size());
            row.data()[j] = there ? packed[6 * sample.pitch + j] * pairs[sample.points[start + j]] : T{0};
          }
          points.weights = row.data();
        }
        kernel.add_pairs(frame_of(s, given, sample, b, f), points, near.data(), kPointBlock, sums[i - first]);
      }
      for (int64_t j = 0; gradients && j < 3 * kPointBlock; ++j) {
        far[j] += near.data()[j];
      }
    }
    for (int64_t j = 0; gradients && j < 3 * count; ++j) {
      const int64_t c = j / count, p = j % count;
      dx[c * sample.pitch + start + p] = static_cast<T>(far[c * kPointBlock + p]);
    }
  }
  std::fill_n(values, kKinds * 3, 0.0);
  for (int64_t i = first; i < last; ++i) {
    const Sums& of_frame = sums[i - first];
    const int64_t f = b * s.frames + sample.frames[i];
    for (int64_t v = 0; v < kKinds * 3; ++v) {
      values[v] += given.frame_weights[f] * of_frame.values[v / 3][v % 3];
    }
    for (int64_t c = 0; gradients && c < 3; ++c) {
      double turned = 0.0;
      for (int64_t k = 0; k < 3; ++k) {
        turned += given.pred_rotations[9 * f + 3 * c + k] * of_frame.local[k];
        results.d_rotations[9 * f + 3 * c + k] = static_cast<T>(of_frame.moment[3 * c + k]);
      }
      results.d_translations[3 * f + c] = static_cast<T>(-turned);
    }
  }
}

// The groups' parts, added in order.
template <typename T>
void finish(const Sizes& s, const Given<T>& given, const Sample<T>& sample, int64_t b, const double* values,
            const T* dx, int64_t dx_size, const Results<T>& results) {
  double loss = 0.0;
  for (int64_t v = 0; v < kKinds * 3; ++v) {
    double total = 0.0;
    for (int64_t group = 0; group < sample.groups; ++group) {
      total += values[group * kKinds * 3 + v];
    }
    results.sums[b * kKinds * 3 + v] = static_cast<T>(total);
    const T coefficient = v % 3 == 2 ? T{0} : given.coefficients[(kKinds * b + v / 3) * 2 + v % 3];
    loss += coefficient == 0 ? 0.0 : coefficient * total;  // what does not count may be infinite
  }
  results.loss[b] = static_cast<T>(loss);
  if (dx == nullptr) {
    return;
  }
  for (int64_t i = 0; sample.groups > 0 && i < static_cast<int64_t>(sample.points.size()); ++i) {
    for (int64_t c = 0; c < 3; ++c) {
      double total = 0.0;
      for (int64_t group = 0; group < sample.groups; ++group) {
        total += dx[group * dx_size + c * sample.pitch + i];
      }
      results.d_positions[3 * (b * s.points + sample.points[i]) + c] = static_cast<T>(total);
    }
  }
}

template <typename T>
void all_pairs(const Sizes& s, const Given<T>& given, const Results<T>& results) {
  const bool gradients = results.gradients, parallel = s.batch * s.frames * s.points > kFewPairs;
  if (gradients) {  // what does not count has none
    std::fill_n(results.d_rotations, s.batch * s.frames * 9, T{0});
    std::fill_n(results.d_translations, s.batch * s.frames * 3, T{0});
    std::fill_n(results.d_positions, s.batch * s.points * 3, T{0});
  }
  std::vector<Sample<T>> samples(s.batch);
  run_tasks(s.batch, parallel, [&](const auto& next) {
    for (int64_t b = next(); b >= 0; b = next()) {
      samples[b] = pack(s, given, b);
    }
  });
  int64_t most = 0, dx_size = 0;
  for (const Sample<T>& sample : samples) {
    most = std::max(most, sample.groups);
    dx_size = std::max(dx_size, 3 * sample.pitch);
  }
  const Buffer<double> values(s.batch * most * kKinds * 3);
  const Buffer<T> dx(gradients ? s.batch * most * dx_size : 0);
  run_tasks(s.batch * most, parallel, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / most, group = task % most;
      if (group < samples[b].groups) {
        add_group(s, given, samples[b], b, group, values.data() + task * kKinds * 3,
                  gradients ? dx.data() + task * dx_size : nullptr, results);
      }
    }
  });
  run_tasks(s.batch, parallel, [&](const auto& next) {
    for (int64_t b = next(); b >= 0; b = next()) {
      finish(s, given, samples[b], b, values.data() + b * most * kKinds * 3,
             gradients ? dx.data() + b * most * dx_size : nullptr, dx_size, results);
    }
  });
}

void check(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes, ScalarType type) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == type;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    fits = tensor.size(d) == sizes.begin()[d];
  }
  STD_TORCH_CHECK(fits, name, " has the wrong shape or dtype");
}

void check(const char* name, const Optional& tensor, std::initializer_list<int64_t> sizes, ScalarType type) {
  if (tensor.has_value()) {
    check(name, *tensor, sizes, type);
  }
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Five forward(const Tensor& pred_rotations, const Tensor& pred_translations, const Tensor& target_rotations,
             const Tensor& target_translations, const Tensor& pred_positions, const Tensor& target_positions,
             const Tensor& frame_weights, const Tensor& position_weights, const Tensor& coefficients,
             const Optional& pair_weights, const Optional& frame_chains, const Optional& position_chains, double clamp,
             double between_clamp, double eps, bool gradients) {
  STD_TORCH_CHECK(pred_rotations.dim() == 4 && pred_positions.dim() == 3,
                  "pred_rotations must have 4 dimensions, pred_positions 3");
  const Sizes s = {pred_rotations.size(0), pred_rotations.size(1), pred_positions.size(1)};
  const ScalarType type = accumulator(pred_rotations.scalar_type());
  check("pred_rotations", pred_rotations, {s.batch, s.frames, 3, 3}, type);
  check("pred_translations", pred_translations, {s.batch, s.frames, 3}, type);
  check("target_rotations", target_rotations, {s.batch, s.frames, 3, 3}, type);
  check("target_translations", target_translations, {s.batch, s.frames, 3}, type);
  check("pred_positions", pred_positions, {s.batch, s.points, 3}, type);
  check("target_positions", target_positions, {s.batch, s.points, 3}, type);
  check("frame_weights", frame_weights, {s.batch, s.frames}, type);
  check("position_weights", position_weights, {s.batch, s.points}, type);
  check("coefficients", coefficients, {s.batch, kKinds, 2}, type);
  check("pair_weights", pair_weights, {s.batch, s.frames, s.points}, type);
  STD_TORCH_CHECK(frame_chains.has_value() == position_chains.has_value(), "chains of frames and of points go together");
  check("frame_chains", frame_chains, {s.batch, s.frames}, ScalarType::Long);
  check("position_chains", position_chains, {s.batch, s.points}, ScalarType::Long);

  const Tensor loss = empty_cpu({s.batch}, type), sums = empty_cpu({s.batch, kKinds, 3}, type);
  const Tensor d_rotations = gradients ? empty_cpu({s.batch, s.frames, 3, 3}, type) : empty_cpu({0}, type);
  const Tensor d_translations = gradients ? empty_cpu({s.batch, s.frames, 3}, type) : empty_cpu({0}, type);
  const Tensor d_positions = gradients ? empty_cpu({s.batch, s.points, 3}, type) : empty_cpu({0}, type);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> elements[] = {
        Elements<T>(pred_rotations), Elements<T>(pred_translations), Elements<T>(target_rotations),
        Elements<T>(target_translations), Elements<T>(pred_positions), Elements<T>(target_positions),
        Elements<T>(frame_weights), Elements<T>(position_weights), Elements<T>(coefficients),
        Elements<T>(pair_weights)};
    const Integers of_frames(frame_chains), of_points(position_chains);
    const Given<T> given = {
        elements[0].data(), elements[1].data(), elements[2].data(), elements[3].data(), elements[4].data(),
        elements[5].data(), elements[6].data(), elements[7].data(), elements[8].data(), elements[9].data(),
        of_frames.data(), of_points.data(), {static_cast<T>(clamp), static_cast<T>(between_clamp)},
        static_cast<T>(eps)};
    const auto data = [](const Tensor& tensor) { return static_cast<T*>(tensor.data_ptr()); };
    all_pairs<T>(s, given,
                 {data(loss), data(sums), data(d_rotations), data(d_translations), data(d_positions), gradients});
  };
  if (s.batch > 0) {
    type == ScalarType::Double ? run(double{}) : run(float{});
  }
  return {loss, sums, d_rotations, d_translations, d_positions};
}

}  // namespace
}  // namespace paperops::fape

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("frame_aligned_point_error.native", TORCH_BOX(&paperops::fape::forward));
}
