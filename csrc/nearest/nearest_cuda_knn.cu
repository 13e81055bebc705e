// Launches the kernels of knn: search, and merge where a cloud is split.
#include "nearest_cuda_knn.cuh"

namespace paperops::nearest {
namespace {

template <int D, typename T>
void launch_typed(const KnnArguments& arguments, int norm, cudaStream_t stream) {
  const int64_t rows = arguments.batch * arguments.query_count.value;
  if (rows == 0) {
    return;
  }
  constexpr unsigned threads = kKnnWarps * cuda::kWarp;
  const unsigned grid = cuda::grid_for(arguments.batch * arguments.groups.value * arguments.splits.value);
  if (norm == 1) {
    cuda::launch(knn_search<D, 1, T>, grid, threads, 0, stream, arguments);
  } else {
    cuda::launch(knn_search<D, 2, T>, grid, threads, 0, stream, arguments);
  }
  if (arguments.keys != nullptr) {
    const unsigned merge_grid = cuda::grid_for(cuda::ceil_div<int64_t>(rows, kKnnWarps));
    cuda::launch(knn_merge<T>, merge_grid, threads, 0, stream, arguments);
  }
}

}  // namespace

void launch_knn(const KnnArguments& arguments, int norm, cudaStream_t stream) {
  with_dimensions(arguments.dimensions, [&](auto dimensions) {
    constexpr int D = decltype(dimensions)::value;
    if (arguments.dtype == Dtype::float64) {
      launch_typed<D, double>(arguments, norm, stream);
    } else {
      launch_typed<D, float>(arguments, norm, stream);
    }
  });
}

}  // namespace paperops::nearest
