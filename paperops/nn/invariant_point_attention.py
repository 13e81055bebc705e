"""Invariant point attention as a module, with OpenFold's arguments and state-dict keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paperops.geometry import Frames
from paperops.nn.initialisation import lecun_normal, zero
from paperops.nn.precision import check_dtype, wide
from paperops.ops import _checks
from paperops.ops.invariant_point_attention import invariant_point_attention

_PROJECTIONS = ("linear_q_points", "linear_kv_points", "linear_k_points", "linear_v_points")


class PointProjection(nn.Module):
    """Points in the local frame of each residue: a linear layer, and OpenFold's order of its outputs.

    Args:
        c_s: channels of the single representation.
        no_points, no_heads: points of each head.
        is_multimer: the order of AlphaFold-Multimer, (head, coordinate, point), or of the monomer model, (coordinate,
            head, point).
        device, dtype: of the parameters.

    Shapes:
        ``forward(s)``: ``[*, c_s]`` to ``[*, no_heads, no_points, 3]``.
    """

    def __init__(self, c_s: int, no_points: int, no_heads: int, is_multimer: bool = False, **made: Any) -> None:
        super().__init__()
        self.no_points, self.no_heads, self.is_multimer = no_points, no_heads, is_multimer
        self.linear = nn.Linear(c_s, no_heads * no_points * 3, **made)

    def forward(self, s: Tensor) -> Tensor:
        points = self.linear(s)
        if self.is_multimer:
            return points.unflatten(-1, (self.no_heads, 3, self.no_points)).transpose(-1, -2)
        return points.unflatten(-1, (3, self.no_heads, self.no_points)).movedim(-3, -1)


class InvariantPointAttention(nn.Module):
    r"""Invariant point attention of a single representation, with its projections, without the residual.

    Args:
        c_s, c_z: channels of the single and the pair representation.
        c_hidden: channels of queries, keys and values of a head.
        no_heads: heads.
        no_qk_points, no_v_points: query (and key) points and value points of a head.
        inf: what a masked pair's logit loses where ``finite_mask``.
        eps: added to squared norms before the root.
        is_multimer: AlphaFold-Multimer's projections (keys and values apart, no biases, another order of points), or
            the monomer model's.
        finite_mask: False: a masked residue attends to nothing and is attended by none, and its result is 0. True: as
            in AlphaFold2 and OpenFold, where it attends to everything.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``head_weights``, ``linear_q``, ``linear_q_points.linear``, ``linear_b``,
    ``linear_out``, and ``linear_kv``, ``linear_kv_points.linear`` or, of a multimer, ``linear_k``, ``linear_v``,
    ``linear_k_points.linear``, ``linear_v_points.linear``. Older keys without ``.linear`` are renamed on loading. They
    start as in AlphaFold2: projections from a truncated normal distribution of variance 1 / c_s, softplus of
    ``head_weights`` 1, ``linear_out`` 0.

    Shapes:
        ``forward(s, z, rotations, translations, mask=None)``: s ``[*, N, c_s]``, z ``[*, N, N, c_z]``, rotations
        ``[*, N, 3, 3]`` and translations ``[*, N, 3]`` of the residues' frames, mask ``[*, N]``, bool or floating, 1 =
        keep. Returns ``[*, N, c_s]`` in the dtype of ``linear_out``'s result.

    Points and frames are float32 at least, under autocast too.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 22; Evans et al. (AlphaFold-Multimer), 2022.

    Example:
        >>> import torch, paperops
        >>> attention = paperops.nn.InvariantPointAttention(16, 8, 4, 3, 4, 8)
        >>> frames = paperops.geometry.Frames.identity(1, 7)
        >>> attention(torch.randn(1, 7, 16), torch.randn(1, 7, 7, 8), *frames).shape
        torch.Size([1, 7, 16])
    """

    def __init__(
        self,
        c_s: int,
        c_z: int,
        c_hidden: int,
        no_heads: int,
        no_qk_points: int,
        no_v_points: int,
        inf: float = 1e5,
        eps: float = 1e-8,
        is_multimer: bool = False,
        *,
        finite_mask: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.c_s = c_s = _checks.positive_int("c_s", c_s)
        self.c_z = c_z = _checks.positive_int("c_z", c_z)
        self.c_hidden = c_hidden = _checks.positive_int("c_hidden", c_hidden)
        self.no_heads = no_heads = _checks.positive_int("no_heads", no_heads)
        self.no_qk_points = no_qk_points = _checks.positive_int("no_qk_points", no_qk_points)
        self.no_v_points = no_v_points = _checks.positive_int("no_v_points", no_v_points)
        self.inf = _checks.positive_number("inf", inf)
        self.eps = _checks.positive_number("eps", eps)
        for name, value in (("is_multimer", is_multimer), ("finite_mask", finite_mask)):
            _checks.flag(name, value)
        self.is_multimer, self.finite_mask = is_multimer, finite_mask

        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = c_hidden * no_heads
        self.linear_q = nn.Linear(c_s, hidden, bias=not is_multimer, **made)
        self.linear_q_points = PointProjection(c_s, no_qk_points, no_heads, is_multimer, **made)
        if is_multimer:
            self.linear_k = nn.Linear(c_s, hidden, bias=False, **made)
            self.linear_v = nn.Linear(c_s, hidden, bias=False, **made)
            self.linear_k_points = PointProjection(c_s, no_qk_points, no_heads, True, **made)
            self.linear_v_points = PointProjection(c_s, no_v_points, no_heads, True, **made)
        else:
            self.linear_kv = nn.Linear(c_s, 2 * hidden, **made)
            self.linear_kv_points = PointProjection(c_s, no_qk_points + no_v_points, no_heads, **made)
        self.linear_b = nn.Linear(c_z, no_heads, **made)
        self.head_weights = nn.Parameter(torch.empty(no_heads, **made))
        self.linear_out = nn.Linear(no_heads * (c_z + c_hidden + no_v_points * 4), c_s, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                lecun_normal(module)
        zero(self.linear_out)
        nn.init.constant_(self.head_weights, math.log(math.e - 1))  # softplus of it is 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _PROJECTIONS:
            for kind in ("weight", "bias"):
                old, new = f"{prefix}{name}.{kind}", f"{prefix}{name}.linear.{kind}"
                if old in state_dict and new not in state_dict:  # with both, the old one is unexpected
                    state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, s: Tensor, z: Tensor, rotations: Tensor, translations: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The update ``[*, N, c_s]`` of s ``[*, N, c_s]``, see the class."""
        self._check(s, z, rotations, translations, mask)
        leading, n = s.shape[:-2], s.shape[-2]
        batch = math.prod(leading)
        s = s.reshape(batch, n, self.c_s)
        z, rotations, translations = (
            value.reshape(batch, *value.shape[len(leading) :]) for value in (z, rotations, translations)
        )
        mask = None if mask is None else mask.reshape(batch, n)

        q = self._heads(self.linear_q(s))  # [B, N, H, C]
        q_points = wide(self.linear_q_points(s))  # [B, N, H, Pq, 3]
        if self.is_multimer:
            k, v = self._heads(self.linear_k(s)), self._heads(self.linear_v(s))
            k_points, v_points = wide(self.linear_k_points(s)), wide(self.linear_v_points(s))
        else:
            k, v = self._heads(self.linear_kv(s)).chunk(2, -1)
            kv_points = wide(self.linear_kv_points(s))
            k_points, v_points = kv_points.split([self.no_qk_points, self.no_v_points], -2)
        o, o_points, norms, o_pair = invariant_point_attention(
            q, k, v, q_points, k_points, v_points, z.to(q.dtype), wide(rotations), wide(translations),
            wide(self.head_weights), bias_weight=self.linear_b.weight, bias_bias=self.linear_b.bias, mask=mask,
            inf=self.inf, eps=self.eps, finite_mask=self.finite_mask,
        )  # fmt: skip
        coordinates = o_points.flatten(2, 3).unbind(-1)  # x, y and z, [B, N, H Pv] each
        parts = (o.flatten(2), *coordinates, norms.flatten(2), o_pair.flatten(2))
        update = self.linear_out(torch.cat([part.to(o.dtype) for part in parts], -1))
        if mask is not None and not self.finite_mask:
            update = update.masked_fill((mask == 0)[..., None], 0)
        return update.reshape(*leading, n, self.c_s)

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.no_heads, -1))

    def _check(self, s: Tensor, z: Tensor, rotations: Tensor, translations: Tensor, mask: Tensor | None) -> None:
        _checks.vectors("s", s, self.c_s, f"c_s = {self.c_s} channels")
        check_dtype("s", s, self.linear_q.weight)
        if isinstance(rotations, Frames):
            raise TypeError("rotations must be a torch.Tensor; got Frames: pass both of its tensors, as *frames")
        if s.dim() < 2:
            raise ValueError(f"s must have shape [*, N, {self.c_s}]; got {list(s.shape)}")
        _checks.pair("z", z)
        _checks.frames("rotations", rotations, "translations", translations)
        shapes = (("z", z, (*s.shape[:-1], s.shape[-2], self.c_z)), ("rotations", rotations, (*s.shape[:-1], 3, 3)))
        for name, value, shape in shapes:
            if value.shape != shape:
                raise ValueError(
                    f"{name} must have shape {list(shape)} for s of {list(s.shape)}; got {list(value.shape)}"
                )
        _checks.residue_mask("mask", mask, s.shape[:-1], s, "s")

    def extra_repr(self) -> str:
        given = f"c_s={self.c_s}, c_z={self.c_z}, c_hidden={self.c_hidden}, no_heads={self.no_heads}, "
        given += f"no_qk_points={self.no_qk_points}, no_v_points={self.no_v_points}, is_multimer={self.is_multimer}"
        return given + (", finite_mask=True" if self.finite_mask else "")
