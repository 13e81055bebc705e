"""The network of torsion angles as a module, with OpenFold's arguments and state-dict keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.nn.initialisation import he_normal, lecun_normal, zero
from paperops.nn.precision import check_dtype, wide
from paperops.ops import _checks


def unit_angles(angles: Tensor, eps: float) -> Tensor:
    """(sin, cos) ``[*, 2]`` of length 1: a / sqrt(max(a . a, eps)), 0 where a is."""
    return angles / torch.sqrt(angles.square().sum(-1, keepdim=True).clamp(min=eps))


class AngleResnetBlock(nn.Module):
    """a + linear_2(relu(linear_1(relu(a)))): line 12 of Algorithm 20.

    Args:
        c_hidden: channels.
        device, dtype: of the parameters.

    Shapes:
        ``forward(a)``: ``[*, c_hidden]`` to the same.
    """

    def __init__(self, c_hidden: int, **made: Any) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(c_hidden, c_hidden, **made)
        self.linear_2 = nn.Linear(c_hidden, c_hidden, **made)

    def forward(self, a: Tensor) -> Tensor:
        update: Tensor = self.linear_2(torch.relu(self.linear_1(torch.relu(a))))
        return a + update


class AngleResnet(nn.Module):
    r"""Torsion angles of each residue, as (sin, cos), from the single representation and its initial value.

    .. math::

        a = W_1 \mathrm{relu}(s) + W_2 \mathrm{relu}(s_0), \qquad a \mathrel{+}= W_4 \mathrm{relu}(W_3 \mathrm{relu}(a))
        \;\text{(in each block)}, \qquad \alpha = W_5 \mathrm{relu}(a), \qquad \hat\alpha = \alpha / |\alpha|

    Args:
        c_in: channels of the single representation.
        c_hidden: channels of the blocks.
        no_blocks: residual blocks.
        no_angles: torsion angles of a residue.
        epsilon: the least square of a length by which a result is divided.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``linear_in``, ``linear_initial``, ``layers.<number>.linear_1``,
    ``layers.<number>.linear_2``, ``linear_out``. They start as in AlphaFold2: ``linear_2`` at 0, ``linear_1`` from a
    normal distribution for a ReLU, the others of variance 1 / inputs. The ReLUs of the inputs are AlphaFold2's code's;
    the algorithm does not show them.

    Shapes:
        ``forward(s, s_initial)``: ``[*, c_in]`` both, to a pair of the raw angles and of those of length 1, both
        ``[*, no_angles, 2]``, in OpenFold's order and float32 at least.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 20, lines 11 to 14.

    Example:
        >>> import torch, paperops
        >>> resnet = paperops.nn.AngleResnet(16, 8, no_blocks=2, no_angles=7, epsilon=1e-8)
        >>> raw, angles = resnet(torch.randn(5, 16), torch.randn(5, 16))
        >>> raw.shape, angles.shape
        (torch.Size([5, 7, 2]), torch.Size([5, 7, 2]))
    """

    def __init__(
        self,
        c_in: int,
        c_hidden: int,
        no_blocks: int,
        no_angles: int,
        epsilon: float,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.c_in = c_in = _checks.positive_int("c_in", c_in)
        self.c_hidden = c_hidden = _checks.positive_int("c_hidden", c_hidden)
        self.no_blocks = no_blocks = _checks.positive_int("no_blocks", no_blocks)
        self.no_angles = no_angles = _checks.positive_int("no_angles", no_angles)
        self.epsilon = _checks.positive_number("epsilon", epsilon)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.linear_in = nn.Linear(c_in, c_hidden, **made)
        self.linear_initial = nn.Linear(c_in, c_hidden, **made)
        self.layers = nn.ModuleList(AngleResnetBlock(c_hidden, **made) for _ in range(no_blocks))
        self.linear_out = nn.Linear(c_hidden, no_angles * 2, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        for layer in (self.linear_in, self.linear_initial, self.linear_out):
            lecun_normal(layer)
        for block in self.layers:
            assert isinstance(block, AngleResnetBlock)
            he_normal(block.linear_1)
            zero(block.linear_2)

    def forward(self, s: Tensor, s_initial: Tensor) -> tuple[Tensor, Tensor]:
        """The raw angles and those of length 1 of s and s_initial ``[*, c_in]``, see the class."""
        for name, value in (("s", s), ("s_initial", s_initial)):
            _checks.vectors(name, value, self.c_in, f"c_in = {self.c_in} channels")
            check_dtype(name, value, self.linear_in.weight)
        if s_initial.shape != s.shape:
            raise ValueError(f"s_initial must have the shape of s, {list(s.shape)}; got {list(s_initial.shape)}")
        a = self.linear_in(torch.relu(s)) + self.linear_initial(torch.relu(s_initial))
        for block in self.layers:
            a = block(a)
        raw = wide(self.linear_out(torch.relu(a))).unflatten(-1, (self.no_angles, 2))
        return raw, unit_angles(raw, self.epsilon)

    def extra_repr(self) -> str:
        return f"c_in={self.c_in}, c_hidden={self.c_hidden}, no_blocks={self.no_blocks}, no_angles={self.no_angles}"
