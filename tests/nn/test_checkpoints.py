"""convert_triangle_multiplication: a module with the converted parameters computes what the layout's own code does.

Each layout's computation is written here with that layout's names, its order of stored values and its einsum, on the
random parameters themselves; nothing of the converter is used.
"""

import re

import pytest
import torch
from torch import Tensor

from paperops.nn import TriangleMultiplicativeUpdate, convert_triangle_multiplication

C, D, N = 6, 4, 5


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def norm(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


# --- every layout: its random parameters, and its own computation ---------------------------------------------------


def openfold(outgoing: bool, biases: bool = True):
    p = {}
    for name, rows, columns in (
        ("linear_a_p", D, C), ("linear_a_g", D, C), ("linear_b_p", D, C), ("linear_b_g", D, C),
        ("linear_z", C, D), ("linear_g", C, C),
    ):  # fmt: skip
        p[f"{name}.weight"] = rand(rows, columns)
        if biases:
            p[f"{name}.bias"] = rand(rows)
    for name, width in (("layer_norm_in", C), ("layer_norm_out", D)):
        p[f"{name}.weight"], p[f"{name}.bias"] = rand(width), rand(width)

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    def compute(z, mask):
        z = norm(z, p["layer_norm_in.weight"], p["layer_norm_in.bias"])
        a = mask[..., None] * linear("linear_a_p", z) * linear("linear_a_g", z).sigmoid()
        b = mask[..., None] * linear("linear_b_p", z) * linear("linear_b_g", z).sigmoid()
        x = torch.einsum("ikc,jkc->ijc" if outgoing else "kic,kjc->ijc", a, b)
        x = linear("linear_z", norm(x, p["layer_norm_out.weight"], p["layer_norm_out.bias"]))
        return x * linear("linear_g", z).sigmoid()

    return p, compute


def openfold_without_biases(outgoing: bool):
    return openfold(outgoing, biases=False)


def openfold_fused(outgoing: bool):
    p = {}
    for name, rows, columns in (
        ("linear_ab_p", 2 * D, C),
        ("linear_ab_g", 2 * D, C),
        ("linear_z", C, D),
        ("linear_g", C, C),
    ):
        p[f"{name}.weight"], p[f"{name}.bias"] = rand(rows, columns), rand(rows)
    for name, width in (("layer_norm_in", C), ("layer_norm_out", D)):
        p[f"{name}.weight"], p[f"{name}.bias"] = rand(width), rand(width)

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def compute(z, mask):
        z = norm(z, p["layer_norm_in.weight"], p["layer_norm_in.bias"])
        ab = mask[..., None] * linear("linear_ab_g", z).sigmoid() * linear("linear_ab_p", z)
        a, b = ab[..., :D], ab[..., D:]
        x = torch.einsum("ikc,jkc->ijc" if outgoing else "kic,kjc->ijc", a, b)
        x = linear("linear_z", norm(x, p["layer_norm_out.weight"], p["layer_norm_out.bias"]))
        return x * linear("linear_g", z).sigmoid()

    return p, compute


EQUATION = {True: "ikc,jkc->ijc", False: "kjc,kic->ijc"}  # of AlphaFold's configuration: incoming has left at kj


def alphafold2(outgoing: bool):
    p = {}
    for name, inputs, outputs in (
        ("left_projection", C, D), ("right_projection", C, D), ("left_gate", C, D), ("right_gate", C, D),
        ("output_projection", D, C), ("gating_linear", C, C),
    ):  # fmt: skip
        p[name] = {"weights": rand(inputs, outputs), "bias": rand(outputs)}
    for name, width in (("layer_norm_input", C), ("center_layer_norm", D)):
        p[name] = {"scale": rand(width), "offset": rand(width)}

    def linear(name, x):
        return x @ p[name]["weights"] + p[name]["bias"]

    def compute(act, mask):
        act = norm(act, p["layer_norm_input"]["scale"], p["layer_norm_input"]["offset"])
        left = mask[..., None] * linear("left_projection", act) * linear("left_gate", act).sigmoid()
        right = mask[..., None] * linear("right_projection", act) * linear("right_gate", act).sigmoid()
        x = torch.einsum(EQUATION[outgoing], left, right)
        x = linear("output_projection", norm(x, p["center_layer_norm"]["scale"], p["center_layer_norm"]["offset"]))
        return x * linear("gating_linear", act).sigmoid()

    return p, compute


def alphafold2_fused(outgoing: bool, interleaved: bool = False):
    p = {}
    for name, inputs, outputs in (
        ("projection", C, 2 * D), ("gate", C, 2 * D), ("output_projection", D, C), ("gating_linear", C, C)
    ):  # fmt: skip
        p[f"{name}//weights"] = rand(inputs, outputs)
        if not interleaved:
            p[f"{name}//bias"] = rand(outputs)
    for name, width in (("left_norm_input", C), ("center_norm", D)):
        p[f"{name}//scale"], p[f"{name}//offset"] = rand(width), rand(width)

    def linear(name, x):
        return x @ p[f"{name}//weights"] + p.get(f"{name}//bias", 0.0)

    def compute(act, mask):
        act = norm(act, p["left_norm_input//scale"], p["left_norm_input//offset"])
        projected = mask[..., None] * linear("projection", act) * linear("gate", act).sigmoid()
        if interleaved:
            left, right = projected.unflatten(-1, (D, 2)).unbind(-1)
        else:
            left, right = projected.unflatten(-1, (2, D)).unbind(-2)
        x = torch.einsum(EQUATION[outgoing], left, right)
        x = linear("output_projection", norm(x, p["center_norm//scale"], p["center_norm//offset"]))
        return x * linear("gating_linear", act).sigmoid()

    return p, compute


def alphafold3(outgoing: bool):
    p, compute = alphafold2_fused(outgoing, interleaved=True)
    return p, compute


def boltz(outgoing: bool):
    p = {
        "p_in.weight": rand(2 * D, C),
        "g_in.weight": rand(2 * D, C),
        "p_out.weight": rand(C, D),
        "g_out.weight": rand(C, C),
    }
    for name, width in (("norm_in", C), ("norm_out", D)):
        p[f"{name}.weight"], p[f"{name}.bias"] = rand(width), rand(width)

    def compute(x, mask):
        x = norm(x, p["norm_in.weight"], p["norm_in.bias"])
        gate = (x @ p["g_out.weight"].T).sigmoid()
        x = x @ p["p_in.weight"].T * (x @ p["g_in.weight"].T).sigmoid() * mask[..., None]
        a, b = torch.chunk(x, 2, dim=-1)
        x = torch.einsum("ikd,jkd->ijd" if outgoing else "kid,kjd->ijd", a, b)
        return norm(x, p["norm_out.weight"], p["norm_out.bias"]) @ p["p_out.weight"].T * gate

    return p, compute


def cuequivariance(outgoing: bool, given=("norm_in_weight", "norm_out_bias", "p_in_bias", "p_out_bias", "g_out_bias")):
    shapes = {
        "norm_in_weight": (C,), "norm_in_bias": (C,), "norm_out_weight": (D,), "norm_out_bias": (D,),
        "p_in_weight": (2 * D, C), "p_in_bias": (2 * D,), "g_in_weight": (2 * D, C), "g_in_bias": (2 * D,),
        "p_out_weight": (C, D), "p_out_bias": (C,), "g_out_weight": (C, C), "g_out_bias": (C,),
    }  # fmt: skip
    projections = ("p_in_weight", "g_in_weight", "p_out_weight", "g_out_weight")
    p = {name: rand(*shape) if name in (*given, *projections) else None for name, shape in shapes.items()}

    def linear(name, x):
        bias = p[f"{name}_bias"]
        return x @ p[f"{name}_weight"].T + (0.0 if bias is None else bias)

    def normed(name, x):
        weight, bias = p[f"{name}_weight"], p[f"{name}_bias"]
        return norm(x, 1.0 if weight is None else weight, 0.0 if bias is None else bias)

    def compute(x, mask):
        h = normed("norm_in", x)
        a, b = (mask[..., None] * linear("p_in", h) * linear("g_in", h).sigmoid()).chunk(2, -1)
        t = torch.einsum("ikd,jkd->ijd" if outgoing else "kid,kjd->ijd", a, b)
        return linear("p_out", normed("norm_out", t)) * linear("g_out", h).sigmoid()

    return p, compute


CASES = (
    openfold, openfold_without_biases, openfold_fused, alphafold2, alphafold2_fused, alphafold3, boltz, cuequivariance,
)  # fmt: skip


def name_of(case) -> str:
    return case.__name__.removesuffix("_without_biases")


def as_numpy(state):
    return {
        key: as_numpy(value) if isinstance(value, dict) else None if value is None else value.numpy()
        for key, value in state.items()
    }


@pytest.mark.parametrize("numpy", [False, True], ids=["tensors", "arrays"])
@pytest.mark.parametrize("outgoing", [True, False], ids=["outgoing", "incoming"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_converted_parameters_compute_the_same(case, outgoing, numpy):
    torch.manual_seed(0)
    state, compute = case(outgoing)
    given = as_numpy(state) if numpy else state
    module = TriangleMultiplicativeUpdate(C, D, outgoing).double()
    module.load_state_dict(convert_triangle_multiplication(given, name_of(case), outgoing=outgoing), strict=True)
    z, mask = rand(N, N, C), rand(N, N).sigmoid()
    torch.testing.assert_close(module(z, mask), compute(z, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [openfold_without_biases, alphafold3, boltz], ids=lambda case: case.__name__)
def test_module_without_biases(case):
    state, compute = case(False)
    module = TriangleMultiplicativeUpdate(C, D, outgoing=False, bias=False).double()
    converted = convert_triangle_multiplication(state, name_of(case), outgoing=False, bias=False)
    module.load_state_dict(converted, strict=True)
    z, mask = rand(N, N, C), rand(N, N).sigmoid()
    torch.testing.assert_close(module(z, mask), compute(z, mask), rtol=1e-10, atol=1e-10)


def test_biases_for_a_module_without():
    state, _ = openfold(True)
    with pytest.raises(ValueError, match="linear_a_p.bias is not 0 and a module without biases cannot hold it"):
        convert_triangle_multiplication(state, "openfold", outgoing=True, bias=False)
    for key in state:
        if key.startswith("linear") and key.endswith("bias"):
            state[key] = torch.zeros_like(state[key])
    converted = convert_triangle_multiplication(state, "openfold", outgoing=True, bias=False)
    TriangleMultiplicativeUpdate(C, D, bias=False).load_state_dict(converted, strict=True)


def test_nested_and_flat_names_are_the_same():
    nested, _ = alphafold2(False)
    expected = convert_triangle_multiplication(nested, "alphafold2", outgoing=False)
    for separator in ("//", "/", "."):
        flat = {f"{name}{separator}{leaf}": value for name, leaves in nested.items() for leaf, value in leaves.items()}
        converted = convert_triangle_multiplication(flat, "alphafold2", outgoing=False)
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_openfold_is_the_identity_and_a_copy():
    state, _ = openfold(True)
    module = TriangleMultiplicativeUpdate(C, D).double()
    module.load_state_dict(state, strict=True)
    converted = convert_triangle_multiplication(module.state_dict(keep_vars=True), "openfold", outgoing=True)
    assert converted.keys() == state.keys()
    for key, value in converted.items():
        assert torch.equal(value, state[key]) and not value.requires_grad
        value.zero_()
    assert torch.equal(module.linear_a_p.weight, state["linear_a_p.weight"])  # untouched
    half = convert_triangle_multiplication({k: v.half() for k, v in state.items()}, "openfold", outgoing=True)
    assert all(value.dtype == torch.float16 for value in half.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_missing_and_unknown_keys_are_named(case):
    layout = name_of(case)
    state, _ = case(True)
    for key, value in state.items():
        if layout == "cuequivariance" and not re.fullmatch("[pg]_(in|out)_weight", key):
            continue
        lacking = {k: v for k, v in state.items() if k != key}
        dotted = re.sub("_weight$", ".weight", key) if layout == "cuequivariance" else key.replace("//", ".")
        named = [f"{key}.{leaf}" for leaf in value] if isinstance(value, dict) else [dotted]
        with pytest.raises(KeyError) as raised:
            convert_triangle_multiplication(lacking, layout, outgoing=True)
        assert all(f"layout '{layout}'" in str(raised.value) and name in str(raised.value) for name in named)
        assert "missing" in str(raised.value)
    with pytest.raises(KeyError, match="unknown: linear_q.weight"):
        convert_triangle_multiplication(state | {"linear_q.weight": rand(D, C)}, layout, outgoing=True)


def test_biases_that_a_layout_does_not_have():
    for case in (alphafold3, boltz):
        state, _ = case(True)
        key = "gate.bias" if case is alphafold3 else "g_in.bias"
        with pytest.raises(KeyError, match=f"unknown: {key}"):
            convert_triangle_multiplication(state | {key: rand(2 * D)}, name_of(case), outgoing=True)


def test_shapes_that_do_not_fit():
    state, _ = openfold(True)
    with pytest.raises(ValueError, match=r"linear_b_g.weight must have shape \[4, 6\].*got \[3, 6\]"):
        convert_triangle_multiplication(state | {"linear_b_g.weight": rand(3, C)}, "openfold", outgoing=True)
    fused, _ = boltz(True)
    with pytest.raises(ValueError, match="linear_a_g.weight|linear_b_g.weight"):
        convert_triangle_multiplication(fused | {"g_in.weight": rand(2 * D - 1, C)}, "boltz", outgoing=True)
    stacked, _ = alphafold2_fused(True)
    stacked = {key: torch.stack([value] * 3) for key, value in stacked.items()}  # three blocks, as in an .npz file
    with pytest.raises(ValueError, match=r"projection's weights must be a matrix, of one block; got \[3, 6, 8\]"):
        convert_triangle_multiplication(stacked, "alphafold2_fused", outgoing=True)


def test_other_arguments():
    state, _ = boltz(True)
    with pytest.raises(ValueError, match="layout must be one of 'openfold', .*got 'protenix'"):
        convert_triangle_multiplication(state, "protenix", outgoing=True)
    with pytest.raises(TypeError, match="outgoing must be True or False"):
        convert_triangle_multiplication(state, "boltz", outgoing="outgoing")
    with pytest.raises(TypeError, match="bias must be True or False"):
        convert_triangle_multiplication(state, "boltz", outgoing=True, bias=None)
