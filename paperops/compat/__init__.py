"""Other libraries' functions, over paperops' ops: their signatures, defaults, padding and conventions.

Change the import line and nothing else::

    from pytorch3d.ops import knn_points           ->  from paperops.compat.pytorch3d import knn_points
    from pytorch3d.loss import chamfer_distance    ->  from paperops.compat.pytorch3d import chamfer_distance
    from kaolin.metrics.pointcloud import f_score  ->  from paperops.compat.kaolin import f_score
    from cuequivariance_torch import triangle_multiplicative_update
        ->  from paperops.compat.cuequivariance import triangle_multiplicative_update

None of those libraries is needed. Each docstring lists where these functions take more, or do better, than theirs.
"""

from paperops.compat import cuequivariance, kaolin, pytorch3d

__all__ = ["cuequivariance", "kaolin", "pytorch3d"]
