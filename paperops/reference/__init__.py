"""The definitions: plain torch, no branches for speed, correct in float64. Every op is tested against these."""

from paperops.reference.chamfer import chamfer_distance, f_score, hausdorff_distance
from paperops.reference.nearest import KNN, knn
from paperops.reference.triangle_multiplication import triangle_contract, triangle_multiplicative_update

__all__ = [
    "KNN",
    "chamfer_distance",
    "f_score",
    "hausdorff_distance",
    "knn",
    "triangle_contract",
    "triangle_multiplicative_update",
]
