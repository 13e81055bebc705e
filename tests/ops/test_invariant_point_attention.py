"""What is particular to invariant point attention, beyond the generic checks."""

import math

import pytest
import torch
from paperops.benchmarks import memory

import paperops
from paperops import backends, reference
from paperops.geometry import Frames
from paperops.testing.invariant_point_attention import DIFFERENTIABLE, attention_arguments
from paperops.testing.targets import targets

CPU = torch.device("cpu")
# The family has no CUDA C++.
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)
kernels = pytest.mark.parametrize("target", targets("cuda", "reference"), ids="-".join)
SMALL = (1, 7, 3, 4, 2, 5, 6)  # batch, residues, heads, channels, query points, value points, channels of z


def arguments(target, sizes=SMALL, dtype=torch.float64, bias="bias_weight"):
    return attention_arguments(sizes, torch.device(target[0]), dtype, bias)


def attention(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.invariant_point_attention(**given)


def gradients(target, **given):
    """The results, and the gradients of fixed random cotangents, by name."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in DIFFERENTIABLE if name in given}
    results = attention(target, **{**given, **leaves})
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results]
    found = torch.autograd.grad(results, list(leaves.values()), cotangents)
    return tuple(result.detach() for result in results), dict(zip(leaves, found, strict=True))


# --- the algorithm, term by term -------------------------------------------------------------------------------------


def softmax(values):
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("bias", ["bias", "bias_weight"])
def test_reference_is_algorithm_22(bias):
    """With Python's own numbers, one at a time."""
    g = arguments(("cpu", ""), bias=bias)
    n, h, c, pq, pv, cz = SMALL[1:]
    frames = Frames(g["rotations"], g["translations"])
    q, k, v, z = (g[name][0].tolist() for name in ("q", "k", "v", "z"))
    q_points, k_points, v_points = (
        frames.apply(g[name])[0].tolist() for name in ("q_points", "k_points", "v_points")
    )  # fmt: skip
    gamma = [math.log(1 + math.exp(value)) for value in g["head_weights"].tolist()]
    w_l, w_c = math.sqrt(1 / 3), math.sqrt(2 / (9 * pq))
    found = reference.invariant_point_attention(**g)
    for i in range(n):
        for head in range(h):
            logits = []
            for j in range(n):
                content = sum(q[i][head][x] * k[j][head][x] for x in range(c)) / math.sqrt(c)
                if bias == "bias":
                    b = float(g["bias"][0, i, j, head])
                else:
                    weight = g["bias_weight"][head].tolist()
                    b = sum(weight[x] * z[i][j][x] for x in range(cz)) + float(g["bias_bias"][head])
                distance = sum(
                    (q_points[i][head][p][x] - k_points[j][head][p][x]) ** 2 for p in range(pq) for x in range(3)
                )
                logits.append(w_l * (content + b - gamma[head] * w_c / 2 * distance))
            a = softmax(logits)
            o = [sum(a[j] * v[j][head][x] for j in range(n)) for x in range(c)]
            assert o == pytest.approx(found.o[0, i, head].tolist(), abs=1e-12)
            o_pair = [sum(a[j] * z[i][j][x] for j in range(n)) for x in range(cz)]
            assert o_pair == pytest.approx(found.o_pair[0, i, head].tolist(), abs=1e-12)
            for p in range(pv):
                reached = [sum(a[j] * v_points[j][head][p][x] for j in range(n)) for x in range(3)]
                local = frames.rotations[0, i].T @ (
                    torch.tensor(reached, dtype=torch.float64) - frames.translations[0, i]
                )
                assert local.tolist() == pytest.approx(found.o_points[0, i, head, p].tolist(), abs=1e-12)
                norm = math.sqrt(float(local @ local) + 1e-8)
                assert norm == pytest.approx(float(found.o_point_norms[0, i, head, p]), abs=1e-12)


# --- invariance ----------------------------------------------------------------------------------------------------


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moving_everything_changes_nothing(target, dtype):
    """A global rotation and a translation of 300 units.

    A global coordinate x is known to eps |x| / 2 after them, which nothing can undo. A squared distance r^2 is then off
    by 2 r eps |x|, and a logit by that times 3 Pq terms' weight gamma w_C w_L / 2; weights, results and gradients of
    order one by as much, sums of several such by a few times it. That is the bound; points themselves are off by
    eps |x|.
    """
    given = arguments(target, (1, 24, 4, 8, 4, 6, 16), dtype)
    turn = Frames.from_quaternion(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    turn = Frames(turn.rotations, torch.tensor([173.0, -173.0, 173.0], dtype=torch.float64))  # 300 units
    frames = Frames(given["rotations"].double(), given["translations"].double())
    moved = turn.compose(frames)
    there = given | {"rotations": moved.rotations.to(dtype), "translations": moved.translations.to(dtype)}
    here_results, here = gradients(target, **given)
    there_results, found = gradients(target, **there)

    size = torch.finfo(dtype).eps * float(moved.translations.abs().max())
    spread = float(torch.cdist(frames.translations[0], frames.translations[0]).max()) + 6
    weight = float(torch.nn.functional.softplus(given["head_weights"]).max()) * math.sqrt(2 / 36) * math.sqrt(1 / 3) / 2
    bound = 2 * spread * size * 12 * weight + size
    for one, other in zip(here_results, there_results, strict=True):
        assert (one - other).abs().max() < 4 * bound * max(1, float(one.abs().max()))
    # The gradients of frames turn with them.
    turned = turn.rotations.to(here["translations"])
    expected = here | {
        "translations": here["translations"] @ turned.T,
        "rotations": torch.einsum("xy,bnyz->bnxz", turned, here["rotations"]),
    }
    for name, gradient in expected.items():
        if name == "rotations":  # only what is tangent to rotations is invariant: R^T dR less its symmetric part
            one, other = (
                r.to(dtype).mT @ g
                for r, g in ((there["rotations"], gradient), (there["rotations"], found["rotations"]))
            )
            gradient, value = one - one.mT, other - other.mT
        else:
            value = found[name]
        assert (gradient - value).abs().max() < 16 * bound * max(1, float(gradient.abs().max())), name


@backend
def test_a_mirror_image_differs(target):
    given = arguments(target)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)).to(target[0])
    mirrored = given | {"translations": given["translations"] @ mirror}
    assert (attention(target, **given).o - attention(target, **mirrored).o).abs().max() > 1e-3


@kernels
def test_permuting_residues_permutes_the_results(target):
    given = arguments(target)
    order = torch.randperm(SMALL[1], generator=torch.Generator().manual_seed(0)).to(target[0])
    names = ("q", "k", "v", "q_points", "k_points", "v_points", "rotations", "translations")
    permuted = given | {name: given[name][:, order] for name in names} | {"z": given["z"][:, order][:, :, order]}
    for one, other in zip(attention(target, **given), attention(target, **permuted), strict=True):
        torch.testing.assert_close(one[:, order], other, rtol=1e-10, atol=1e-12)


# --- masks -----------------------------------------------------------------------------------------------------------


@backend
def test_a_masked_key_does_not_exist(target):
    """The results of the residues that are there are those of a call without the others, which may hold anything."""
    given = arguments(target)
    keep = torch.tensor([0, 2, 3, 6], device=target[0])
    mask = torch.zeros(1, SMALL[1], dtype=torch.bool, device=target[0])
    mask[:, keep] = True
    names = ("q", "k", "v", "q_points", "k_points", "v_points", "rotations", "translations")
    fewer = given | {name: given[name][:, keep] for name in names} | {"z": given["z"][:, keep][:, :, keep]}
    given["k"][:, 1] = 1e6
    expected = attention(target, **fewer)
    for value in (mask, mask.double(), 0.3 * mask.double()):
        results = attention(target, **given, mask=value)
        for one, other in zip(expected, results, strict=True):
            torch.testing.assert_close(one, other[:, keep], rtol=1e-10, atol=1e-12)
            assert not other[:, [1, 4, 5]].any()


@backend
def test_what_a_masked_residue_holds_does_not_matter(target):
    """NaN and infinities in everything of it but z: values and gradients of the others are finite and the same."""
    given, mask = arguments(target), torch.tensor([[1, 0, 1, 1, 0, 1, 1]]).bool().to(target[0])
    expected, gradient = gradients(target, **given, mask=mask)
    for value in (float("nan"), float("inf"), 1e6):
        there = dict(given)
        for name in ("q", "k", "v", "q_points", "k_points", "v_points", "rotations", "translations"):
            there[name] = given[name].clone()
            there[name][:, ~mask[0]] = value
        results, found = gradients(target, **there, mask=mask)
        for one, other in zip(expected, results, strict=True):
            assert torch.equal(one, other)
        for name, other in gradient.items():
            assert torch.equal(other, found[name]), name


@kernels
def test_weights_of_large_logits_sum_to_one(target):
    """In the backward pass too: the logsumexp of logits near 1e5 is rounded to 1/128."""
    given = arguments(target, (1, 9, 2, 4, 2, 2, 6), torch.float32) | {"finite_mask": True}
    given["mask"] = torch.tensor([[1] * 8 + [0]], dtype=torch.bool, device=target[0])
    v = given["v"].clone().requires_grad_()
    o = attention(target, **(given | {"v": v})).o
    for i in (0, 8):
        (gradient,) = torch.autograd.grad(o[0, i, 0, 0], v, retain_graph=True)
        assert float(gradient[0, :, 0, 0].sum()) == pytest.approx(1, abs=1e-2 if target[1] == "triton" else 1e-6)


@backend
def test_a_masked_query_gives_nothing_and_gets_nothing(target):
    given = arguments(target)
    for mask in (torch.tensor([[1, 0, 1, 1, 0, 1, 1]]), torch.zeros(1, SMALL[1])):
        gone = (mask == 0)[0]
        results, found = gradients(target, **given, mask=mask.bool().to(target[0]))
        assert not any(result[:, gone].any() for result in results)
        for name in ("q", "k", "v", "q_points", "k_points", "v_points", "rotations", "translations", "z"):
            assert found[name].isfinite().all() and not found[name][:, gone].any(), name
        assert not found["z"][:, :, gone].any()


@backend
def test_finite_mask_is_that_of_alphafold2(target):
    """Every logit of a masked query is 1e5 less: it attends to everything as if there were no mask."""
    given = arguments(target)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1]], device=target[0])
    free = attention(target, **given)
    finite = attention(target, **given, mask=mask.double(), finite_mask=True)
    strict = attention(target, **given, mask=mask.double())
    gone = (mask == 0)[0]
    for one, two, three in zip(free, finite, strict, strict=True):
        torch.testing.assert_close(one[:, gone], two[:, gone], rtol=1e-9, atol=1e-9)  # of logits near 1e5
        torch.testing.assert_close(two[:, ~gone], three[:, ~gone])
    weak = attention(target, **given, mask=mask.double(), finite_mask=True, inf=1e-9)
    torch.testing.assert_close(tuple(weak), tuple(free), rtol=1e-7, atol=1e-7)


# --- precision and size ----------------------------------------------------------------------------------------------


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_points_beside_halves(target, dtype):
    """Coordinates keep float32's digits beside 16-bit z, under autocast too, 200 units from the origin."""
    given = arguments(target, (1, 24, 4, 8, 4, 6, 16), dtype)
    given["translations"] = given["translations"] + 200
    assert given["q_points"].dtype == torch.float32
    exact = reference.invariant_point_attention(**{name: value.double() for name, value in given.items()})
    results = attention(target, **given)
    with torch.autocast(target[0], dtype):
        inside = attention(target, **{name: v.float() if v.dtype == dtype else v for name, v in given.items()})
    for one, two, right in zip(results, inside, exact, strict=True):
        assert torch.equal(one, two) and one.dtype == two.dtype
        eps = torch.finfo(one.dtype).eps
        torch.testing.assert_close(one.double(), right, rtol=0, atol=(eps + 4e-4) * float(right.abs().max()))
    assert results.o.dtype == results.o_pair.dtype == dtype and results.o_points.dtype == torch.float32


@pytest.mark.skipif(backends.missing("native", "cpu") is not None, reason="no native library")
def test_memory():
    """Beyond inputs and results: nothing that grows as N^2 in the forward pass, and dz alone in the backward pass."""
    peaks = []
    for n in (256, 512):
        given = attention_arguments((1, n, 12, 16, 4, 8, 128), CPU, torch.float32)
        leaves = {name: value.requires_grad_() for name, value in given.items()}

        def forward(given=given):
            with torch.no_grad(), paperops.use_backend("native"):
                return paperops.invariant_point_attention(**given)

        def both(leaves=leaves):
            with paperops.use_backend("native"):
                results = paperops.invariant_point_attention(**leaves)
            return torch.autograd.grad([result.sum() for result in results], list(leaves.values()))

        forward(), both()
        results = sum(result.numel() for result in forward()) * 4
        z = given["z"].numel() * 4
        peaks.append((memory.peak(forward, CPU) - results, memory.peak(both, CPU) - z))
    (small, small_both), (large, large_both) = peaks
    assert large < 3 * small + 1e6, peaks  # linear in N
    assert large_both < 3 * small_both + 1e6, peaks


def test_finite_mask_must_be_finite_in_the_dtype():
    given = arguments(("cpu", ""), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"inf must be at most 3.403e\+38, the largest of torch.float32; got 1e\+39"):
        paperops.invariant_point_attention(**given, inf=1e39, finite_mask=True)
