// Launches the two kernels of nearest: scan (or the fused scan of both directions), then finish.
#include "nearest_cuda_finish.cuh"
#include "nearest_cuda_fused.cuh"

namespace paperops::nearest {
namespace {

template <int D, int Norm, typename T>
void launch_typed(const NearestArguments& arguments, const ScanPlan& plan, cudaStream_t stream) {
  int64_t items = 0;
  int64_t rows = 0;
  for (int s = 0; s < arguments.side_count; ++s) {
    const Side& side = arguments.sides[s];
    items += arguments.batch * side.groups.value * side.splits.value;
    rows += arguments.batch * side.query_count.value;
  }
  if (rows == 0) {
    return;
  }
  const unsigned grid = cuda::grid_for(items);
  if constexpr (sizeof(T) == 4) {
    if (plan.fused) {
      if constexpr (D <= kFusedDimensions) {
        const int64_t parts = arguments.sides[0].splits.value * arguments.sides[1].splits.value;
        cuda::launch(
            nearest_fused<D, Norm>, cuda::grid_for(arguments.batch * parts), kScanThreads, 0, stream, arguments);
      }
    } else if (plan.queries == 8) {
      cuda::launch(nearest_scan<D, Norm, 8, T>, grid, plan.threads, 0, stream, arguments);
    } else {
      cuda::launch(nearest_scan<D, Norm, 2, T>, grid, plan.threads, 0, stream, arguments);
    }
  } else {
    cuda::launch(nearest_scan<D, Norm, 2, T>, grid, plan.threads, 0, stream, arguments);
  }
  const int64_t blocks = cuda::ceil_div<int64_t>(rows * kFinishLanes, kFinishThreads);
  cuda::launch(nearest_finish<D, Norm, T>, cuda::grid_for(blocks), kFinishThreads, 0, stream, arguments);
}

}  // namespace

void launch_nearest(const NearestArguments& arguments, const ScanPlan& plan, int norm, cudaStream_t stream) {
  with_dimensions(arguments.dimensions, [&](auto dimensions) {
    constexpr int D = decltype(dimensions)::value;
    if (arguments.dtype == Dtype::float64) {
      norm == 1 ? launch_typed<D, 1, double>(arguments, plan, stream)
                : launch_typed<D, 2, double>(arguments, plan, stream);
    } else {
      norm == 1 ? launch_typed<D, 1, float>(arguments, plan, stream)
                : launch_typed<D, 2, float>(arguments, plan, stream);
    }
  });
}

}  // namespace paperops::nearest
