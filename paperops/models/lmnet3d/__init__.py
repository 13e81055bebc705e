"""3D-LMNet: point clouds from single images by matching latent embeddings.

Mandikal, Navaneet, Agarwal and Babu, "3D-LMNet: Latent Embedding Matching for Accurate and Diverse 3D Point Cloud
Reconstruction from a Single Image", BMVC 2018 (arXiv 1807.07796). Training has two stages:

1. :class:`PointAutoEncoder` learns a latent space of clouds under the Chamfer distance.
2. With the auto-encoder frozen, an :class:`ImageEncoder` learns to land on the latent of the cloud that the image
   shows: on one point of the latent space (:class:`LatentMatching`), or on a Gaussian of which several reconstructions
   are drawn (:class:`ProbabilisticLatentMatching`), whose spread a diversity loss ties to how much the view hides.

Sizes are arguments; their defaults are those of the published networks (2048 points, 512 latent numbers, 128 x 128
colour images). Weights of the authors' TensorFlow release do not load here: its strided convolutions pad unevenly.
"""

from paperops.models.lmnet3d.matching import (
    LatentDistribution,
    LatentMatching,
    ProbabilisticLatentMatching,
    ProbabilisticLoss,
    diversity_loss,
    diversity_target,
    latent_matching_loss,
)
from paperops.models.lmnet3d.networks import ImageEncoder, PointAutoEncoder

__all__ = [
    "ImageEncoder",
    "LatentDistribution",
    "LatentMatching",
    "PointAutoEncoder",
    "ProbabilisticLatentMatching",
    "ProbabilisticLoss",
    "diversity_loss",
    "diversity_target",
    "latent_matching_loss",
]
