"""The public functions and the dispatcher ops ``torch.ops.paperops.*``: one file an op family."""

from paperops.ops.chamfer import chamfer_distance
from paperops.ops.dynopool import dynopool_2d, resample_2d
from paperops.ops.frame_aligned_point_error import frame_aligned_point_error
from paperops.ops.frame_aligned_point_error_terms import frame_aligned_point_error_terms
from paperops.ops.invariant_point_attention import invariant_point_attention
from paperops.ops.lddt import lddt
from paperops.ops.local_attention import local_attention_2d
from paperops.ops.metrics import f_score, hausdorff_distance
from paperops.ops.nearest import KNN, knn
from paperops.ops.predicted_tm_score import predicted_tm_score
from paperops.ops.shift_conv import shift_conv_2d
from paperops.ops.structural_violations import structural_violations
from paperops.ops.triangle_contract import triangle_contract
from paperops.ops.triangle_multiplication import triangle_multiplicative_update
from paperops.reference.chamfer import FScore
from paperops.reference.frame_aligned_point_error import FAPE
from paperops.reference.invariant_point_attention import IPA
from paperops.reference.structural_violations import Violations

__all__ = [
    "FAPE",
    "IPA",
    "KNN",
    "FScore",
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
