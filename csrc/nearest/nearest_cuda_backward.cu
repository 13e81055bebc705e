// Launches the one kernel of both backward ops.
#include "nearest_cuda_backward.cuh"

namespace paperops::nearest {

void launch_gather(const GatherArguments& arguments, cudaStream_t stream) {
  const int64_t items = arguments.batch * (arguments.sides[0].tiles.value + arguments.sides[1].tiles.value);
  if (items == 0) {
    return;
  }
  constexpr unsigned threads = kGatherWarps * cuda::kWarp;
  with_dimensions(arguments.dimensions, [&](auto dimensions) {
    constexpr int D = decltype(dimensions)::value;
    if (arguments.dtype == Dtype::float64) {
      cuda::launch(nearest_gather<D, double>, cuda::grid_for(items), threads, 0, stream, arguments);
    } else {
      cuda::launch(nearest_gather<D, float>, cuda::grid_for(items), threads, 0, stream, arguments);
    }
  });
}

}  // namespace paperops::nearest
