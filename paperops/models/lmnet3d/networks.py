"""3D-LMNet's two networks: the auto-encoder of clouds and the encoder of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

import paperops


class PointAutoEncoder(nn.Module):
    """Stage 1: a cloud to a latent vector and back.

    The encoder applies one small network to every point alike (linear, batch normalisation, ReLU) and takes the maximum
    over the points, so the latent does not depend on their order; its numbers are never negative, the last layer being
    rectified too. The decoder is fully connected and gives the points in an order of its own.

    Args:
        num_points: points of a reconstructed cloud (input clouds may have any other number).
        latent: length of the latent vector ("bottleneck").
        encoder_widths: channels of the encoder's layers before the last, which has `latent` of them.
        decoder_widths: channels of the decoder's hidden layers.
        decoder_norm: batch normalisation in the decoder's hidden layers. The authors' training scripts switch it on;
            their code leaves it a choice, and the paper does not settle it.

    Example:
        >>> import torch
        >>> model = PointAutoEncoder(num_points=64, latent=16, encoder_widths=(8, 8), decoder_widths=(32,))
        >>> model(torch.rand(2, 100, 3)).shape
        torch.Size([2, 64, 3])
    """

    def __init__(
        self,
        num_points: int = 2048,
        latent: int = 512,
        *,
        encoder_widths: Sequence[int] = (64, 128, 128, 256),
        decoder_widths: Sequence[int] = (256, 256),
        decoder_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_points = positive("num_points", num_points)
        self.latent = positive("latent", latent)

        layers: list[nn.Module] = []
        before = 3
        for width in (*_widths("encoder_widths", encoder_widths), latent):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
            before = width
        self.encoder = nn.Sequential(*layers)

        layers, before = [], latent
        for width in _widths("decoder_widths", decoder_widths):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width) if decoder_norm else nn.Identity(), nn.ReLU()]
            before = width
        self.decoder = nn.Sequential(*layers, nn.Linear(before, num_points * 3))

    def encode(self, points: Tensor) -> Tensor:
        """Latents `[B, latent]` of clouds `[B, N, 3]`, N >= 1."""
        _check_points(points)
        batch, count, _ = points.shape
        features = self.encoder(points.reshape(batch * count, 3))  # [B * N, latent]
        return features.view(batch, count, self.latent).amax(dim=1)  # [B, latent]

    def decode(self, latents: Tensor) -> Tensor:
        """Clouds `[B, num_points, 3]` of latents `[B, latent]`."""
        _check_latents("latents", latents, self.latent)
        return self.decoder(latents).view(-1, self.num_points, 3)  # [B, num_points, 3]

    def forward(self, points: Tensor) -> Tensor:
        """The reconstruction `[B, num_points, 3]` of clouds `[B, N, 3]`."""
        return self.decode(self.encode(points))

    def loss(self, points: Tensor, target: Tensor | None = None, *, squared: bool = False) -> Tensor:
        """The scalar Chamfer distance between the reconstructions of clouds `[B, N, 3]` and `target` `[B, M, 3]`.

        Mean nearest distance from the reconstruction to the target, plus the same the other way, mean over the batch.
        `target` defaults to `points`; a denser sampling of the same shapes serves as well (the authors' script has 2048
        points in and 16384 to compare with). `squared` chooses squared distances, in units of length squared; the
        default is plain distances.
        """
        return paperops.chamfer_distance(self(points), points if target is None else target, squared=squared)[0]


class ImageEncoder(nn.Module):
    """Images to latent vectors: stages of 3 x 3 convolutions with ReLU, each stage after the first halving the map.

    A wider convolution of stride 2 and one linear layer end it. Nothing is normalised, as in the authors' code.

    Args:
        latent: length of the latent vector.
        in_channels: channels of the images.
        image_size: height and width of the images, or one number for both, in pixels.
        widths: channels of each stage.
        depths: convolutions of each stage (as many numbers as `widths`).
        last_kernel: side of the window of the closing convolution; odd.

    `features` in front of the linear layer number `widths[-1]` times the pixels that are left of the map.

    Example:
        >>> import torch
        >>> encoder = ImageEncoder(latent=16, in_channels=1, image_size=8, widths=(8, 16), depths=(1, 2))
        >>> encoder(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        latent: int = 512,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 128,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        depths: Sequence[int] = (2, 3, 3, 3, 4),
        last_kernel: int = 5,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.latent = positive("latent", latent)
        self.in_channels = positive("in_channels", in_channels)
        self.image_size = (positive("image_size", height), positive("image_size", width))
        widths, depths = _widths("widths", widths), _widths("depths", depths)
        if not widths or len(widths) != len(depths):
            raise ValueError(f"depths: expected one number for each of widths {widths}, got {depths}")
        if last_kernel < 1 or last_kernel % 2 == 0:
            raise ValueError(f"last_kernel: expected an odd positive number, got {last_kernel}")

        layers: list[nn.Module] = []
        before = in_channels
        for stage, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            for layer in range(depth):
                stride = 2 if layer == 0 and stage > 0 else 1
                layers += [nn.Conv2d(before, channels, 3, stride=stride, padding=1), nn.ReLU()]
                before = channels
        layers += [nn.Conv2d(before, before, last_kernel, stride=2, padding=last_kernel // 2), nn.ReLU(), nn.Flatten()]
        self.features = nn.Sequential(*layers)

        # Each of the len(widths) strides of 2 leaves ceil(size / 2).
        left = [math.ceil(size / 2 ** len(widths)) for size in self.image_size]
        self.num_features = before * left[0] * left[1]
        self.head = nn.Linear(self.num_features, latent)

    def extract(self, images: Tensor) -> Tensor:
        """Features `[B, num_features]` in front of the linear layer, of images `[B, in_channels, height, width]`."""
        expected = (self.in_channels, *self.image_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            raise ValueError(f"images: expected [B, {', '.join(map(str, expected))}], got {list(images.shape)}")
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Latents `[B, latent]` of images `[B, in_channels, height, width]`."""
        return self.head(self.extract(images))


def positive(name: str, value: int) -> int:
    """`value`, if it is an integer of at least 1; else an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def _widths(name: str, values: Sequence[int]) -> tuple[int, ...]:
    return tuple(positive(name, value) for value in values)


def _check_points(points: Tensor) -> None:
    if points.dim() != 3 or points.shape[2] != 3 or points.shape[1] == 0:
        raise ValueError(f"points: expected [B, N, 3] with N >= 1, got {list(points.shape)}")


def _check_latents(name: str, latents: Tensor, size: int) -> None:
    if latents.dim() != 2 or latents.shape[1] != size:
        raise ValueError(f"{name}: expected [B, {size}], got {list(latents.shape)}")
