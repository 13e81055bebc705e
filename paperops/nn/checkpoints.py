"""Parameters of the triangle multiplicative update, from other code's layouts to OpenFold's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks


@dataclass(frozen=True)
class _Layout:
    """What a layout calls each part, and how it stores it. A pair of names is of a and of b, one name of both."""

    norm_in: str
    p_in: tuple[str, ...]
    g_in: tuple[str, ...]
    norm_out: str
    p_out: str
    g_out: str
    biases: str = "all or none"
    """Of the linear layers: "all", "none", "all or none", or "any": each may be missing, as may all of the norms."""
    haiku: bool = False
    """Haiku's names of weights, stored [in, out]; and a and b trade places in the incoming update."""
    interleaved: bool = False
    """Outputs that are of a and b both go a0, b0, a1, b1, ..., instead of a's first."""


_FUSED_JAX = ("left_norm_input", ("projection",), ("gate",), "center_norm", "output_projection", "gating_linear")
_SHORT = ("norm_in", ("p_in",), ("g_in",), "norm_out", "p_out", "g_out")

_LAYOUTS = {
    "openfold": _Layout(
        "layer_norm_in", ("linear_a_p", "linear_b_p"), ("linear_a_g", "linear_b_g"),
        "layer_norm_out", "linear_z", "linear_g",
    ),
    "openfold_fused": _Layout(
        "layer_norm_in", ("linear_ab_p",), ("linear_ab_g",), "layer_norm_out", "linear_z", "linear_g"
    ),
    "alphafold2": _Layout(
        "layer_norm_input", ("left_projection", "right_projection"), ("left_gate", "right_gate"),
        "center_layer_norm", "output_projection", "gating_linear", "all", haiku=True,
    ),
    "alphafold2_fused": _Layout(*_FUSED_JAX, "all", haiku=True),
    "alphafold3": _Layout(*_FUSED_JAX, "none", haiku=True, interleaved=True),
    "boltz": _Layout(*_SHORT, "none"),
    "cuequivariance": _Layout(*_SHORT, "any"),
}  # fmt: skip


def convert_triangle_multiplication(
    state: Mapping[str, Any], layout: str, *, outgoing: bool, bias: bool = True
) -> dict[str, Tensor]:
    """One triangle multiplicative update's parameters, from another layout to that of paperops' module.

    The result loads with ``strict=True`` into :class:`paperops.nn.TriangleMultiplicativeUpdate` of the same direction,
    and into OpenFold's.

    ``state`` has these keys, by layout:

    - ``"openfold"``: the result's own. ``linear_a_p``, ``linear_a_g``, ``linear_b_p``, ``linear_b_g``, ``linear_z``,
      ``linear_g``, ``layer_norm_in``, ``layer_norm_out``, each with ``.weight`` and ``.bias``; of the linear layers all
      biases are there, or none (OpenFold 3).
    - ``"openfold_fused"``: the same with ``linear_ab_p`` and ``linear_ab_g``: the rows of a, then those of b.
    - ``"alphafold2"``: Haiku's. ``layer_norm_input`` and ``center_layer_norm`` with ``scale`` and ``offset``;
      ``left_projection``, ``right_projection``, ``left_gate``, ``right_gate``, ``output_projection`` and
      ``gating_linear`` with ``weights``, stored [in, out], and ``bias``.
    - ``"alphafold2_fused"``: Haiku's, of AlphaFold-Multimer 2.3. ``left_norm_input`` and ``center_norm``;
      ``projection`` and ``gate`` (the columns of left, then those of right), ``output_projection`` and
      ``gating_linear``.
    - ``"alphafold3"``: the keys of ``"alphafold2_fused"`` without any ``bias``; the columns of ``projection`` and of
      ``gate`` alternate between left and right.
    - ``"boltz"``: ``norm_in`` and ``norm_out`` with ``.weight`` and ``.bias``; ``p_in`` and ``g_in`` (the rows of a,
      then those of b), ``p_out`` and ``g_out`` with ``.weight``.
    - ``"cuequivariance"``: the arguments of that library's ``triangle_multiplicative_update``, ``norm_in_weight`` and
      so on. All but the weights of the four projections may be missing or None.

    Args:
        state: the parameters, tensors or numpy arrays. Haiku's may be nested (``{"projection": {"weights": ...}}``), or
            flat with one or two slashes (``"projection//weights"``, as in AlphaFold's .npz files). Those files hold all
            blocks of a stack, along the first dimension: take one block's, ``{key: array[block] for ...}``.
        layout: one of the above.
        outgoing: the direction of the update that they belong to.
        bias: whether the module has biases (its own argument). True fills those that the layout lacks with 0; with
            False there must be none but zeros.

    Returns:
        A new dictionary with the keys of layout openfold, in the dtypes that came.

    Raises:
        KeyError: a key is missing, or one is there that the layout does not have; all such keys are named.
        ValueError: another layout; a shape that does not fit the others; biases for a module without.

    Source:
        The parameter names in the published code of AlphaFold 2, OpenFold, Boltz and cuequivariance_torch, and for
        AlphaFold 3 what is publicly known of its parameter file.

    Example:
        >>> import torch, paperops
        >>> c, d = 8, 4
        >>> boltz = {"p_in.weight": torch.randn(2 * d, c), "g_in.weight": torch.randn(2 * d, c)}
        >>> boltz |= {"p_out.weight": torch.randn(c, d), "g_out.weight": torch.randn(c, c)}
        >>> for name, width in (("norm_in", c), ("norm_out", d)):
        ...     boltz |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
        >>> module = paperops.nn.TriangleMultiplicationIncoming(c, d, bias=False)
        >>> state = paperops.nn.convert_triangle_multiplication(boltz, "boltz", outgoing=False, bias=False)
        >>> module.load_state_dict(state, strict=True)
        <All keys matched successfully>
    """
    _checks.choice("layout", layout, tuple(_LAYOUTS))
    _checks.flag("outgoing", outgoing)
    _checks.flag("bias", bias)
    form = _LAYOUTS[layout]
    found = {key: value for key, value in _flat(state) if value is not None}
    if layout == "cuequivariance":
        found = {re.sub("_(weight|bias)$", r".\1", key): value for key, value in found.items()}
    _check_keys(found, form, layout)

    scale, offset, weight = ("scale", "offset", "weights") if form.haiku else ("weight", "bias", "weight")

    def read(name: str, leaf: str) -> Tensor | None:
        value = found.get(f"{name}.{leaf}")
        return None if value is None else _tensor(value)

    def linear(name: str) -> tuple[Tensor | None, Tensor | None]:
        matrix = read(name, weight)
        if matrix is not None and matrix.dim() != 2:
            raise ValueError(f"{name}'s {weight} must be a matrix, of one block; got {list(matrix.shape)}")
        return matrix.T if form.haiku and matrix is not None else matrix, read(name, "bias")

    def sides(names: tuple[str, ...]) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        if len(names) == 2:
            pairs = [linear(name) for name in names]
        else:
            both = linear(names[0])
            parts = [(None, None) if value is None else _halves(value, form.interleaved) for value in both]
            pairs = [(parts[0][0], parts[1][0]), (parts[0][1], parts[1][1])]
        return reversed(pairs) if form.haiku and not outgoing else iter(pairs)

    converted: dict[str, Tensor | None] = {}
    for kind, names in (("p", form.p_in), ("g", form.g_in)):
        for side, pair in zip("ab", sides(names)):
            converted[f"linear_{side}_{kind}.weight"], converted[f"linear_{side}_{kind}.bias"] = pair
    for name, theirs in (("linear_z", form.p_out), ("linear_g", form.g_out)):
        converted[f"{name}.weight"], converted[f"{name}.bias"] = linear(theirs)
    for name, theirs in (("layer_norm_in", form.norm_in), ("layer_norm_out", form.norm_out)):
        converted[f"{name}.weight"], converted[f"{name}.bias"] = read(theirs, scale), read(theirs, offset)
    return _completed(converted, bias)


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys with dots, of nested dictionaries or of names with slashes."""
    for key, value in state.items():
        name = re.sub("/+", ".", key)
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _flat(value))
        else:
            yield name, value


def _check_keys(found: dict[str, Any], form: _Layout, layout: str) -> None:
    """KeyError, naming what is missing and what does not belong."""
    scale, offset, weight = ("scale", "offset", "weights") if form.haiku else ("weight", "bias", "weight")
    norms = {f"{name}.{leaf}" for name in (form.norm_in, form.norm_out) for leaf in (scale, offset)}
    layers = (*form.p_in, *form.g_in, form.p_out, form.g_out)
    weights, biases = {f"{name}.{weight}" for name in layers}, {f"{name}.bias" for name in layers}
    required = set(weights) if form.biases == "any" else weights | norms
    if form.biases == "all" or (form.biases == "all or none" and found.keys() & biases):
        required |= biases
    allowed = weights | norms | (set() if form.biases == "none" else biases)
    missing, unknown = sorted(required - found.keys()), sorted(found.keys() - allowed)
    if missing or unknown:
        said = [f"{what}: {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise KeyError(f"layout {layout!r}: {'; '.join(said)}")


def _tensor(value: Any) -> Tensor:
    """A tensor of a tensor or an array. An array is copied: torch warns of those that are read-only."""
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value)


def _halves(value: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """What is of a and of b in outputs [2D, ...]."""
    half = value.shape[0] // 2
    return (value[0::2], value[1::2]) if interleaved else (value[:half], value[half:])


def _completed(converted: dict[str, Tensor | None], bias: bool) -> dict[str, Tensor]:
    """With what the layout lacks, checked for shape."""
    z = converted["linear_z.weight"]
    assert z is not None
    c, d = z.shape
    result = {}
    for key, value in converted.items():
        name, leaf = key.split(".")
        width = {"layer_norm_in": c, "linear_z": c, "linear_g": c}.get(name, d)
        inputs = {"linear_z": d}.get(name, c)
        shape = [width, inputs] if leaf == "weight" and name.startswith("linear") else [width]
        if value is None:
            value = (torch.ones if leaf == "weight" else torch.zeros)(shape, dtype=z.dtype, device=z.device)
        if list(value.shape) != shape:
            raise ValueError(
                f"{key} must have shape {shape}, as the output projection is {[c, d]}; got {list(value.shape)}"
            )
        if leaf == "bias" and name.startswith("linear") and not bias:
            if value.count_nonzero():
                raise ValueError(f"{key} is not 0 and a module without biases cannot hold it; pass bias=True")
            continue
        result[key] = value.clone(memory_format=torch.contiguous_format)
    return result
