"""PyTorch3D's point cloud functions, over paperops' ops (its version 0.7.9 and its main branch of 2025).

``knn_points``, ``knn_gather`` and ``ball_query`` are those of ``pytorch3d.ops``, ``chamfer_distance`` is that of
``pytorch3d.loss``. Arguments, defaults, result types and padding are the same.

What holds for all of them, beyond the library:

- float16, bfloat16 and float64 points on any device (there: float32 alone on the CPU; gradients in float32 everywhere);
- a neighbour is the exact one, by float64 distance, ties to the lowest index (there: by rounded distance);
- second derivatives; and gradients added in a fixed order, so that two runs agree bit for bit (there: atomics);
- any dimension D >= 1 and any K >= 1 (there: fast kernels for D <= 32 and K <= 32), and no 32-bit index: clouds past
  2^31 values, more than 2^31 pairs;
- empty clouds, batches and neighbourhoods wherever they make sense; any integer dtype for lengths;
- no memory of the size P1 * P2, and no synchronisation with a GPU: on the CPU lengths out of range are refused, on a
  GPU they are clamped to the cloud instead of being read back (there: read out of bounds).

What is accepted differently: points of different dtypes are refused, as are D = 0, K < 1 and integer points. A
norm-1 gradient is 0 where two coordinates are equal (there: -1, as if p1's were the smaller).
"""

from paperops.compat.pytorch3d.chamfer import chamfer_distance
from paperops.compat.pytorch3d.knn import KNN, knn_gather, knn_points
from paperops.compat.pytorch3d.radius import ball_query

__all__ = ["KNN", "ball_query", "chamfer_distance", "knn_gather", "knn_points"]
