"""Swin-Tiny and -Small whose attention within shifted windows is mixed with a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.models.acmix.layers import MixedPaths, Mlp, StochasticDepth, depths_dropped, initialise_transformer
from paperops.models.images import check_images
from paperops.ops import _checks

_WINDOW = 7
_WIDTH, _HEADS = 96, (3, 6, 12, 24)


def swin_tiny(num_classes: int = 1000, in_channels: int = 3) -> Swin:
    """Swin-ACmix with blocks 2, 2, 6, 2 and stochastic depth to 0.2: see :func:`swin_small`. Images of any size."""
    return Swin((2, 2, 6, 2), 0.2, num_classes, in_channels)


def swin_small(num_classes: int = 1000, in_channels: int = 3) -> Swin:
    """Swin-Small, with the convolution of ACmix beside every attention.

    Liu et al., "Swin Transformer", ICCV 2021 (arXiv 2103.14030), with blocks 2, 2, 18, 2, 96 channels in the first
    stage, windows of 7 x 7, and ACmix as in the code of Pan et al., arXiv 2111.14556: where a block shifts its windows,
    the convolution runs over the shifted map too, across the seam that the shift makes.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.

    Returns:
        A module from floating images ``[B, in_channels, H, W]`` of any size, one pixel too, to ``[B, num_classes]``;
        maps that patches or windows do not divide are padded with zeros. Parameters have the names of the authors'
        code, whose published weights load with ``strict=True``; the tables of indices and masks among them are not
        needed, and are passed over. In training, blocks are skipped for single images with a probability that grows
        with depth to 0.3.

    Raises:
        TypeError, ValueError: an argument is not as above, or images are not, before any layer runs; the message names
            what was expected and what came.

    Example:
        >>> import torch
        >>> from paperops.models.acmix import swin_tiny
        >>> model = swin_tiny(10).eval()
        >>> model(torch.rand(1, 3, 64, 97)).shape
        torch.Size([1, 10])
    """
    return Swin((2, 2, 18, 2), 0.3, num_classes, in_channels)


class WindowACmix(MixedPaths):
    """Attention within windows, and the convolution over the whole map."""

    index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width // heads, 3 * heads, bias=True)
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * _WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        place = torch.arange(_WINDOW**2)
        rows, columns = place // _WINDOW, place % _WINDOW
        down, across = (axis[:, None] - axis + _WINDOW - 1 for axis in (rows, columns))
        self.register_buffer("index", down * (2 * _WINDOW - 1) + across, persistent=False)  # [49, 49]

    def forward(self, x: Tensor, regions: Tensor | None) -> Tensor:
        """Of x's shape `[B, h, w, C]`; `regions [windows, 49]`: keys of another region do not count."""
        batch, height, width, _ = x.shape
        projected = self.qkv(x)  # [B, h, w, 3 * C]
        maps = projected.unflatten(3, (3 * self.heads, -1)).permute(0, 3, 4, 1, 2)  # [B, 3 * heads, D, h, w]
        convolution = self.convolution(maps).permute(0, 2, 3, 1)

        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # [heads, 49, 49]
        if regions is not None:
            apart = regions[:, None, :, None] != regions[:, None, None, :]  # [windows, 1, 49, 49]
            bias = bias.masked_fill(apart, -torch.inf).repeat(batch, 1, 1, 1)
        windows = in_windows(projected).unflatten(2, (3, self.heads, -1))  # [B * windows, 49, 3, heads, D]
        q, k, v = windows.permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        attention = out_of_windows(attention.transpose(1, 2).flatten(2), height, width)  # [B, h, w, C]
        return self.mixed(self.proj(attention), convolution)


def in_windows(x: Tensor) -> Tensor:
    """`[B * windows, 49, C]` of a map `[B, h, w, C]` that windows divide."""
    split = x.unflatten(2, (-1, _WINDOW)).unflatten(1, (-1, _WINDOW))  # [B, rows, 7, columns, 7, C]
    return split.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def out_of_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The map `[B, h, w, C]` again."""
    split = windows.unflatten(1, (_WINDOW, _WINDOW)).unflatten(0, (-1, height // _WINDOW, width // _WINDOW))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def regions_of(height: int, width: int, shifts: tuple[int, int], device: torch.device) -> Tensor:
    """Numbers of the regions, `[windows, 49]`, that a shifted map's windows hold: what the shift moved is apart."""
    sides = []
    for size, shift in zip((height, width), shifts, strict=True):
        place = torch.arange(size, device=device)
        sides.append((place >= size - _WINDOW).long() + (place >= size - shift).long() * (shift > 0))
    return in_windows((sides[0][:, None] * 3 + sides[1])[None, :, :, None])[..., 0]


class Block(nn.Module):
    """A transformer's block, its windows shifted by half of their size or not."""

    def __init__(self, width: int, heads: int, shift: int, dropped: float) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowACmix(width, heads)
        self.drop_path = StochasticDepth(dropped)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape `[B, h, w, C]`."""
        x = x + self.drop_path(self._mixed(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _mixed(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, -width % _WINDOW, 0, -height % _WINDOW))
        padded = x.shape[1], x.shape[2]
        shifts = [self.shift if size > _WINDOW else 0 for size in padded]  # one window: nothing to shift
        down, across = shifts
        regions = None
        if down or across:
            x = torch.roll(x, (-down, -across), (1, 2))
            regions = regions_of(*padded, (down, across), x.device)
        x = self.attn(x, regions)
        if down or across:
            x = torch.roll(x, (down, across), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Four pixels to one, of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, ceil(h / 2), ceil(w / 2), 2 * C]` of x `[B, h, w, C]`."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, 3)))


class Stage(nn.Module):
    """Blocks of one width, and what follows to the next."""

    def __init__(self, width: int, heads: int, dropped: list[float], last: bool) -> None:
        super().__init__()
        shifts = (0, _WINDOW // 2)
        self.blocks = nn.ModuleList(Block(width, heads, shifts[i % 2], rate) for i, rate in enumerate(dropped))
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        """The map behind the stage, of x `[B, h, w, C]`."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches of 4 x 4 pixels to the channels of a pixel."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """The map `[B, ceil(H / 4), ceil(W / 4), width]`."""
        images = functional.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """What :func:`swin_small` makes."""

    def __init__(self, blocks: tuple[int, ...], dropped: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = _checks.positive_int("in_channels", in_channels)
        self.patch_embed = PatchEmbedding(in_channels, _WIDTH)
        rates = iter(depths_dropped(dropped, sum(blocks)))
        self.layers = nn.ModuleList(
            Stage(_WIDTH << stage, heads, [next(rates) for _ in range(count)], last=stage == len(blocks) - 1)
            for stage, (count, heads) in enumerate(zip(blocks, _HEADS, strict=True))
        )
        last = _WIDTH << (len(blocks) - 1)
        self.norm = nn.LayerNorm(last)
        self.head = nn.Linear(last, _checks.positive_int("num_classes", num_classes))
        initialise_transformer(self)
        self.register_load_state_dict_pre_hook(_without_tables)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels)
        x = self.patch_embed(images)  # [B, h, w, 96]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean((1, 2)))


def _without_tables(network: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Takes the authors' tables out of what is loaded: they follow from the sizes."""
    for name in [name for name in state if name.endswith((".relative_position_index", ".attn_mask"))]:
        if name.startswith(prefix):
            del state[name]
