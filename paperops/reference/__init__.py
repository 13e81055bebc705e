"""The definitions: plain torch, no branches for speed, correct in float64. Every op is tested against these."""

from paperops.reference.chamfer import chamfer_distance, f_score, hausdorff_distance
from paperops.reference.dynopool import dynopool_2d, resample_2d
from paperops.reference.frame_aligned_point_error import (
    FAPE,
    frame_aligned_point_error,
    frame_aligned_point_error_terms,
)
from paperops.reference.invariant_point_attention import IPA, invariant_point_attention
from paperops.reference.lddt import lddt
from paperops.reference.local_attention import local_attention_2d
from paperops.reference.nearest import KNN, knn
from paperops.reference.predicted_tm_score import predicted_tm_score
from paperops.reference.shift_conv import shift_conv_2d
from paperops.reference.structural_violations import Violations, structural_violations
from paperops.reference.triangle_multiplication import triangle_contract, triangle_multiplicative_update

__all__ = [
    "FAPE",
    "IPA",
    "KNN",
    "Violations",
    "chamfer_distance",
    "dynopool_2d",
    "f_score",
    "frame_aligned_point_error",
    "frame_aligned_point_error_terms",
    "hausdorff_distance",
    "invariant_point_attention",
    "knn",
    "lddt",
    "local_attention_2d",
    "predicted_tm_score",
    "resample_2d",
    "shift_conv_2d",
    "structural_violations",
    "triangle_contract",
    "triangle_multiplicative_update",
]
