"""Backbone update and network of angles against Algorithms 23 and 20, and what OpenFold's checkpoints need."""

import math

import pytest
import torch

from paperops.geometry import Frames
from paperops.nn import AngleResnet, BackboneUpdate
from paperops.testing.values import load_random, random

C_S, C, BLOCKS, ANGLES = 10, 6, 2, 7
UPDATE = {"linear.weight": (6, C_S), "linear.bias": (6,)}
RESNET = {
    "linear_in.weight": (C, C_S), "linear_in.bias": (C,), "linear_initial.weight": (C, C_S),
    "linear_initial.bias": (C,),
    "layers.0.linear_1.weight": (C, C), "layers.0.linear_1.bias": (C,), "layers.0.linear_2.weight": (C, C),
    "layers.0.linear_2.bias": (C,),
    "layers.1.linear_1.weight": (C, C), "layers.1.linear_1.bias": (C,), "layers.1.linear_2.weight": (C, C),
    "layers.1.linear_2.bias": (C,),
    "linear_out.weight": (ANGLES * 2, C), "linear_out.bias": (ANGLES * 2,),
}  # fmt: skip


def assert_same(module, state, found, expected, inputs):
    """Values and all gradients."""
    names = [name for name, _ in module.named_parameters()]
    cotangents = [random(*value.shape, seed=90 + number) for number, value in enumerate(found)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(found, [*inputs, *module.parameters()], cotangents)
    right = torch.autograd.grad(expected, [*inputs, *(state[name] for name in names)], cotangents)
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_backbone_update_is_algorithm_23():
    module = BackboneUpdate(C_S)
    state = load_random(module, UPDATE)
    s = random(2, 5, C_S, seed=40).requires_grad_()
    rotations, translations = [], []
    for row in s.flatten(0, 1):
        b, c, d, *shift = (state["linear.weight"] @ row + state["linear.bias"]).unbind()
        length = torch.sqrt(1 + b**2 + c**2 + d**2)
        a, b, c, d = 1 / length, b / length, c / length, d / length
        rotation = torch.stack([
            torch.stack([a**2 + b**2 - c**2 - d**2, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c]),
            torch.stack([2 * b * c + 2 * a * d, a**2 - b**2 + c**2 - d**2, 2 * c * d - 2 * a * b]),
            torch.stack([2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a**2 - b**2 - c**2 + d**2]),
        ])  # fmt: skip
        rotations.append(rotation)
        translations.append(torch.stack(shift))
    expected = [torch.stack(rotations).reshape(2, 5, 3, 3), torch.stack(translations).reshape(2, 5, 3)]
    assert_same(module, state, list(module(s)), expected, [s])


def test_angle_resnet_is_algorithm_20():
    module = AngleResnet(C_S, C, BLOCKS, ANGLES, 1e-8)
    state = load_random(module, RESNET)
    s, s_initial = random(2, 5, C_S, seed=41).requires_grad_(), random(2, 5, C_S, seed=42).requires_grad_()

    def linear(name, x):
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    def relu(x):
        return torch.stack([max(value, torch.zeros_like(value)) for value in x])

    raw, unit = [], []
    for row, first in zip(s.flatten(0, 1), s_initial.flatten(0, 1), strict=True):
        a = linear("linear_in", relu(row)) + linear("linear_initial", relu(first))
        for block in range(BLOCKS):
            a = a + linear(f"layers.{block}.linear_2", relu(linear(f"layers.{block}.linear_1", relu(a))))
        out = linear("linear_out", relu(a)).reshape(ANGLES, 2)
        raw.append(out)
        unit.append(torch.stack([angle / torch.sqrt(angle[0] ** 2 + angle[1] ** 2) for angle in out]))
    expected = [torch.stack(raw).reshape(2, 5, ANGLES, 2), torch.stack(unit).reshape(2, 5, ANGLES, 2)]
    assert_same(module, state, list(module(s, s_initial)), expected, [s, s_initial])


@pytest.mark.parametrize(
    ("module", "shapes"),
    [(BackboneUpdate(C_S), UPDATE), (AngleResnet(C_S, C, BLOCKS, ANGLES, 1e-8), RESNET)],
    ids=["BackboneUpdate", "AngleResnet"],
)
def test_openfold_keys(module, shapes):
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == shapes


def test_initial_values():
    torch.manual_seed(0)
    update = BackboneUpdate(C_S)
    assert not update.linear.weight.any() and not update.linear.bias.any()
    one = Frames.identity(3)
    for found, expected in zip(update(torch.randn(3, C_S)), one, strict=True):
        assert torch.equal(found, expected)
    resnet = AngleResnet(384, 256, 2, 7, 1e-8)
    for name, parameter in resnet.named_parameters():
        if name.endswith("bias") or "linear_2" in name:
            assert not parameter.any(), name
    assert resnet.linear_in.weight.detach().std() == pytest.approx(1 / math.sqrt(384), rel=0.02)
    assert resnet.layers[1].linear_1.weight.detach().std() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert resnet.linear_out.weight.detach().std() == pytest.approx(1 / 16, rel=0.05)


def test_angles_of_length_0_are_finite():
    module = AngleResnet(C_S, C, BLOCKS, ANGLES, 1e-8)
    with torch.no_grad():
        module.linear_out.weight.zero_()
    raw, angles = module(torch.randn(3, C_S), torch.randn(3, C_S))
    assert not raw.any() and not angles.any()
    gradients = torch.autograd.grad(angles.sum(), module.parameters(), allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].allclose(torch.full((14,), 3e4))  # 3 residues, 1 / sqrt(epsilon) each


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    update = BackboneUpdate(C_S)
    load_random(update, UPDATE)
    resnet = AngleResnet(C_S, C, BLOCKS, ANGLES, 1e-8)
    load_random(resnet, RESNET)
    s, s_initial = random(50, C_S, seed=41), random(50, C_S, seed=42)
    exact = update(s)
    update.float()
    with torch.autocast("cpu", dtype):
        found = update(s.float())
        raw, angles = resnet.float()(s.float(), s_initial.float())
    assert raw.dtype == angles.dtype == torch.float32
    torch.testing.assert_close(angles.norm(dim=-1), torch.ones(50, ANGLES))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    for one in update.to(dtype)(s.to(dtype)):
        assert one.dtype == torch.float32


def test_refused():
    update, resnet = BackboneUpdate(C_S), AngleResnet(C_S, C, BLOCKS, ANGLES, 1e-8)
    s = torch.zeros(3, C_S)
    for call, error, said in (
        (lambda: update(s[:, :4]), ValueError, r"s must have shape \[\*, 10\], c_s = 10 channels; got \[3, 4\]"),
        (lambda: update(s.double()), TypeError, "s of torch.float64 does not go with parameters of torch.float32"),
        (lambda: update(None), TypeError, "s must be a torch.Tensor"),
        (lambda: BackboneUpdate(0), ValueError, "c_s must be at least 1"),
        (lambda: resnet(s[:, :4], s), ValueError, r"s must have shape \[\*, 10\], c_in = 10 channels"),
        (lambda: resnet(s, s[:, :4]), ValueError, r"s_initial must have shape \[\*, 10\], c_in = 10 channels"),
        (lambda: resnet(s, s[:2]), ValueError, r"s_initial must have the shape of s, \[3, 10\]; got \[2, 10\]"),
        (lambda: resnet(s, s.double()), TypeError, "s_initial of torch.float64 does not go with"),
        (lambda: AngleResnet(C_S, C, 2.5, ANGLES, 1e-8), TypeError, "no_blocks must be an int"),
        (lambda: AngleResnet(C_S, C, BLOCKS, ANGLES, -1), ValueError, "epsilon must be positive"),
    ):
        with pytest.raises(error, match=said):
            call()
