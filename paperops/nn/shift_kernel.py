"""The start of ACmix's grouped convolution: each of the k * k mixed maps is shifted by one tap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks


def shift_kernel(channels: int, kernel_size: int, *, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """The weights with which :func:`paperops.shift_conv_2d` shifts its mixed maps and sums them.

    Map kk has a one at tap kk, counted by rows, and zeros elsewhere: the fixed shift of ACmix (arXiv 2111.14556,
    section 4.1), which its layer starts from and then learns.

    Args:
        channels: C, of the result.
        kernel_size: k, odd.
        device, dtype: of the result.

    Returns:
        ``[C, k * k, k, k]``.

    Raises:
        TypeError: channels or kernel_size is no integer.
        ValueError: channels below 1; kernel_size below 1 or even.

    Example:
        >>> import paperops
        >>> paperops.nn.shift_kernel(1, 3)[0, 5]
        tensor([[0., 0., 0.],
                [0., 0., 1.],
                [0., 0., 0.]])
    """
    channels = _checks.positive_int("channels", channels)
    kernel_size = _checks.positive_int("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd; got {kernel_size}")
    taps = kernel_size * kernel_size
    one = torch.eye(taps, device=device, dtype=dtype).reshape(taps, kernel_size, kernel_size)
    return one.repeat(channels, 1, 1, 1)  # [C, K, k, k]
