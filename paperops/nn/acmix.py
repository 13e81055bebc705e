"""ACmix: attention over windows and a convolution made of shifts, both of the same three projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.nn.precision import check_dtype
from paperops.nn.shift_kernel import shift_kernel
from paperops.ops import _checks
from paperops.ops.local_attention import local_attention_2d
from paperops.ops.shift_conv import shift_conv_2d


class ShiftSum2d(nn.Module):
    """The grouped convolution of mixed maps: it starts as k * k shifts and their sum, and is learned from there.

    It is no ``nn.Conv2d`` and not called one, so that a model-wide initialisation of convolutions passes it by: what is
    drawn at random here is no shift any more.

    Args:
        channels: C, of the output.
        groups: D, the width of the maps, which divides C.
        kernel: k, odd.
        stride: of the output.
        device, dtype: of the parameter.

    The parameter is ``weight [C, k * k, k, k]``, that of ``nn.Conv2d(k * k * D, C, k, groups=D, bias=False)``.
    """

    def __init__(
        self, channels: int, groups: int, kernel: int, stride: int = 1, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.channels, self.groups, self.kernel, self.stride = channels, groups, kernel, stride
        self.weight = nn.Parameter(torch.empty(channels, kernel * kernel, kernel, kernel, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Back to the shifts."""
        self.weight.copy_(shift_kernel(self.channels, self.kernel))

    def forward(self, maps: Tensor, mixing: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[B, C, Ho, Wo]`` of maps ``[B, T, D, h, w]``, mixed by ``mixing [k * k, T]`` and ``bias [k * k]``."""
        return shift_conv_2d(maps, mixing, self.weight, fc_bias=bias, stride=self.stride)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, kernel={self.kernel}, stride={self.stride}"


class ACmix(nn.Module):
    r"""Self-attention over windows and a convolution, weighted and added, both of one set of 1 x 1 convolutions.

    .. math:: \mathrm{out} = \mathrm{rate}_1 \cdot \mathrm{attention}(q, k, v) +
              \mathrm{rate}_2 \cdot \mathrm{convolution}(q, k, v)

    q, k and v are three 1 x 1 convolutions of x (``conv1``, ``conv2``, ``conv3``), each of H heads of D channels.
    *Attention*: the query at i attends to the window's keys j with the logits

    .. math:: D^{-1/2} \, q_i \cdot (k_j + p_i - p_j)

    where p is ``conv_p`` of the coordinates (x, then y) in [-1, 1]. :math:`q_i \cdot p_i` is the same for all j and
    cancels in the softmax: what runs is :math:`q_i \cdot (k_j - p_j)`, the very same, with p taken off the keys once.
    *Convolution*: ``fc`` mixes the 3 H maps of D channels into k * k, which ``dep_conv`` shifts and sums.

    Args:
        in_planes, out_planes: channels of x and of the result; ``head`` divides the latter.
        kernel_att: side of attention's window, odd.
        head: H.
        kernel_conv: k, odd.
        stride: queries and the convolution's output sit at each stride-th pixel: h becomes ceil(h / stride).
        dilation: distance of the window's pixels. (The convolution has none, as in the authors' code.)
        padding_mode: the border of attention, as in :func:`paperops.local_attention_2d`. ``"reflect"``, the authors',
            needs maps larger than ``dilation * (kernel_att // 2)``. The convolution is padded with zeros always.
        device, dtype: of the parameters.

    Shapes:
        ``forward(x)``: ``[B, in_planes, h, w]``, of any height and width, contiguous or channels_last, to
        ``[B, out_planes, ceil(h / stride), ceil(w / stride)]``. Attention's channels are head by head, the
        convolution's channel by channel (d * H + head), as the authors'. ``torch.compile`` and ``torch.export`` can
        have batch, height and width dynamic; the least that export is told of a side must be one that the border takes.

    Parameters have the names and shapes of the authors' code: ``rate1`` and ``rate2`` ``[1]``, ``conv1``, ``conv2``,
    ``conv3``, ``conv_p``, ``fc.weight [k * k, 3 * H, 1, 1]`` (no bias), ``dep_conv.weight [C, k * k, k, k]`` (the bias
    that their constructor makes is taken out again, so no checkpoint has one). Both rates start at 0.5, ``dep_conv`` at
    shifts, which ``model.apply`` of an initialisation of ``nn.Conv2d`` leaves alone. ``conv_p.bias`` cancels
    (but beside keys that are zero vectors, with ``padding_mode="zeros"``).

    Raises:
        TypeError, ValueError: an argument is not as above; x of other channels or of another dtype than the
            parameters; a map that is too small for the border; each names what was expected and what came.

    Source:
        Pan et al., On the Integration of Self-Attention and Convolution (ACmix), CVPR 2022, arXiv 2111.14556.

    Cost:
        The three projections are one product. Kept for the backward pass, beyond x: q, k, v, k - p, both branches'
        results and a logarithm a query and head, 4.7 MiB an image at 64 channels of 56 x 56 pixels in float32.

    Example:
        >>> import torch, paperops
        >>> layer = paperops.nn.ACmix(16, 32, stride=2)
        >>> layer(torch.randn(2, 16, 9, 14)).shape
        torch.Size([2, 32, 5, 7])
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_att: int = 7,
        head: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        *,
        padding_mode: str = "reflect",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_planes = _checks.positive_int("in_planes", in_planes)
        self.out_planes = _checks.positive_int("out_planes", out_planes)
        self.head = _checks.positive_int("head", head)
        if out_planes % head:
            raise ValueError(f"out_planes must be divisible by head, {head}; got {out_planes}")
        self.kernel_att = _odd("kernel_att", kernel_att)
        self.kernel_conv = _odd("kernel_conv", kernel_conv)
        self.stride = _checks.positive_int("stride", stride)
        self.dilation = _checks.positive_int("dilation", dilation)
        _checks.choice("padding_mode", padding_mode, ("reflect", "zeros", "mask", "shift"))
        self.padding_mode = padding_mode
        self.head_dim = out_planes // head

        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.rate1 = nn.Parameter(torch.empty(1, **made))
        self.rate2 = nn.Parameter(torch.empty(1, **made))
        self.conv1 = nn.Conv2d(in_planes, out_planes, 1, **made)
        self.conv2 = nn.Conv2d(in_planes, out_planes, 1, **made)
        self.conv3 = nn.Conv2d(in_planes, out_planes, 1, **made)
        self.conv_p = nn.Conv2d(2, self.head_dim, 1, **made)
        self.fc = nn.Conv2d(3 * head, kernel_conv**2, 1, bias=False, **made)
        self.dep_conv = ShiftSum2d(out_planes, self.head_dim, kernel_conv, stride, **made)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Both rates back to 0.5; the layers inside have a method of this name each."""
        self.rate1.fill_(0.5)
        self.rate2.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_planes, ceil(h / stride), ceil(w / stride)]`` of x ``[B, in_planes, h, w]``, see the class."""
        _checks.parameter_of_rank("x", x, 4)
        if x.shape[1] != self.in_planes:
            raise ValueError(f"x must have shape [B, {self.in_planes}, h, w]; got {list(x.shape)}")
        check_dtype("x", x, self.conv1.weight)
        maps = self._projections(x)  # [B, 3 * H, D, h, w]
        q, k, v = maps.split(self.head, 1)  # [B, H, D, h, w] each
        attention = local_attention_2d(
            q, k - self._positions(maps), v, self.kernel_att,
            stride=self.stride, dilation=self.dilation, padding_mode=self.padding_mode, scale=self.head_dim**-0.5,
        )  # fmt: skip
        convolution = self.dep_conv(maps, self.fc.weight[:, :, 0, 0])  # [B, C, Ho, Wo]
        # The rates in the branches' dtype: under autocast, float32 rates would make the result float32.
        first, second = (rate.to(maps.dtype) for rate in (self.rate1, self.rate2))
        return torch.addcmul(first * attention.flatten(1, 2), second, convolution)

    def _projections(self, x: Tensor) -> Tensor:
        """q, k and v by heads ``[B, 3 * H, D, h, w]``, from one convolution."""
        layers = (self.conv1, self.conv2, self.conv3)
        weight = torch.cat([layer.weight for layer in layers])  # [3 * C, in_planes, 1, 1]
        bias = torch.cat([layer.bias for layer in layers if layer.bias is not None])
        return functional.conv2d(x, weight, bias).unflatten(1, (3 * self.head, self.head_dim))

    def _positions(self, maps: Tensor) -> Tensor:
        """p, the same for all heads, ``[1, 1 or H, D, h, w]``, in the dtype and the layout of the maps."""
        height, width = maps.shape[-2:]
        parameter, by_pixels = self.conv_p.weight, maps.stride(2) == 1
        made: Any = {"dtype": torch.promote_types(parameter.dtype, torch.float32), "device": parameter.device}
        across, down = (_from_minus_one_to_one(size, **made) for size in (width, height))
        coordinates = torch.stack(torch.broadcast_tensors(across, down[:, None]))[None].to(parameter.dtype)
        if by_pixels:
            coordinates = coordinates.contiguous(memory_format=torch.channels_last)  # [1, 2, h, w]
        p = self.conv_p(coordinates).to(maps.dtype)
        # Of channels_last maps all heads' channels are side by side: repeated, so that they are taken in one loop.
        return torch.cat([p] * self.head, 1).unflatten(1, (self.head, -1)) if by_pixels else p[:, None]

    def extra_repr(self) -> str:
        shown = f"{self.in_planes}, {self.out_planes}, kernel_att={self.kernel_att}, head={self.head}"
        return f"{shown}, kernel_conv={self.kernel_conv}, stride={self.stride}, dilation={self.dilation}"


def _from_minus_one_to_one(size: int, **made: Any) -> Tensor:
    """``torch.linspace(-1, 1, size)``, which would make a symbolic size a constant."""
    last = size - 1
    return (2 * torch.arange(size, **made) - last) / last if last else torch.full((1,), -1.0, **made)


def _odd(name: str, value: object) -> int:
    number = _checks.positive_int(name, value)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd; got {number}")
    return number
