"""What is particular to the frame aligned point error, beyond the generic checks."""

import math

import pytest
import torch
from paperops.benchmarks import memory
from paperops.benchmarks.peers import torch_eager
from torch.utils._python_dispatch import TorchDispatchMode

import paperops
from paperops import backends, reference
from paperops.geometry import Frames
from paperops.testing.frame_aligned_point_error import CHAINS, PREDICTED, WEIGHTS, error_arguments
from paperops.testing.targets import fast_targets, targets

CPU = torch.device("cpu")
# The family has no CUDA C++.
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)
kernels = pytest.mark.parametrize("target", targets("cuda", "reference"), ids="-".join)
fast = pytest.mark.parametrize("target", fast_targets("cuda"), ids="-".join)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
native_only = pytest.mark.skipif(backends.missing("native", "cpu") is not None, reason="no native library")


def arguments(target, frames=7, points=11, dtype=torch.float64, batch=1):
    return error_arguments(batch, frames, points, torch.device(target[0]), dtype)


def fape(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.frame_aligned_point_error(**given)


def terms(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.frame_aligned_point_error_terms(**given)


def gradients(target, names=PREDICTED, function=fape, **given):
    """The loss, and its gradients by name."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in names}
    with paperops.use_backend(target[1]):
        loss = function(target, **{**given, **leaves})
        loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach(), dict(zip(leaves, found, strict=True))


# --- the algorithm, term by term -------------------------------------------------------------------------------------


def in_frame(rotation, translation, point):
    """T^-1 o x, with Python's own numbers."""
    v = [point[k] - translation[k] for k in range(3)]
    return [sum(rotation[k][i] * v[k] for k in range(3)) for i in range(3)]


def errors(g, eps=1e-8):
    """d_fp of the first sample, as lists."""
    lists = {name: value[0].tolist() for name, value in g.items() if isinstance(value, torch.Tensor)}
    found = []
    for f in range(len(lists["frames_mask"])):
        row = []
        for p in range(len(lists["positions_mask"])):
            pred, target = (
                in_frame(lists[f"{kind}_rotations"][f], lists[f"{kind}_translations"][f], lists[f"{kind}_positions"][p])
                for kind in ("pred", "target")
            )
            row.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(pred, target, strict=True)) + eps))
        found.append(row)
    return found


@backend
@pytest.mark.parametrize("clamp", [None, 2.0])
@pytest.mark.parametrize("pairs", [False, True])
def test_is_algorithm_28(target, clamp, pairs):
    g = arguments(target)
    generator = torch.Generator().manual_seed(0)
    m_f, m_p, m_fp = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((7,), (11,), (7, 11)))
    m_f[2], m_p[5] = 0, 0
    d, eps, scale = errors(g), 1e-8, 3.0
    total = norm = 0.0
    for f in range(7):
        for p in range(11):
            weight = float(m_f[f] * m_p[p] * (m_fp[f, p] if pairs else 1))
            total += weight * min(d[f][p], math.inf if clamp is None else clamp) / scale
            norm += weight
    expected = total / (eps + norm) if pairs else total / (eps + float(m_f.sum())) / (eps + float(m_p.sum()))
    given = {"frames_mask": m_f[None], "positions_mask": m_p[None]} | ({"pair_mask": m_fp[None]} if pairs else {})
    given = {name: value.to(target[0]) for name, value in given.items()}
    found = fape(target, **g | given, length_scale=scale, l1_clamp_distance=clamp)
    assert float(found) == pytest.approx(expected, rel=1e-13)


@backend
def test_terms_are_four_errors(target):
    """Each term is the error of a pair mask of its own; the loss is their weighted sum, and so is its gradient."""
    g = arguments(target, 9, 14, batch=3)
    chains = {name: torch.arange(g[mask].shape[1]).expand(3, -1) % 3 for name, mask in
              zip(CHAINS, ("frames_mask", "positions_mask"), strict=True)}  # fmt: skip
    chains = {name: value.to(target[0]) for name, value in chains.items()}
    same = (chains["frame_chains"][..., None] == chains["position_chains"][:, None]).double()
    weights = dict(zip(WEIGHTS, torch.rand(4, 3, dtype=torch.float64).to(target[0]), strict=True))
    settings = {"l1_clamp_distance": 1.5, "between_l1_clamp_distance": 2.5, "length_scale": 2.0}
    found, gradient = gradients(target, function=terms, **g, **chains, **weights, **settings)
    all_terms = terms(target, **g, **chains, **weights, **settings)
    loss, by_hand = 0, dict.fromkeys(PREDICTED, 0)
    for number, (pairs, clamp, scale) in enumerate(
        [(same, 1.5, 2.0), (same, None, 2.0), (1 - same, 2.5, 20.0), (1 - same, None, 20.0)]
    ):
        weight = weights[WEIGHTS[number]]
        alone = {"pair_mask": pairs, "l1_clamp_distance": clamp, "length_scale": scale}
        term, parts = gradients(target, **g, **alone)
        torch.testing.assert_close(all_terms[1 + number], term)
        loss = loss + weight * term
        for name, part in parts.items():
            by_hand[name] = by_hand[name] + weight.reshape(-1, *(1,) * (part.dim() - 1)) * part
    torch.testing.assert_close(found, loss)
    for name, expected in by_hand.items():
        torch.testing.assert_close(gradient[name], expected)
    assert not any(term.requires_grad for term in all_terms[1:])


@backend
def test_terms_without_chains_are_the_error_without_a_pair_mask(target):
    """AlphaFold2's backbone loss: clamped in some samples, in others not."""
    g = arguments(target, 9, 14, batch=2)
    clamped = torch.tensor([1.0, 0.0], dtype=torch.float64, device=target[0])
    found = terms(target, **g, clamped_weight=clamped, unclamped_weight=1 - clamped, l1_clamp_distance=1.0)
    one, other = fape(target, **g, l1_clamp_distance=1.0), fape(target, **g)
    torch.testing.assert_close(found.loss, torch.stack([one[0], other[1]]))
    torch.testing.assert_close((found.clamped, found.unclamped), (one, other))
    assert not found.between_clamped.any() and not found.between_unclamped.any()


# --- invariance ----------------------------------------------------------------------------------------------------


@backend
@dtypes
def test_moving_the_prediction_changes_nothing(target, dtype):
    """By a global rotation and 300 units.

    Coordinates are then known to eps 300 / 2 each, a difference of two of them to eps 300, and its length to sqrt(3)
    times that; a rotation matrix that is rounded turns a point at a distance r by up to sqrt(3) eps r more. A mean of
    distances, each a difference of two such points (one of them not moved), is off by no more than one of them, and
    the gradient of a distance is a unit vector, off by that in units of the distance: here 1 at the least.
    """
    g = arguments(target, 24, 60, dtype)
    turn = Frames.from_quaternion(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    turn = Frames(turn.rotations, torch.tensor([173.0, -173.0, 173.0], dtype=torch.float64))
    turn = Frames(turn.rotations.to(target[0]), turn.translations.to(target[0]))
    frames = turn.compose(Frames(g["pred_rotations"].double(), g["pred_translations"].double()))
    moved = g | {
        "pred_rotations": frames.rotations.to(dtype),
        "pred_translations": frames.translations.to(dtype),
        "pred_positions": turn.apply(g["pred_positions"].double()).to(dtype),
    }
    here, by = gradients(target, **g, length_scale=1.0)
    there, moved_by = gradients(target, **moved, length_scale=1.0)
    eps = torch.finfo(dtype).eps
    reach = float((g["pred_positions"][:, None] - g["pred_translations"][:, :, None]).norm(dim=-1).max())
    bound = math.sqrt(3) * eps * (300 + 2 * reach)
    assert abs(float(here - there)) < bound
    # A gradient is a mean of unit vectors, and turns with the prediction.
    turned = {name: by[name].double() @ turn.rotations.mT for name in ("pred_translations", "pred_positions")}
    shortest = float(min(min(row) for row in errors(g)))
    for name, expected in turned.items():
        count = expected.shape[1]
        assert (expected - moved_by[name]).abs().max() * count < 2 * bound / shortest + 4 * eps, name


@backend
def test_a_mirror_image_differs(target):
    """A mirrored structure has the same distances, but not in right-handed frames."""
    g = arguments(target)
    g |= {name: g[name.replace("pred", "target")] for name in PREDICTED}
    assert float(fape(target, **g)) == pytest.approx(1e-4 / 10)  # sqrt(eps) / length_scale
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)).to(target[0])
    points = g["pred_positions"][:, :9].reshape(1, 3, 3, 3).unbind(2)
    true, mirrored = (Frames.from_three_points(*(p @ m for p in points)) for m in (torch.eye(3).to(mirror), mirror))
    image = g | {
        "target_rotations": true.rotations,
        "target_translations": true.translations,
        "frames_mask": g["frames_mask"][:, :3],
        "pred_rotations": mirrored.rotations,
        "pred_translations": mirrored.translations,
        "pred_positions": g["pred_positions"] @ mirror,
    }
    assert float(fape(target, **image)) > 0.1


@backend
def test_leading_dimensions_broadcast(target):
    """Several blocks of one structure against one target, as in a structure module's loss."""
    g = arguments(target, 6, 10, batch=4)
    blocks = {name: value.reshape(2, 2, *value.shape[1:]) for name, value in g.items() if name in PREDICTED}
    rest = {name: value[:2] for name, value in g.items() if name not in PREDICTED}
    rest["positions_mask"] = rest["positions_mask"][0]
    found, by = gradients(target, **blocks, **rest)
    assert found.shape == (2, 2)
    for block in range(2):
        one = {name: value[block] for name, value in blocks.items()}
        mask = rest["positions_mask"].expand(2, -1)
        expected, alone = gradients(target, **one, **rest | {"positions_mask": mask})
        assert torch.equal(found[block], expected)
        assert all(torch.equal(by[name][block], alone[name]) for name in PREDICTED)
    single = {name: value[0] for name, value in g.items()}
    assert torch.equal(fape(target, **single), fape(target, **g)[0])


# --- gradients -----------------------------------------------------------------------------------------------------


@backend
def test_targets_take_gradients(target):
    """The error is symmetric: a target's gradient is the prediction's with the roles swapped. And all at once."""
    g = arguments(target, 6, 10, batch=2)
    swapped = {name.replace("pred", "tar_get").replace("target", "pred").replace("tar_get", "target"): value
               for name, value in g.items()}  # fmt: skip
    names = tuple(name.replace("pred", "target") for name in PREDICTED)
    _, found = gradients(target, names, **g, l1_clamp_distance=2.0)
    _, expected = gradients(target, **swapped, l1_clamp_distance=2.0)
    _, together = gradients(target, PREDICTED + names, **g, l1_clamp_distance=2.0)
    _, of_prediction = gradients(target, **g, l1_clamp_distance=2.0)
    for name in PREDICTED:
        other = name.replace("pred", "target")
        torch.testing.assert_close(found[other], expected[name])
        assert torch.equal(together[other], found[other]) and torch.equal(together[name], of_prediction[name])


class Passes(TorchDispatchMode):
    """Notes each pass over the pairs: what it gives."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.paperops.frame_aligned_point_error.default:
            self.passes.append("loss and gradients" if args[-1] else "loss")
        elif op is torch.ops.paperops.frame_aligned_point_error_backward.default:
            self.passes.append("gradients")
        return op(*args, **(kwargs or {}))


def test_training_takes_one_pass():
    """And no gradients are computed where none are asked for; those of a target take one pass more."""
    g, target = arguments(("cpu", ""), 5, 6), ("cpu", "reference")
    with Passes() as seen:
        fape(target, **g)
    assert seen.passes == ["loss"]
    with Passes() as seen, torch.no_grad():
        fape(target, **g | {"pred_positions": g["pred_positions"].clone().requires_grad_()})
    assert seen.passes == ["loss"]
    for function in (fape, terms):
        with Passes() as seen:
            gradients(target, function=function, **g)
        assert seen.passes == ["loss and gradients"]
    with Passes() as seen:
        gradients(target, ("pred_positions", "target_positions"), **g)
    assert seen.passes == ["loss and gradients", "gradients"]


@backend
def test_clamped_pairs_have_no_gradient(target):
    g = arguments(target)
    loss, found = gradients(target, **g, l1_clamp_distance=1e-5)
    assert float(loss) == pytest.approx(1e-6)
    assert not any(value.any() for value in found.values())


@backend
@pytest.mark.parametrize("step", [0.0, 1e-2, 1e-4, 1e-6, 1e-12, 1e-30])
def test_near_distance_zero(target, step):
    """The root's eps keeps value and gradient finite: d = sqrt(step^2 + eps), d' = step / d."""
    g = arguments(target, 1, 1)
    g |= {name: torch.zeros_like(value) for name, value in g.items() if name.endswith(("translations", "positions"))}
    g["target_rotations"] = g["pred_rotations"] = torch.eye(3, dtype=torch.float64, device=target[0])[None, None]
    g["pred_positions"] = torch.tensor([[[step, 0, 0]]], dtype=torch.float64, device=target[0])
    loss, found = gradients(target, **g, length_scale=1.0)
    length = math.sqrt(step**2 + 1e-8)
    assert float(loss) == pytest.approx(length, rel=1e-7)  # of 1 / (1 + eps)^2
    assert float(found["pred_positions"][0, 0, 0]) == pytest.approx(step / length, rel=1e-7)
    assert all(value.isfinite().all() for value in found.values())


@backend
def test_what_is_masked_does_not_matter(target):
    """Values and gradients of the rest are those of a call without it, and its own gradients are 0."""
    g = arguments(target, 9, 13)
    kept = {"frames_mask": torch.tensor([0, 1, 3, 4, 8]), "positions_mask": torch.tensor([0, 2, 3, 7, 11, 12])}
    fewer, there = dict(g), dict(g)
    for mask, index in kept.items():
        kind = mask.split("_")[0]
        index = index.to(target[0])
        there[mask] = torch.zeros_like(g[mask]).index_fill(1, index, 1)
        for name, value in g.items():
            if name == mask or (name.endswith("positions") == (kind == "positions") and not name.endswith("mask")):
                fewer[name] = value[:, index]
                if name != mask:
                    there[name] = torch.full_like(value, math.nan).index_copy(1, index, value[:, index])
    expected, by = gradients(target, **fewer)
    for change in (lambda mask: mask, lambda mask: mask.bool(), lambda mask: mask.float()):
        found, of = gradients(target, **{n: change(v) if n.endswith("mask") else v for n, v in there.items()})
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
        for name in PREDICTED:
            index = kept["positions_mask" if name.endswith("positions") else "frames_mask"].to(target[0])
            torch.testing.assert_close(of[name][:, index], by[name], rtol=1e-11, atol=1e-15)
            assert not of[name].index_fill(1, index, 0).any()


@backend
def test_nan_in_what_is_there_shows(target):
    g = arguments(target)
    g["pred_positions"] = g["pred_positions"].index_fill(1, torch.tensor([4], device=target[0]), math.nan)
    assert fape(target, **g, l1_clamp_distance=1.0).isnan().all()


# --- precision and size ----------------------------------------------------------------------------------------------


@fast
def test_sums_keep_their_digits(target):
    """Of 13 million pairs, all alike, float32 gives the value of one."""
    g = arguments(target, 2400, 5600, torch.float32)
    zeros = {name: torch.zeros_like(value) for name, value in g.items() if name.endswith(("translations", "positions"))}
    rotations = torch.eye(3, device=target[0]).expand(1, 2400, 3, 3)
    g |= zeros | {"pred_rotations": rotations, "target_rotations": rotations}
    g["pred_positions"] = g["pred_positions"] + torch.tensor([0.1, 0.2, 0.3], device=target[0])
    exact = math.sqrt(0.14)
    loss, found = gradients(target, **g, length_scale=1.0)
    assert float(loss) == pytest.approx(exact, rel=4e-7)
    expected = torch.tensor([0.1, 0.2, 0.3]) / exact
    for name, sign, count in (("pred_positions", 1, 5600), ("pred_translations", -1, 2400)):
        torch.testing.assert_close(found[name][0].cpu() * sign * count, expected.expand(count, 3), rtol=1e-6, atol=0)


@native_only
def test_memory():
    """Of the size of frames and points: twice as many of both take twice as much, not four times."""
    peaks = []
    for n in (512, 1024):
        g = error_arguments(1, 8 * n, 14 * n, CPU, torch.float32)
        leaves = {name: value.requires_grad_(name in PREDICTED) for name, value in g.items()}

        def both(leaves=leaves):
            with paperops.use_backend("native"):
                loss = paperops.frame_aligned_point_error(**leaves, l1_clamp_distance=10.0)
            return torch.autograd.grad(loss.sum(), [leaves[name] for name in PREDICTED])

        both()
        peaks.append(memory.peak(both, CPU))
    small, large = peaks
    assert large < 3 * small, peaks
    pairs = 8 * 1024 * 14 * 1024
    assert large < pairs * 3 * 4 / 100, peaks  # one tensor of the definition's is [F, P, 3]


@native_only
@pytest.mark.slow
def test_more_pairs_than_an_int32_counts():
    """2.2e9 pairs: frames all alike have the gradients of one alone, the last ones too."""
    frames, points = 46400, 47000
    assert frames * points > 2**31
    g = error_arguments(1, 1, points, CPU, torch.float32)
    many = {name: v.expand(1, frames, *v.shape[2:]) if "positions" not in name else v for name, v in g.items()}
    few = gradients(("cpu", "native"), **g, l1_clamp_distance=2.0)
    loss, found = gradients(("cpu", "native"), **many, l1_clamp_distance=2.0)
    torch.testing.assert_close(loss, few[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["pred_positions"], few[1]["pred_positions"], rtol=1e-4, atol=1e-12)
    for name in ("pred_rotations", "pred_translations"):
        for frame in (0, frames - 1):
            torch.testing.assert_close(found[name][0, frame] * frames, few[1][name][0, 0], rtol=1e-4, atol=1e-7)


# --- what it is compared with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [None, 2.0])
def test_plain_torch_agrees(clamp):
    """The peer that the benchmarks time."""
    g = arguments(("cpu", ""), batch=2)
    pairs = (torch.rand(2, 7, 11, generator=torch.Generator().manual_seed(0)) > 0.4).double()
    for pair_mask in (None, pairs):
        given = g | {"pair_mask": pair_mask, "l1_clamp_distance": clamp}
        expected = reference.frame_aligned_point_error(**given)
        torch.testing.assert_close(torch_eager.frame_aligned_point_error(**given), expected)
    chains = {name: torch.arange(size).expand(2, -1) % 2 for name, size in zip(CHAINS, (7, 11), strict=True)}
    weights = dict.fromkeys(WEIGHTS, 0.25)
    found = torch_eager.frame_aligned_point_error_terms(**g, **chains, **weights)
    torch.testing.assert_close(found, tuple(reference.frame_aligned_point_error_terms(**g, **chains, **weights)))


@backend
def test_term_weights_of_a_single_sample(target):
    """[*] is [] without leading dimensions."""
    given = {name: value[0] for name, value in arguments(target).items() if isinstance(value, torch.Tensor)}
    share = torch.tensor(0.25, dtype=torch.float64)
    found = terms(target, **given, clamped_weight=share, unclamped_weight=1 - share)
    assert found.loss.shape == ()
    torch.testing.assert_close(found.loss, 0.25 * found.clamped + 0.75 * found.unclamped)


@backend
@pytest.mark.parametrize("name", ["frames_mask", "positions_mask"])
@pytest.mark.parametrize("chains", [False, True])
def test_infinite_weights_are_not_passed_over(target, name, chains):
    given = arguments(target)
    given[name] = given[name].clone()
    given[name][0, 0] = math.inf
    if chains:
        given["frame_chains"] = torch.arange(7, device=target[0])[None] % 2
        given["position_chains"] = torch.arange(11, device=target[0])[None] % 2
    assert not terms(target, **given).loss.isfinite()


def test_compiles_with_weights_that_change():
    """torch.compile makes a number that differs between calls symbolic."""
    torch.compiler.reset()
    given = arguments(("cpu", ""))
    function = torch.compile(
        lambda share: paperops.frame_aligned_point_error_terms(**given, clamped_weight=share).loss,
        fullgraph=True,
        backend="aot_eager",
    )
    for share in (1.0, 0.0, 0.25):
        right = paperops.frame_aligned_point_error_terms(**given, clamped_weight=share).loss
        torch.testing.assert_close(function(share), right)
