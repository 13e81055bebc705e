"""The heads against their definitions, row by row, and what OpenFold's checkpoints need."""

import pytest
import torch

from paperops.models.alphafold2 import (
    PerResidueLDDTCaPredictor,
    TMScoreHead,
    compute_plddt,
    compute_predicted_aligned_error,
)
from paperops.testing.values import load_random, random

C, HIDDEN, BINS = 9, 5, 7
PLDDT = {
    "layer_norm.weight": (C,), "layer_norm.bias": (C,), "linear_1.weight": (HIDDEN, C), "linear_1.bias": (HIDDEN,),
    "linear_2.weight": (HIDDEN, HIDDEN), "linear_2.bias": (HIDDEN,), "linear_3.weight": (BINS, HIDDEN),
    "linear_3.bias": (BINS,),
}  # fmt: skip
ALIGNED = {"linear.weight": (BINS, C), "linear.bias": (BINS,)}


def gradients(results, inputs):
    return torch.autograd.grad(results, inputs, [random(*value.shape, seed=9) for value in results])


def test_plddt_is_algorithm_29():
    module = PerResidueLDDTCaPredictor(BINS, C, HIDDEN)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == PLDDT
    state, s = load_random(module, PLDDT), random(2, 4, C, seed=20).requires_grad_()
    logits, scores = [], []
    for row in s.flatten(0, 1):
        centred = row - row.mean()
        a = centred / torch.sqrt((centred**2).mean() + 1e-5) * state["layer_norm.weight"] + state["layer_norm.bias"]
        for name in ("linear_1", "linear_2"):
            a = state[f"{name}.weight"] @ a + state[f"{name}.bias"]
            a = a * (a > 0)
        out = state["linear_3.weight"] @ a + state["linear_3.bias"]
        logits.append(out)
        powers = [torch.exp(value) for value in out]
        scores.append(sum(power * (100 / BINS) * (number + 0.5) for number, power in enumerate(powers)) / sum(powers))
    expected = [torch.stack(logits).reshape(2, 4, BINS), torch.stack(scores).reshape(2, 4)]
    found = [module(s), compute_plddt(module(s))]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = gradients(found, [s, *module.parameters()])
    right = gradients(expected, [s, *(state[name] for name, _ in module.named_parameters())])
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


def test_aligned_error_is_the_definition():
    module = TMScoreHead(C, BINS)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == ALIGNED
    state, z = load_random(module, ALIGNED), random(2, 3, 3, C, seed=21).requires_grad_()
    logits, errors = [], []
    for row in z.flatten(0, 2):
        out = state["linear.weight"] @ row + state["linear.bias"]
        powers = [torch.exp(value) for value in out]
        edges = [10 / (BINS - 2) * number for number in range(BINS + 1)]  # AlphaFold2: 10 / (bins - 2) wide each
        centres = [(low + high) / 2 for low, high in zip(edges[:-1], edges[1:], strict=True)]
        logits.append(out)
        errors.append(sum(power * centre for power, centre in zip(powers, centres, strict=True)) / sum(powers))
    expected = [torch.stack(logits).reshape(2, 3, 3, BINS), torch.stack(errors).reshape(2, 3, 3)]
    given = module(z)
    result = compute_predicted_aligned_error(given, max_bin=10, no_bins=BINS)
    torch.testing.assert_close(result.probabilities, torch.softmax(given, -1))
    torch.testing.assert_close(result.max_error, torch.tensor(13.0, dtype=torch.float64))
    found = [given, result.error]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = gradients(found, [z, *module.parameters()])
    right = gradients(expected, [z, *(state[name] for name, _ in module.named_parameters())])
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


def test_openfold_sizes_and_initial_values():
    plddt, aligned = PerResidueLDDTCaPredictor(50, 384, 128), TMScoreHead(128, 64)
    assert sum(p.numel() for p in plddt.parameters()) == 768 + 385 * 128 + 129 * 128 + 129 * 50
    logits = plddt(torch.randn(3, 384))
    assert not logits.any() and not aligned(torch.randn(4, 4, 128)).any()
    torch.testing.assert_close(compute_plddt(logits), torch.full((3,), 50.0))
    torch.testing.assert_close(compute_predicted_aligned_error(torch.zeros(2, 2, 64)).error, torch.full((2, 2), 16.0))


def test_half_precision_compile_and_nothing():
    plddt, aligned = PerResidueLDDTCaPredictor(50, C, HIDDEN), TMScoreHead(C, 64)
    torch.nn.init.normal_(plddt.linear_3.weight)
    s, z = torch.randn(2, 6, C), torch.randn(2, 6, 6, C)

    def both(s, z):
        return compute_plddt(plddt(s)), compute_predicted_aligned_error(aligned(z)).error

    exact = both(s, z)
    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(s, z), exact)
    with torch.autocast("cpu", torch.bfloat16):
        inside = both(s, z)
    assert all(value.dtype == torch.float32 for value in inside)
    torch.testing.assert_close(inside[0], exact[0], rtol=0, atol=1.0)
    assert [tuple(value.shape) for value in both(s[:, :0], z[:, :0, :0])] == [(2, 0), (2, 0, 0)]


def test_refused():
    plddt, aligned, logits = PerResidueLDDTCaPredictor(BINS, C, HIDDEN), TMScoreHead(C, BINS), torch.zeros(3, 3, BINS)
    for call, error, said in (
        (lambda: plddt(torch.zeros(3, 4)), ValueError, r"s must have shape \[\*, 9\], c_in = 9 channels; got \[3, 4\]"),
        (lambda: plddt(torch.zeros(3, C).half()), TypeError, "s of torch.float16 does not go with parameters of"),
        (lambda: aligned(torch.zeros(3, 4, C)), ValueError, r"z must be square in its pair dimensions"),
        (lambda: aligned(torch.zeros(3, 3, 4)), ValueError, r"z must have shape \[\*, 9\], c_z = 9 channels"),
        (lambda: aligned(torch.zeros(3, 3, C).double()), TypeError, "z of torch.float64 does not go with"),
        (lambda: PerResidueLDDTCaPredictor(0, C, HIDDEN), ValueError, "no_bins must be at least 1"),
        (lambda: TMScoreHead(C, 2.5), TypeError, "no_bins must be an int"),
        (lambda: compute_plddt(logits.long()), TypeError, "logits must have a floating dtype; got torch.int64"),
        (lambda: compute_plddt(logits[..., :0]), ValueError, r"logits must have shape \[\*, bins\], of 1 bin at least"),
        (lambda: compute_plddt(None), TypeError, "logits must be a torch.Tensor"),
        (
            lambda: compute_predicted_aligned_error(logits),
            ValueError,
            r"logits must have shape \[\*, N, N, 64\]; got \[3, 3, 7\]",
        ),
        (lambda: compute_predicted_aligned_error(logits, no_bins=2), ValueError, "no_bins must be at least 3; got 2"),
        (lambda: compute_predicted_aligned_error(logits, max_bin=-1), ValueError, "max_bin must be positive"),
    ):
        with pytest.raises(error, match=said):
            call()
