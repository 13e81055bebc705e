"""The backbone update as a module, with OpenFold's arguments and state-dict keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.geometry import Frames
from paperops.nn.initialisation import zero
from paperops.nn.precision import check_dtype, linear_in_full
from paperops.ops import _checks


class BackboneUpdate(nn.Module):
    r"""A frame for each residue, which moves the residue's backbone when composed with its frame.

    .. math::

        (b, c, d, t) = W s + w, \qquad q = (1, b, c, d) / \sqrt{1 + b^2 + c^2 + d^2}, \qquad T = (R(q), t)

    Args:
        c_s: channels of the single representation.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``linear.weight`` ``[6, c_s]`` and ``linear.bias`` (AlphaFold-Multimer's projection
    has the same). Both start at 0, so that the update starts as the identity.

    Shapes:
        ``forward(s)``: ``[*, c_s]`` to :class:`~paperops.geometry.Frames` of rotations ``[*, 3, 3]`` and translations
        ``[*, 3]``, in the unit of length of the frames that they move: ``frames @ update(s)``. ``quaternions(s)`` gives
        (1, b, c, d), ``[*, 4]``, and the translations instead.

    The result is float32 at least and is computed so, under autocast too.

    Raises:
        TypeError, ValueError: for an s that does not fit.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 23.

    Example:
        >>> import torch, paperops
        >>> update = paperops.nn.BackboneUpdate(16)
        >>> frames = update(torch.randn(2, 7, 16))
        >>> frames.rotations.shape, frames.translations.shape
        (torch.Size([2, 7, 3, 3]), torch.Size([2, 7, 3]))
    """

    def __init__(self, c_s: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.c_s = _checks.positive_int("c_s", c_s)
        self.linear = nn.Linear(self.c_s, 6, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        zero(self.linear)

    def quaternions(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Quaternions (1, b, c, d), ``[*, 4]``, not normalised, and translations ``[*, 3]``."""
        _checks.vectors("s", s, self.c_s, f"c_s = {self.c_s} channels")
        check_dtype("s", s, self.linear.weight)
        imaginary, translations = linear_in_full(self.linear, s).split(3, -1)
        return torch.cat([torch.ones_like(imaginary[..., :1]), imaginary], -1), translations

    def forward(self, s: Tensor) -> Frames:
        """The frames of s ``[*, c_s]``, see the class."""
        return Frames.from_quaternion(*self.quaternions(s))

    def extra_repr(self) -> str:
        return f"c_s={self.c_s}"
