"""3D-LMNet's second stage: images to latents of the frozen auto-encoder, one for each or a distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from paperops.models.lmnet3d.networks import ImageEncoder, PointAutoEncoder, positive


def latent_matching_loss(predicted: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """Stage 2's loss between latents of one shape: the mean of absolute differences (`"l1"`) or of squares (`"l2"`)."""
    if kind not in ("l1", "l2"):
        raise ValueError(f'kind: expected "l1" or "l2", got {kind!r}')
    if predicted.shape != target.shape:
        raise ValueError(f"target: expected the shape of predicted {list(predicted.shape)}, got {list(target.shape)}")
    difference = predicted - target
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def diversity_target(angles: Tensor, *, amplitude: float = 0.2, centre: float = 180.0, width: float = 20.0) -> Tensor:
    """The deviation that the diversity loss asks for at a view: amplitude * exp(-(angle - centre)^2 / width^2).

    `angles`, `centre` and `width` are in degrees. The difference of the angles is taken the short way round, within
    [-180, 180), so 370 means 10 and a centre of 0 sees 350 as 10 away. (The paper has centre = 180 and angles within
    [0, 360), where this is the plain difference.)
    """
    difference = torch.remainder(angles - centre + 180.0, 360.0) - 180.0
    return amplitude * torch.exp(-difference.square() / width**2)


def diversity_loss(
    deviations: Tensor, angles: Tensor, *, amplitude: float = 0.2, centre: float = 180.0, width: float = 20.0
) -> Tensor:
    """The penalty that ties the spread of the predicted latents to the view.

    mean_b((mean_d(sigma_bd) - amplitude * exp(-(phi_b - phi0)^2 / delta^2))^2) with phi0 = `centre` and
    delta = `width`: views near `centre`, which hide most of the object, shall leave room for several shapes, all others
    for one. `deviations` sigma is `[B, latent]`, `angles` phi `[B]` the azimuth in degrees (:func:`diversity_target`
    says how it wraps around). The paper works with 0.2, 180 and 20 degrees, and weighs this term by 5.5.
    """
    if deviations.dim() != 2 or angles.shape != deviations.shape[:1]:
        raise ValueError(
            f"angles: expected [B] for deviations [B, latent], got {list(angles.shape)} for {list(deviations.shape)}"
        )
    target = diversity_target(angles.to(deviations.dtype), amplitude=amplitude, centre=centre, width=width)  # [B]
    return (deviations.mean(dim=1) - target).square().mean()


class _OnFrozenAutoEncoder(nn.Module):
    """What the two matching models share: a frozen auto-encoder, in evaluation mode whatever the model's own mode."""

    def __init__(self, autoencoder: PointAutoEncoder, encoder: ImageEncoder) -> None:
        super().__init__()
        if encoder.latent != autoencoder.latent:
            raise ValueError(
                f"encoder: expected latent {autoencoder.latent} as the auto-encoder's, got {encoder.latent}"
            )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.encoder = encoder

    def train(self, mode: bool = True) -> _OnFrozenAutoEncoder:
        super().train(mode)
        self.autoencoder.eval()  # its batch statistics are part of the latent space that is matched
        return self

    @torch.no_grad()
    def targets(self, points: Tensor) -> Tensor:
        """The frozen auto-encoder's latents `[B, latent]` of clouds `[B, N, 3]`: what the images are matched with."""
        return self.autoencoder.encode(points)


class LatentMatching(_OnFrozenAutoEncoder):
    """Stage 2: images to the one latent of the cloud they show.

    Args:
        autoencoder: the trained stage 1. It is kept, not copied, and frozen: its parameters stop requiring gradients
            and it stays in evaluation mode.
        encoder: the network that is trained, with the auto-encoder's `latent`.
        kind: `"l1"` (what the authors' script trains with) or `"l2"`.

    Example:
        >>> points = PointAutoEncoder(32, 16, encoder_widths=(8,), decoder_widths=(8,))
        >>> image = ImageEncoder(16, in_channels=1, image_size=8, widths=(8,), depths=(1,))
        >>> model = LatentMatching(points, image)
        >>> model.loss(torch.rand(4, 1, 8, 8), torch.rand(4, 100, 3)).shape
        torch.Size([])
        >>> model.predict(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 32, 3])
    """

    def __init__(self, autoencoder: PointAutoEncoder, encoder: ImageEncoder, kind: str = "l1") -> None:
        super().__init__(autoencoder, encoder)
        if kind not in ("l1", "l2"):
            raise ValueError(f'kind: expected "l1" or "l2", got {kind!r}')
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        """Latents `[B, latent]` of images `[B, C, height, width]`."""
        return self.encoder(images)

    def loss(self, images: Tensor, points: Tensor) -> Tensor:
        """The scalar loss of images `[B, C, height, width]` that show clouds `[B, N, 3]`.

        Where one cloud is shown by many images, compute :meth:`targets` once and use :func:`latent_matching_loss`.
        """
        return latent_matching_loss(self(images), self.targets(points), self.kind)

    def predict(self, images: Tensor) -> Tensor:
        """Clouds `[B, num_points, 3]` of images `[B, C, height, width]`."""
        return self.autoencoder.decode(self(images))


class LatentDistribution(NamedTuple):
    """A Gaussian with independent coordinates: `mean` and standard `deviation`, each `[B, latent]`."""

    mean: Tensor
    deviation: Tensor

    def sample(self, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws `[B, samples, latent]`: mean + deviation * epsilon, epsilon from `generator`; differentiable."""
        positive("samples", samples)
        batch, latent = self.mean.shape
        epsilon = torch.randn(
            batch, samples, latent, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )  # [B, samples, latent]
        return self.mean[:, None] + self.deviation[:, None] * epsilon


class ProbabilisticLoss(NamedTuple):
    """`total` = `matching` + weight * `diversity`, all scalars."""

    total: Tensor
    matching: Tensor
    diversity: Tensor


class ProbabilisticLatentMatching(_OnFrozenAutoEncoder):
    """Stage 2, probabilistic: images to a Gaussian over latents, from which several reconstructions are drawn.

    L = L2 + weight * diversity, where L2 is the mean square between one reparameterised sample mean + deviation *
    epsilon and the auto-encoder's latent, and :func:`diversity_loss` makes the mean deviation follow
    amplitude * exp(-(angle - centre)^2 / width^2). A second linear layer on the image's features gives the logarithm
    of the variance, so deviation = exp(its half).

    Args:
        autoencoder, encoder: as for :class:`LatentMatching`; the encoder's own linear layer gives the mean.
        weight: of the diversity loss.
        amplitude: the deviation asked for at the angle `centre`, in units of the latent.
        centre: the view that hides most, in degrees.
        width: how fast the deviation asked for falls off around it, in degrees.

    Example:
        >>> points = PointAutoEncoder(32, 16, encoder_widths=(8,), decoder_widths=(8,))
        >>> image = ImageEncoder(16, in_channels=1, image_size=8, widths=(8,), depths=(1,))
        >>> model = ProbabilisticLatentMatching(points, image)
        >>> model.predict(torch.rand(4, 1, 8, 8), samples=3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 3])
    """

    def __init__(
        self,
        autoencoder: PointAutoEncoder,
        encoder: ImageEncoder,
        *,
        weight: float = 5.5,
        amplitude: float = 0.2,
        centre: float = 180.0,
        width: float = 20.0,
    ) -> None:
        super().__init__(autoencoder, encoder)
        if not weight >= 0 or not amplitude >= 0:
            raise ValueError(f"weight, amplitude: expected numbers of at least 0, got {weight} and {amplitude}")
        if not width > 0:
            raise ValueError(f"width: expected a positive number of degrees, got {width}")
        self.log_variance = nn.Linear(encoder.num_features, encoder.latent)
        self.weight, self.amplitude, self.centre, self.width = weight, amplitude, centre, width

    def forward(self, images: Tensor) -> LatentDistribution:
        """The distribution over latents, mean and deviation `[B, latent]`, of images `[B, C, height, width]`."""
        features = self.encoder.extract(images)  # [B, num_features]
        return LatentDistribution(self.encoder.head(features), torch.exp(0.5 * self.log_variance(features)))

    def loss_from_targets(
        self, images: Tensor, targets: Tensor, angles: Tensor, generator: torch.Generator | None = None
    ) -> ProbabilisticLoss:
        """The loss against latents `[B, latent]` that :meth:`targets` gave; arguments otherwise as for :meth:`loss`."""
        distribution = self(images)
        matching = latent_matching_loss(distribution.sample(1, generator)[:, 0], targets, "l2")
        diversity = diversity_loss(
            distribution.deviation, angles, amplitude=self.amplitude, centre=self.centre, width=self.width
        )
        return ProbabilisticLoss(matching + self.weight * diversity, matching, diversity)

    def loss(
        self, images: Tensor, points: Tensor, angles: Tensor, generator: torch.Generator | None = None
    ) -> ProbabilisticLoss:
        """The loss of images `[B, C, height, width]` that show clouds `[B, N, 3]` from `angles` `[B]`, in degrees.

        `generator` gives the epsilon of the sample; without one, torch's own does.
        """
        return self.loss_from_targets(images, self.targets(points), angles, generator)

    def predict(self, images: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """`samples` clouds of each image: `[B, samples, num_points, 3]`, with epsilon drawn from `generator`."""
        latents = self(images).sample(samples, generator)  # [B, samples, latent]
        return self.autoencoder.decode(latents.flatten(0, 1)).unflatten(0, (-1, samples))

    def predict_mean(self, images: Tensor) -> Tensor:
        """The cloud `[B, num_points, 3]` of the mean latent of each image."""
        return self.autoencoder.decode(self(images).mean)
