"""PVT-Tiny and -Small whose attention, of all to a smaller map, is mixed with a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.models.acmix.layers import MixedPaths, Mlp, StochasticDepth, depths_dropped, initialise_transformer
from paperops.models.images import check_images
from paperops.ops import _checks

_WIDTHS, _HEADS, _REDUCTIONS, _EXPANSIONS = (64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1), (8, 8, 4, 4)
_PRETRAINED = 224  # the side of the images whose positions are parameters
_SMALLEST = 32  # pixels a side: one on the last map
_STOCHASTIC_DEPTH = 0.1


def pvt_tiny(num_classes: int = 1000, in_channels: int = 3) -> PVT:
    """PVT-ACmix with two blocks a stage: see :func:`pvt_small`. H and W are 32 at least."""
    return PVT((2, 2, 2, 2), num_classes, in_channels)


def pvt_small(num_classes: int = 1000, in_channels: int = 3) -> PVT:
    """PVT-Small, with the convolution of ACmix beside every attention.

    Wang et al., "Pyramid Vision Transformer", ICCV 2021 (arXiv 2102.12122), with blocks 3, 4, 6, 3. Each pixel attends
    to all of a map that a strided convolution has made 8, 4, 2 and 1 times smaller. Mixed as in Pan et al., arXiv
    2111.14556.

    Neither the paper nor the authors' repository tells how the convolution takes keys and values of a smaller map.
    Here: each holds for all the pixels that it was made of (nearest neighbours), which costs what the paper counts; to
    project them anew at full size would cost more. The class token, of the last stage, has attention alone, and as it
    alone comes out, the last block's convolution has no effect.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.

    Returns:
        A module from floating images ``[B, in_channels, H, W]`` to ``[B, num_classes]``, H and W 32 at least; what is
        left of them beyond a multiple of 32 may be left out. Learned positions are those of 224 x 224 pixels,
        resampled for other sizes. Parameters have the names of PVT's code. In training, blocks are skipped for single
        images with a probability that grows with depth to 0.1.

    Raises:
        TypeError, ValueError: an argument is not as above, or images are not, before any layer runs; the message names
            what was expected and what came.

    Example:
        >>> import torch
        >>> from paperops.models.acmix import pvt_tiny
        >>> model = pvt_tiny(10).eval()
        >>> model(torch.rand(1, 3, 64, 97)).shape
        torch.Size([1, 10])
    """
    return PVT((3, 4, 6, 3), num_classes, in_channels)


class ReducedACmix(MixedPaths):
    """Attention to a smaller map, and the convolution at full size."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__(width, width // heads, 3 * heads, bias=True)
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Of x's shape `[B, tokens, C]`: the map's pixels, in front of them a class token or none."""
        others = x.shape[1] - height * width
        queries = self.q(x)
        tokens, rows, columns = x, height, width
        if self.reduction > 1:
            small = self.sr(x.unflatten(1, (height, width)).permute(0, 3, 1, 2))  # [B, C, h / R, w / R]
            rows, columns = small.shape[2:]
            tokens = self.norm(small.flatten(2).transpose(1, 2))
        pairs = self.kv(tokens)  # [B, N', 2 * C]
        q = queries.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, D]
        k, v = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        maps = _map(pairs[:, others:], rows, columns)  # [B, 2 * C, h / R, w / R]
        if (rows, columns) != (height, width):
            maps = functional.interpolate(maps, (height, width), mode="nearest")
        maps = torch.cat((_map(queries[:, others:], height, width), maps), 1)  # [B, 3 * C, h, w]
        convolution = self.convolution(maps.unflatten(1, (3 * self.heads, -1))).flatten(2).transpose(1, 2)
        return self.mixed(self.proj(attention), functional.pad(convolution, (0, 0, others, 0)))


def _map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width: int, heads: int, reduction: int, hidden: int, dropped: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = ReducedACmix(width, heads, reduction)
        self.drop_path = StochasticDepth(dropped)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Of x's shape `[B, tokens, C]`."""
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Patches of the map to tokens."""

    def __init__(self, before: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Tokens `[B, h * w, width]`, h and w, of x `[B, before, H, W]`."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class PVT(nn.Module):
    """What :func:`pvt_small` makes."""

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = _checks.positive_int("in_channels", in_channels)
        dropped = iter(depths_dropped(_STOCHASTIC_DEPTH, sum(blocks)))
        before, side = in_channels, _PRETRAINED
        for stage, (width, heads, reduction) in enumerate(zip(_WIDTHS, _HEADS, _REDUCTIONS, strict=True)):
            patch = 4 if stage == 0 else 2
            side //= patch
            tokens = side**2 + (stage == 3)
            hidden = _EXPANSIONS[stage] * width
            setattr(self, f"patch_embed{stage + 1}", PatchEmbedding(before, width, patch))
            setattr(self, f"pos_embed{stage + 1}", nn.Parameter(torch.empty(1, tokens, width)))
            made = (Block(width, heads, reduction, hidden, next(dropped)) for _ in range(blocks[stage]))
            setattr(self, f"block{stage + 1}", nn.ModuleList(made))
            before = width
        self.cls_token = nn.Parameter(torch.empty(1, 1, before))
        self.norm = nn.LayerNorm(before, eps=1e-6)
        self.head = nn.Linear(before, _checks.positive_int("num_classes", num_classes))
        initialise_transformer(self)
        for name, parameter in self.named_parameters():
            if name.startswith("pos_embed") or name == "cls_token":
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels, _SMALLEST)
        x = images
        for stage in range(1, 5):
            tokens, height, width = getattr(self, f"patch_embed{stage}")(x)
            tokens = tokens + self._positions(stage, height, width)
            if stage == 4:
                own = self.cls_token + self.get_parameter("pos_embed4")[:, :1]
                tokens = torch.cat((own.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens), 1)
            for block in getattr(self, f"block{stage}"):
                tokens = block(tokens, height, width)
            if stage < 4:
                x = _map(tokens, height, width).contiguous()
        return self.head(self.norm(tokens)[:, 0])

    def _positions(self, stage: int, height: int, width: int) -> Tensor:
        """The learned positions of a stage `[1, h * w, C]`, resampled where the map has another size."""
        known = getattr(self, f"pos_embed{stage}")[:, int(stage == 4) :]
        side = _PRETRAINED >> (stage + 1)
        if (height, width) == (side, side):
            return known
        grid = functional.interpolate(_map(known, side, side), (height, width), mode="bilinear")
        return grid.flatten(2).transpose(1, 2)
