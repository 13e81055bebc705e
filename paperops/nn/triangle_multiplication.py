"""The triangle multiplicative update as a module, with OpenFold's arguments and state-dict keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.nn.initialisation import lecun_normal, open_gate, zero
from paperops.ops import _checks, triangle_multiplicative_update
from paperops.reference.nearest import result_dtype


class TriangleMultiplicativeUpdate(nn.Module):
    r"""Triangle multiplicative update of a pair representation, without the residual.

    .. math::
        h &= \mathrm{LN}_{in}(z) \\
        a &= m \odot \sigma(W_{ag} h + b_{ag}) \odot (W_{ap} h + b_{ap}), \quad b \text{ likewise} \\
        t_{ij} &= \sum_k a_{ik} \odot b_{jk} \;\text{(outgoing)}, \quad
                  \sum_k a_{ki} \odot b_{kj} \;\text{(incoming)} \\
        u &= \sigma(W_g h + b_g) \odot (W_z \mathrm{LN}_{out}(t) + b_z)

    Args:
        c_z: C, channels of the pair representation.
        c_hidden: D, channels of a, b and t.
        outgoing: the update with outgoing edges (Algorithm 11), or with incoming ones (Algorithm 12).
        bias: whether the six linear layers have biases. AlphaFold3 and Boltz have none; OpenFold's keys have all.
        precision: how a GPU multiplies float32 matrices, as in :func:`paperops.triangle_multiplicative_update`.
        low_memory: where no gradient is recorded, hold the memory beyond z and the result to N^2 C / 2 elements (for D
            up to C), at some cost in time on a GPU. A call that records a gradient is not changed by it. The kernels
            have it; where only the definition is there, such a call is a :class:`paperops.BackendError`.
        device, dtype: of the parameters, as in torch's own modules.

    Parameters, by OpenFold's names: ``layer_norm_in``, ``linear_a_p``, ``linear_a_g``, ``linear_b_p``, ``linear_b_g``,
    ``layer_norm_out``, ``linear_z``, ``linear_g``, each with ``.weight`` and ``.bias``. They start as in AlphaFold2:
    projections from a truncated normal distribution of variance 1 / C, gates open (weight 0, bias 1), ``linear_z`` 0,
    so that the update starts at 0.

    Shapes:
        ``forward(z, mask=None)``: z ``[*, N, N, C]``, any leading dimensions, any N; mask m ``[*, N, N]``, bool or
        floating, 1 = keep. Returns the update ``[*, N, N, C]`` in z's dtype, or autocast's.

    z is float16, bfloat16, float32 or float64, the parameters of z's dtype, or float32 beside a 16-bit z.

    The submodules hold parameters and are never called: hooks on them do not run, and what has to be called (an
    adapter, a quantised layer) is refused in their place. Parametrizations work, since they give a weight.

    Coming from OpenFold: ``_outgoing`` is ``outgoing`` here, and ``inplace_safe`` and ``_inplace_chunk_size`` have no
    counterpart, since ``low_memory`` does what they are for. With ``_add_with_inplace`` that module adds the residual;
    write ``z = z + update(z, mask)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named; nothing has been computed then.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithms 11 and 12; initialisation: 1.11.4.

    Cost:
        That of :func:`paperops.triangle_multiplicative_update`: saved for backward are z and one ``[N, N, D]``.

    Example:
        >>> import torch, paperops
        >>> update = paperops.nn.TriangleMultiplicativeUpdate(c_z=16, c_hidden=8)
        >>> z, mask = torch.randn(1, 7, 7, 16), torch.ones(1, 7, 7)
        >>> z = z + update(z, mask)
        >>> z.shape
        torch.Size([1, 7, 7, 16])
    """

    def __init__(
        self,
        c_z: int,
        c_hidden: int,
        outgoing: bool = True,
        *,
        bias: bool = True,
        precision: str | None = None,
        low_memory: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("outgoing", outgoing), ("bias", bias), ("low_memory", low_memory)):
            _checks.flag(name, value)
        _checks.choice("precision", precision, (None, *_checks.PRECISIONS[1:]))
        self.c_z = c_z = _checks.positive_int("c_z", c_z)
        self.c_hidden = c_hidden = _checks.positive_int("c_hidden", c_hidden)
        self.outgoing = outgoing
        self.precision = precision
        self.low_memory = low_memory

        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_norm_in = nn.LayerNorm(c_z, **made)
        self.linear_a_p = nn.Linear(c_z, c_hidden, bias, **made)
        self.linear_a_g = nn.Linear(c_z, c_hidden, bias, **made)
        self.linear_b_p = nn.Linear(c_z, c_hidden, bias, **made)
        self.linear_b_g = nn.Linear(c_z, c_hidden, bias, **made)
        self.layer_norm_out = nn.LayerNorm(c_hidden, **made)
        self.linear_z = nn.Linear(c_hidden, c_z, bias, **made)
        self.linear_g = nn.Linear(c_z, c_z, bias, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as a new module would."""
        for norm in (self.layer_norm_in, self.layer_norm_out):
            norm.reset_parameters()
        for projection in (self.linear_a_p, self.linear_b_p):
            lecun_normal(projection)
        for gate in (self.linear_a_g, self.linear_b_g, self.linear_g):
            open_gate(gate)
        zero(self.linear_z)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """The update ``[*, N, N, C]`` of z ``[*, N, N, C]``; mask ``[*, N, N]``, 1 = keep."""
        _checks.pair("z", z)
        if z.shape[-1] != self.c_z:
            raise ValueError(f"z must have c_z = {self.c_z} channels; got {list(z.shape)}")
        self._check_children(z)
        recorded = torch.is_grad_enabled() and (z.requires_grad or any(p.requires_grad for p in self.parameters()))
        return triangle_multiplicative_update(
            z,
            "outgoing" if self.outgoing else "incoming",
            mask,
            self.layer_norm_in.weight,
            self.layer_norm_in.bias,
            *_stacked(self.linear_a_p, self.linear_b_p),
            *_stacked(self.linear_a_g, self.linear_b_g),
            self.layer_norm_out.weight,
            self.layer_norm_out.bias,
            self.linear_z.weight,
            self.linear_z.bias,
            self.linear_g.weight,
            self.linear_g.bias,
            eps=self.layer_norm_in.eps,
            precision=self.precision,
            low_memory=self.low_memory and not recorded,
        )

    def _check_children(self, z: Tensor) -> None:
        """Their parameters are read and they are never called: what must be called may not stand in their place."""
        for name, child in self.named_children():
            if not isinstance(child, nn.LayerNorm if "norm" in name else nn.Linear):
                raise TypeError(
                    f"{name} must be a torch.nn.{'LayerNorm' if 'norm' in name else 'Linear'}, whose parameters the "
                    f"fused op reads; got {type(child).__name__}: merge an adapter into its weight first"
                )
        if self.layer_norm_in.eps != self.layer_norm_out.eps:
            raise ValueError(
                "layer_norm_in and layer_norm_out must have one eps; "
                f"got {self.layer_norm_in.eps} and {self.layer_norm_out.eps}"
            )
        dtype, working = self.linear_z.weight.dtype, _checks.working_dtype(z)
        if dtype not in (working, result_dtype(working)):
            raise TypeError(
                f"z of {z.dtype} does not go with parameters of {dtype}: convert the one or the other"
                + ("" if working == z.dtype else f" (autocast takes z as {working})")
            )

    def extra_repr(self) -> str:
        given = f"c_z={self.c_z}, c_hidden={self.c_hidden}, outgoing={self.outgoing}"
        if self.linear_z.bias is None:
            given += ", bias=False"
        if self.precision is not None:
            given += f", precision={self.precision!r}"
        return given + (", low_memory=True" if self.low_memory else "")


def _stacked(a: nn.Linear, b: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The op's weight [2D, C] and bias [2D]: the rows of a, then those of b."""
    weight = torch.cat([a.weight, b.weight])
    if a.bias is None and b.bias is None:
        return weight, None
    biases = (side.weight.new_zeros(side.out_features) if side.bias is None else side.bias for side in (a, b))
    return weight, torch.cat(list(biases))


class TriangleMultiplicationOutgoing(TriangleMultiplicativeUpdate):
    """:class:`TriangleMultiplicativeUpdate` with outgoing edges (Algorithm 11), under OpenFold's name.

    Args:
        c_z, c_hidden: channels of the pair representation and of a, b and t.
        options: the keyword arguments of :class:`TriangleMultiplicativeUpdate`.
    """

    def __init__(self, c_z: int, c_hidden: int, **options: Any) -> None:
        super().__init__(c_z, c_hidden, True, **options)


class TriangleMultiplicationIncoming(TriangleMultiplicativeUpdate):
    """:class:`TriangleMultiplicativeUpdate` with incoming edges (Algorithm 12), under OpenFold's name.

    Args:
        c_z, c_hidden: channels of the pair representation and of a, b and t.
        options: the keyword arguments of :class:`TriangleMultiplicativeUpdate`.
    """

    def __init__(self, c_z: int, c_hidden: int, **options: Any) -> None:
        super().__init__(c_z, c_hidden, False, **options)
