"""The performance-critical operations of vision, 3D and protein papers as drop-in torch ops.

Every op has one name: paperops.<op> is the function (fused, differentiable), paperops.reference.<op> its definition in
plain torch. What the dispatcher sees, torch.ops.paperops.*, are the parts that implementations are written for, which
several ops may share. "python -m paperops info" tells which implementations are there and which would run.
"""

from paperops import geometry, nn, reference, residues
from paperops.backends import BackendError, use_backend
from paperops.ops import (
    FAPE,
    IPA,
    KNN,
    FScore,
    Violations,
    chamfer_distance,
    dynopool_2d,
    f_score,
    frame_aligned_point_error,
    frame_aligned_point_error_terms,
    hausdorff_distance,
    invariant_point_attention,
    knn,
    lddt,
    local_attention_2d,
    predicted_tm_score,
    resample_2d,
    shift_conv_2d,
    structural_violations,
    triangle_contract,
    triangle_multiplicative_update,
)

__version__ = "0.1.0"

__all__ = [
    "FAPE",
    "IPA",
    "KNN",
    "BackendError",
    "FScore",
    "Violations",
    "chamfer_distance",
    "dynopool_2d",
    "f_score",
    "frame_aligned_point_error",
    "frame_aligned_point_error_terms",
    "geometry",
    "hausdorff_distance",
    "invariant_point_attention",
    "knn",
    "lddt",
    "local_attention_2d",
    "nn",
    "predicted_tm_score",
    "reference",
    "resample_2d",
    "residues",
    "shift_conv_2d",
    "structural_violations",
    "triangle_contract",
    "triangle_multiplicative_update",
    "use_backend",
]
