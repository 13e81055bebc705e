// The CUDA implementations of knn, nearest and their gradients: checks, workspace, and which launch.
//
// For D <= 8 and k <= 32; other cases are another backend's (the Python router sends them there). Lengths and indices
// stay on the device, nothing waits for it, and all memory comes from torch's allocator, so a CUDA graph can hold a
// call.
#include "../common/cuda_torch.h"
#include "nearest_cuda_plan.h"

namespace paperops::nearest {
namespace {

using cuda::Dtype;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

void check_clouds(const Tensor& x, const Tensor& y, int64_t norm) {
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3, "paperops: x and y must be [B, N, D] and [B, M, D]");
  STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(2) == y.size(2), "paperops: x and y must agree in B and D");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "paperops: x and y must have the same dtype");
  STD_TORCH_CHECK(x.get_device_index() == y.get_device_index(), "paperops: x and y must be on the same device");
  STD_TORCH_CHECK(
      x.size(2) >= 1 && x.size(2) <= kMostDimensions,
      "paperops: the CUDA implementation is for 1 <= D <= 8; use the triton backend for more dimensions");
  STD_TORCH_CHECK(norm == 1 || norm == 2, "paperops: norm must be 1 or 2");
}

// Contiguous, on the clouds' device, and kept alive by the caller until the launch.
struct Lengths {
  std::optional<Tensor> tensor;
  const int64_t* data = nullptr;

  Lengths(const std::optional<Tensor>& lengths, int64_t batch, int32_t device) {
    if (lengths.has_value()) {
      STD_TORCH_CHECK(
          lengths->scalar_type() == ScalarType::Long && lengths->numel() == batch &&
              lengths->get_device_index() == device,
          "paperops: lengths must be int64 [B] on the device of the clouds");
      tensor = torch::stable::contiguous(*lengths);
      data = static_cast<const int64_t*>(tensor->const_data_ptr());
    }
  }
};

struct Found {
  Tensor distances;
  Tensor indices;
};

// One or both directions in one scan. The first is from x to y.
std::array<Found, 2> run_nearest(
    const Tensor& x_any, const Tensor& y_any, const std::optional<Tensor>& x_lengths,
    const std::optional<Tensor>& y_lengths, int64_t norm, int sides) {
  check_clouds(x_any, y_any, norm);
  const int32_t device = x_any.get_device_index();
  const DeviceGuard guard(device);
  const Tensor x = torch::stable::contiguous(x_any);
  const Tensor y = torch::stable::contiguous(y_any);
  const int64_t batch = x.size(0);
  const Lengths lengths[2] = {{x_lengths, batch, device}, {y_lengths, batch, device}};
  const Tensor* clouds[2] = {&x, &y};
  const int64_t counts[2] = {x.size(1), y.size(1)};

  NearestArguments arguments{};
  arguments.side_count = sides;
  arguments.batch = batch;
  arguments.dimensions = static_cast<int>(x.size(2));
  arguments.dtype = cuda::dtype_of(x);
  const bool wide = arguments.dtype == Dtype::float64;
  const ScanPlan plan = plan_scan(
      batch, counts, {counts[1], counts[0]}, sides, wide, arguments.dimensions, cuda::processors(device));

  std::array<Found, 2> found;
  Tensor workspace[2][2];  // best and rival; tile
  for (int s = 0; s < sides; ++s) {
    const int64_t slots = plan.splits[s] * batch * counts[s];
    found[s].distances = torch::stable::new_empty(x, {batch, counts[s]}, cuda::accumulator(x));  // [B, N]
    found[s].indices = torch::stable::new_empty(x, {batch, counts[s]}, ScalarType::Long);        // [B, N]
    workspace[s][0] = torch::stable::new_empty(x, {wide ? 1 : 2, slots}, cuda::accumulator(x));
    workspace[s][1] = torch::stable::new_empty(x, {slots}, ScalarType::Int);  // [splits, B, N]
    Side& side = arguments.sides[s];
    side.queries = clouds[s]->const_data_ptr();
    side.targets = clouds[1 - s]->const_data_ptr();
    side.query_lengths = lengths[s].data;
    side.target_lengths = lengths[1 - s].data;
    side.query_count = counts[s];
    side.target_count = counts[1 - s];
    side.groups = plan.groups[s];
    side.splits = plan.splits[s];
    side.split_tiles = plan.split_tiles[s];
    side.tile_size = plan.fused && s == 1 ? kFusedTile : kTile;
    side.best = workspace[s][0].mutable_data_ptr();
    side.rival = static_cast<float*>(side.best) + slots;
    side.tile = static_cast<int32_t*>(workspace[s][1].mutable_data_ptr());
    side.distances = found[s].distances.mutable_data_ptr();
    side.indices = static_cast<int64_t*>(found[s].indices.mutable_data_ptr());
  }
  launch_nearest(arguments, plan, static_cast<int>(norm), cuda::current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return found;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest(
    Tensor x, Tensor y, std::optional<Tensor> x_lengths, std::optional<Tensor> y_lengths, int64_t norm) {
  const std::array<Found, 2> found = run_nearest(x, y, x_lengths, y_lengths, norm, 2);
  return {found[0].distances, found[0].indices, found[1].distances, found[1].indices};
}

std::tuple<Tensor, Tensor> knn(
    Tensor x_any, Tensor y_any, std::optional<Tensor> x_lengths, std::optional<Tensor> y_lengths, int64_t k,
    int64_t norm) {
  STD_TORCH_CHECK(k >= 1 && k <= kKnnMost, "paperops: the CUDA implementation of knn is for 1 <= k <= 32");
  if (k == 1) {
    const Found found = run_nearest(x_any, y_any, x_lengths, y_lengths, norm, 1)[0];
    return {torch::stable::unsqueeze(found.distances, 2), torch::stable::unsqueeze(found.indices, 2)};
  }
  check_clouds(x_any, y_any, norm);
  const int32_t device = x_any.get_device_index();
  const DeviceGuard guard(device);
  const Tensor x = torch::stable::contiguous(x_any);
  const Tensor y = torch::stable::contiguous(y_any);
  const int64_t batch = x.size(0);
  const int64_t queries = x.size(1);
  STD_TORCH_CHECK(y.size(1) < 4294967295, "paperops: knn takes fewer than 2^32 - 1 targets a cloud");
  const Lengths query_lengths(x_lengths, batch, device);
  const Lengths target_lengths(y_lengths, batch, device);
  const KnnPlan plan = plan_knn(
      batch, queries, y.size(1), x.scalar_type() == ScalarType::Double, cuda::processors(device));

  const Tensor distances = torch::stable::new_empty(x, {batch, queries, k}, cuda::accumulator(x));  // [B, N, k]
  const Tensor indices = torch::stable::new_empty(x, {batch, queries, k}, ScalarType::Long);        // [B, N, k]
  Tensor keys;
  Tensor positions;
  KnnArguments arguments{};
  if (plan.splits > 1) {
    keys = torch::stable::new_empty(x, {plan.splits, batch, queries, k}, ScalarType::Long);
    positions = torch::stable::new_empty(x, {plan.splits, batch, queries, k}, ScalarType::Int);
    arguments.keys = static_cast<uint64_t*>(keys.mutable_data_ptr());
    arguments.positions = static_cast<uint32_t*>(positions.mutable_data_ptr());
  }
  arguments.queries = x.const_data_ptr();
  arguments.targets = y.const_data_ptr();
  arguments.query_lengths = query_lengths.data;
  arguments.target_lengths = target_lengths.data;
  arguments.batch = batch;
  arguments.query_count = queries;
  arguments.target_count = y.size(1);
  arguments.groups = plan.groups;
  arguments.splits = plan.splits;
  arguments.split_targets = plan.split_targets;
  arguments.k = static_cast<int>(k);
  arguments.dimensions = static_cast<int>(x.size(2));
  arguments.dtype = cuda::dtype_of(x);
  arguments.distances = distances.mutable_data_ptr();
  arguments.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  launch_knn(arguments, static_cast<int>(norm), cuda::current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {distances, indices};
}

// One side's index list with its incoming gradients, [B, N, k] each (k = 1: [B, N]).
struct Matching {
  Tensor indices;
  Tensor gradients;
  int64_t k;

  Matching(const Tensor& any_indices, const Tensor& any_gradients, const Tensor& points, int64_t k) : k(k) {
    STD_TORCH_CHECK(
        any_indices.scalar_type() == ScalarType::Long && any_gradients.scalar_type() == cuda::accumulator(points) &&
            any_indices.numel() == points.size(0) * points.size(1) * k &&
            any_gradients.numel() == any_indices.numel() &&
            any_indices.get_device_index() == points.get_device_index() &&
            any_gradients.get_device_index() == points.get_device_index(),
        "paperops: indices (int64) and gradients (float32, or float64 for float64 clouds) must match the distances");
    indices = torch::stable::contiguous(any_indices);
    gradients = torch::stable::contiguous(any_gradients);
  }
};

std::tuple<Tensor, Tensor> run_gather(
    const Tensor& x_any, const Tensor& y_any, const Matching& x_matching, const Matching* y_matching, int64_t norm) {
  const int32_t device = x_any.get_device_index();
  const Tensor x = torch::stable::contiguous(x_any);
  const Tensor y = torch::stable::contiguous(y_any);
  const Tensor gradients[2] = {torch::stable::new_empty(x, x.sizes()), torch::stable::new_empty(y, y.sizes())};
  const Tensor* clouds[2] = {&x, &y};
  const Matching* matchings[2] = {&x_matching, y_matching};

  GatherArguments arguments{};
  arguments.batch = x.size(0);
  arguments.dimensions = static_cast<int>(x.size(2));
  arguments.norm = static_cast<int>(norm);
  arguments.dtype = cuda::dtype_of(x);
  arguments.tile = plan_gather(
      arguments.batch, x.size(1), y.size(1), compiled_dimensions(arguments.dimensions),
      arguments.dtype == Dtype::float64 ? 8 : 4, cuda::processors(device));
  for (int s = 0; s < 2; ++s) {
    GatherSide& side = arguments.sides[s];
    side.points = clouds[s]->const_data_ptr();
    side.others = clouds[1 - s]->const_data_ptr();
    side.point_count = clouds[s]->size(1);
    side.other_count = clouds[1 - s]->size(1);
    side.tiles = cuda::ceil_div<int64_t>(side.point_count, arguments.tile);
    side.gradient = gradients[s].mutable_data_ptr();
    if (const Matching* own = matchings[s]) {
      side.own = own->k;
      side.own_indices = static_cast<const int64_t*>(own->indices.const_data_ptr());
      side.own_gradients = own->gradients.const_data_ptr();
    }
    if (const Matching* incoming = matchings[1 - s]) {
      side.incoming = incoming->k;
      side.incoming_indices = static_cast<const int64_t*>(incoming->indices.const_data_ptr());
      side.incoming_gradients = incoming->gradients.const_data_ptr();
    }
  }
  launch_gather(arguments, cuda::current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {gradients[0], gradients[1]};
}

std::tuple<Tensor, Tensor> nearest_backward(
    Tensor grad_x_distances, Tensor grad_y_distances, Tensor x, Tensor y, Tensor x_indices, Tensor y_indices,
    int64_t norm) {
  check_clouds(x, y, norm);
  const DeviceGuard guard(x.get_device_index());
  const Matching x_matching(x_indices, grad_x_distances, x, 1);
  const Matching y_matching(y_indices, grad_y_distances, y, 1);
  return run_gather(x, y, x_matching, &y_matching, norm);
}

std::tuple<Tensor, Tensor> knn_backward(
    Tensor grad_distances, Tensor x, Tensor y, Tensor indices, int64_t norm) {
  check_clouds(x, y, norm);
  STD_TORCH_CHECK(indices.dim() == 3, "paperops: indices must be [B, N, k]");
  const DeviceGuard guard(x.get_device_index());
  const Matching matching(indices, grad_distances, x, indices.size(2));
  return run_gather(x, y, matching, nullptr, norm);
}

}  // namespace
}  // namespace paperops::nearest

STABLE_TORCH_LIBRARY_IMPL(paperops, CUDA, m) {
  m.impl("knn.cuda", TORCH_BOX(&paperops::nearest::knn));
  m.impl("knn_backward.cuda", TORCH_BOX(&paperops::nearest::knn_backward));
  m.impl("nearest.cuda", TORCH_BOX(&paperops::nearest::nearest));
  m.impl("nearest_backward.cuda", TORCH_BOX(&paperops::nearest::nearest_backward));
}
