"""AlphaFold2: the structure module, its heads and its losses.

Jumper et al., "Highly accurate protein structure prediction with AlphaFold", Nature 596 (2021), and Evans et al.,
"Protein complex prediction with AlphaFold-Multimer" (2022). Modules have OpenFold's constructor arguments and
state-dict keys, so that its checkpoints load with ``strict=True``; lengths are in Angstrom.
"""

from paperops.models.alphafold2.confidence_losses import aligned_error_loss, plddt_loss
from paperops.models.alphafold2.fape import backbone_fape, sidechain_fape
from paperops.models.alphafold2.heads import (
    PerResidueLDDTCaPredictor,
    PredictedAlignedError,
    TMScoreHead,
    compute_plddt,
    compute_predicted_aligned_error,
)
from paperops.models.alphafold2.losses import (
    FINE_TUNING_WEIGHTS,
    WEIGHTS,
    LossWeights,
    torsion_angle_loss,
    violation_loss,
)
from paperops.models.alphafold2.structure_loss import StructureLoss, structure_loss
from paperops.models.alphafold2.structure_module import Structure, StructureModule
from paperops.models.alphafold2.symmetry import RenamedAtoms, rename_symmetric_atoms
from paperops.models.alphafold2.transition import StructureModuleTransition

__all__ = [
    "FINE_TUNING_WEIGHTS",
    "WEIGHTS",
    "LossWeights",
    "PerResidueLDDTCaPredictor",
    "PredictedAlignedError",
    "RenamedAtoms",
    "Structure",
    "StructureLoss",
    "StructureModule",
    "StructureModuleTransition",
    "TMScoreHead",
    "aligned_error_loss",
    "backbone_fape",
    "compute_plddt",
    "compute_predicted_aligned_error",
    "plddt_loss",
    "rename_symmetric_atoms",
    "sidechain_fape",
    "structure_loss",
    "torsion_angle_loss",
    "violation_loss",
]
