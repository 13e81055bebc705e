"""AlphaFold2's heads that say how far a prediction can be trusted, with OpenFold's arguments and state-dict keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperops.nn.initialisation import he_normal, zero
from paperops.nn.precision import check_dtype, wide
from paperops.ops import _checks


class PerResidueLDDTCaPredictor(nn.Module):
    """Logits of each residue's lDDT-CA over bins, from the structure module's single representation.

    Args:
        no_bins: bins of lDDT, of one width from 0 to 100; AlphaFold2 has 50.
        c_in: channels of the single representation.
        c_hidden: channels between; AlphaFold2 has 128.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``layer_norm``, ``linear_1``, ``linear_2``, ``linear_3``. They start as in
    AlphaFold2, ``linear_3`` at 0.

    Shapes:
        ``forward(s)``: ``[*, c_in]`` to ``[*, no_bins]``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 29.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import PerResidueLDDTCaPredictor, compute_plddt
        >>> head = PerResidueLDDTCaPredictor(no_bins=50, c_in=16, c_hidden=8)
        >>> compute_plddt(head(torch.randn(1, 7, 16))).shape
        torch.Size([1, 7])
    """

    def __init__(
        self, no_bins: int, c_in: int, c_hidden: int, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.no_bins, self.c_in = _checks.positive_int("no_bins", no_bins), _checks.positive_int("c_in", c_in)
        self.c_hidden = _checks.positive_int("c_hidden", c_hidden)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_norm = nn.LayerNorm(self.c_in, **made)
        self.linear_1 = nn.Linear(self.c_in, self.c_hidden, **made)
        self.linear_2 = nn.Linear(self.c_hidden, self.c_hidden, **made)
        self.linear_3 = nn.Linear(self.c_hidden, self.no_bins, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        self.layer_norm.reset_parameters()
        he_normal(self.linear_1)
        he_normal(self.linear_2)
        zero(self.linear_3)

    def forward(self, s: Tensor) -> Tensor:
        """The logits ``[*, no_bins]`` of s ``[*, c_in]``."""
        _checks.vectors("s", s, self.c_in, f"c_in = {self.c_in} channels")
        check_dtype("s", s, self.linear_1.weight)
        s = torch.relu(self.linear_1(self.layer_norm(s)))
        logits: Tensor = self.linear_3(torch.relu(self.linear_2(s)))
        return logits


class TMScoreHead(nn.Module):
    """Logits of each pair's aligned error over bins, from the pair representation.

    The error of (i, j) is the distance of residue j's CA from its true place, once residue i's frame has been laid over
    its true one. :func:`compute_predicted_aligned_error` and :func:`paperops.predicted_tm_score` read the logits.

    Args:
        c_z: channels of the pair representation.
        no_bins: bins of the error; AlphaFold2 has 64.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``linear``, which starts at 0.

    Shapes:
        ``forward(z)``: ``[*, N, N, c_z]`` to ``[*, N, N, no_bins]``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.7.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import TMScoreHead
        >>> TMScoreHead(c_z=8, no_bins=64)(torch.randn(5, 5, 8)).shape
        torch.Size([5, 5, 64])
    """

    def __init__(self, c_z: int, no_bins: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.c_z, self.no_bins = _checks.positive_int("c_z", c_z), _checks.positive_int("no_bins", no_bins)
        self.linear = nn.Linear(self.c_z, self.no_bins, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        zero(self.linear)

    def forward(self, z: Tensor) -> Tensor:
        """The logits ``[*, N, N, no_bins]`` of z ``[*, N, N, c_z]``."""
        _checks.pair("z", z)
        _checks.vectors("z", z, self.c_z, f"c_z = {self.c_z} channels")
        check_dtype("z", z, self.linear.weight)
        logits: Tensor = self.linear(z)
        return logits


def compute_plddt(logits: Tensor) -> Tensor:
    r"""Each residue's predicted lDDT-CA, from 0 to 100: the mean of the bins' centres.

    .. math:: 100 \sum_b \mathrm{softmax}(l)_b (b + 1/2) / n

    Args:
        logits: ``[*, bins]``, of bins of one width from 0 to 100, any floating dtype.

    Returns:
        ``[*]``, float32 at least. Differentiable.

    Raises:
        TypeError, ValueError: for logits that are no floating tensor or have no bin.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 29, line 5.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import compute_plddt
        >>> compute_plddt(torch.tensor([0.0, 0.0, 0.0, 50.0]))
        tensor(87.5000)
    """
    probabilities = _probabilities(logits)
    bins = logits.shape[-1]
    centres = (torch.arange(bins, dtype=probabilities.dtype, device=logits.device) + 0.5) / bins
    return 100 * (probabilities * centres).sum(-1)


class PredictedAlignedError(NamedTuple):
    """What the logits of aligned errors say, in Angstrom."""

    probabilities: Tensor
    """``[*, N, N, bins]``."""
    error: Tensor
    """``[*, N, N]``: the expected error."""
    max_error: Tensor
    """A scalar: the largest that can be expected, the centre of the last bin."""


def compute_predicted_aligned_error(logits: Tensor, max_bin: float = 31, no_bins: int = 64) -> PredictedAlignedError:
    r"""Each pair's expected aligned error, the mean of the bins' centres.

    .. math:: \sum_b \mathrm{softmax}(l)_b (b + 1/2) w, \qquad w = \mathrm{max\_bin} / (n - 2)

    The centres are AlphaFold2's code's. (:func:`aligned_error_loss`, with which its weights were trained, counts an
    error between (b - 1) w and b w to bin b, so that they lie a width above what was counted.)

    Args:
        logits: ``[*, N, N, no_bins]``, as of :class:`TMScoreHead`, any floating dtype.
        max_bin: the upper end of the last bin but one, in Angstrom.
        no_bins: n, 3 at least.

    Returns:
        :class:`PredictedAlignedError`, float32 at least. Differentiable.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.7.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import compute_predicted_aligned_error
        >>> compute_predicted_aligned_error(torch.zeros(5, 5, 64)).max_error
        tensor(31.7500)
    """
    width = error_bin_width(max_bin, no_bins)
    probabilities = _probabilities(logits)
    if logits.dim() < 3 or logits.shape[-3] != logits.shape[-2] or logits.shape[-1] != no_bins:
        raise ValueError(f"logits must have shape [*, N, N, {no_bins}]; got {list(logits.shape)}")
    centres = (torch.arange(no_bins, dtype=probabilities.dtype, device=logits.device) + 0.5) * width
    return PredictedAlignedError(probabilities, (probabilities * centres).sum(-1), centres[-1])


def error_bin_width(max_bin: float, no_bins: int) -> float:
    """The width of the bins of aligned errors, in Angstrom, once both are known to be right."""
    if _checks.positive_int("no_bins", no_bins) < 3:
        raise ValueError(f"no_bins must be at least 3; got {no_bins}")
    return _checks.positive_number("max_bin", max_bin) / (no_bins - 2)


def _probabilities(logits: Tensor) -> Tensor:
    """The softmax over the last dimension, float32 at least."""
    _checks.tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits must have a floating dtype; got {logits.dtype}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [*, bins], of 1 bin at least; got {list(logits.shape)}")
    return torch.softmax(wide(logits), -1)
