// The CUDA kernels of nearest, compiled for the host and run thread by thread; called from the tests through ctypes.
#include <vector>

// The launching sources come in whole: they hold the kernels and choose among them.
#include "../../csrc/nearest/nearest_cuda_backward.cu"
#include "../../csrc/nearest/nearest_cuda_knn.cu"
#include "../../csrc/nearest/nearest_cuda_scan.cu"

namespace {

using namespace paperops::nearest;

// The batch, sizes and element type of a pair of clouds. `processors` is the pretended device's, and decides splits.
struct Clouds {
  const void* x;
  const void* y;
  const int64_t* x_lengths;
  const int64_t* y_lengths;
  int64_t batch, n, m;
  int dimensions, dtype, norm, processors;
};

}  // namespace

extern "C" {

// Returns whether both directions were found in one pass.
bool emulated_nearest(
    const Clouds* clouds, int sides, void* x_distances, int64_t* x_indices, void* y_distances, int64_t* y_indices) {
  const int64_t counts[2] = {clouds->n, clouds->m};
  NearestArguments arguments{};
  arguments.side_count = sides;
  arguments.batch = clouds->batch;
  arguments.dimensions = clouds->dimensions;
  arguments.dtype = static_cast<Dtype>(clouds->dtype);
  const bool wide = arguments.dtype == Dtype::float64;
  const ScanPlan plan =
      plan_scan(clouds->batch, counts, {counts[1], counts[0]}, sides, wide, clouds->dimensions, clouds->processors);
  std::vector<double> best[2];
  std::vector<float> rival[2];
  std::vector<int32_t> tile[2];
  for (int s = 0; s < sides; ++s) {
    const int64_t slots = plan.splits[s] * clouds->batch * counts[s];
    best[s].assign(slots, NAN);
    rival[s].assign(slots, NAN);
    tile[s].assign(slots, -1);
    arguments.sides[s] = Side{
        s == 0 ? clouds->x : clouds->y,
        s == 0 ? clouds->y : clouds->x,
        s == 0 ? clouds->x_lengths : clouds->y_lengths,
        s == 0 ? clouds->y_lengths : clouds->x_lengths,
        counts[s],
        counts[1 - s],
        plan.groups[s],
        plan.splits[s],
        plan.split_tiles[s],
        plan.fused && s == 1 ? kFusedTile : kTile,
        best[s].data(),
        rival[s].data(),
        tile[s].data(),
        s == 0 ? x_distances : y_distances,
        s == 0 ? x_indices : y_indices};
  }
  launch_nearest(arguments, plan, clouds->norm, nullptr);
  return plan.fused;
}

void emulated_knn(const Clouds* clouds, int k, void* distances, int64_t* indices) {
  const bool wide = static_cast<Dtype>(clouds->dtype) == Dtype::float64;
  const KnnPlan plan = plan_knn(clouds->batch, clouds->n, clouds->m, wide, clouds->processors);
  const size_t slots = plan.splits > 1 ? plan.splits * clouds->batch * clouds->n * k : 0;
  std::vector<uint64_t> keys(slots);
  std::vector<uint32_t> positions(slots);
  launch_knn(
      KnnArguments{
          clouds->x, clouds->y, clouds->x_lengths, clouds->y_lengths, clouds->batch, clouds->n, clouds->m,
          plan.groups, plan.splits, plan.split_targets, k, clouds->dimensions, static_cast<Dtype>(clouds->dtype),
          plan.splits > 1 ? keys.data() : nullptr, positions.data(), distances, indices},
      clouds->norm, nullptr);
}

// y_indices null: knn_backward, whose y side has no slots of its own.
void emulated_backward(
    const Clouds* clouds, int k, const void* x_gradients, const int64_t* x_indices, const void* y_gradients,
    const int64_t* y_indices, void* grad_x, void* grad_y) {
  GatherArguments arguments{};
  arguments.batch = clouds->batch;
  arguments.dimensions = clouds->dimensions;
  arguments.norm = clouds->norm;
  arguments.dtype = static_cast<Dtype>(clouds->dtype);
  arguments.tile = plan_gather(
      clouds->batch, clouds->n, clouds->m, compiled_dimensions(clouds->dimensions),
      arguments.dtype == Dtype::float64 ? 8 : 4, clouds->processors);
  const int y_slots = y_indices != nullptr ? 1 : 0;
  arguments.sides[0] = GatherSide{
      clouds->x, clouds->y, x_indices, x_gradients, y_indices, y_gradients, k, y_slots, clouds->n, clouds->m,
      paperops::cuda::ceil_div<int64_t>(clouds->n, arguments.tile), grad_x};
  arguments.sides[1] = GatherSide{
      clouds->y, clouds->x, y_indices, y_gradients, x_indices, x_gradients, y_slots, k, clouds->m, clouds->n,
      paperops::cuda::ceil_div<int64_t>(clouds->m, arguments.tile), grad_y};
  launch_gather(arguments, nullptr);
}

}  // extern "C"
