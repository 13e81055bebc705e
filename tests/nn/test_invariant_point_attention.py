"""The module against Algorithm 22, written from its parameters term by term, and what OpenFold's checkpoints need."""

import copy
import math
import pickle

import pytest
import torch

import paperops
from paperops.geometry import Frames
from paperops.nn import InvariantPointAttention
from paperops.testing.values import random

C_S, C_Z, C, H, PQ, PV = 10, 7, 4, 3, 2, 5
MONOMER = {
    "head_weights": (H,), "linear_q.weight": (H * C, C_S), "linear_q.bias": (H * C,),
    "linear_q_points.linear.weight": (H * PQ * 3, C_S), "linear_q_points.linear.bias": (H * PQ * 3,),
    "linear_kv.weight": (2 * H * C, C_S), "linear_kv.bias": (2 * H * C,),
    "linear_kv_points.linear.weight": (H * (PQ + PV) * 3, C_S), "linear_kv_points.linear.bias": (H * (PQ + PV) * 3,),
    "linear_b.weight": (H, C_Z), "linear_b.bias": (H,),
    "linear_out.weight": (C_S, H * (C_Z + C + 4 * PV)), "linear_out.bias": (C_S,),
}  # fmt: skip
MULTIMER = {
    "head_weights": (H,), "linear_q.weight": (H * C, C_S), "linear_k.weight": (H * C, C_S),
    "linear_v.weight": (H * C, C_S),
    "linear_q_points.linear.weight": (H * PQ * 3, C_S), "linear_q_points.linear.bias": (H * PQ * 3,),
    "linear_k_points.linear.weight": (H * PQ * 3, C_S), "linear_k_points.linear.bias": (H * PQ * 3,),
    "linear_v_points.linear.weight": (H * PV * 3, C_S), "linear_v_points.linear.bias": (H * PV * 3,),
    "linear_b.weight": (H, C_Z), "linear_b.bias": (H,),
    "linear_out.weight": (C_S, H * (C_Z + C + 4 * PV)), "linear_out.bias": (C_S,),
}  # fmt: skip


def made(multimer, **options):
    module = InvariantPointAttention(C_S, C_Z, C, H, PQ, PV, is_multimer=multimer, **options).double()
    shapes = MULTIMER if multimer else MONOMER
    state = {name: random(*shape, seed=number) / 3 for number, (name, shape) in enumerate(shapes.items())}
    module.load_state_dict(state, strict=True)
    return module


def inputs(n=6, leading=(1,)):
    frames = Frames.from_quaternion(random(*leading, n, 4, seed=20), random(*leading, n, 3, seed=21))
    return random(*leading, n, C_S, seed=22), random(*leading, n, n, C_Z, seed=23), *frames


def points_of(row, points, multimer):
    """The points [H][P][3] in a row of outputs of a point projection."""
    if multimer:  # (head, coordinate, point)
        return [[[row[h * 3 * points + x * points + p] for x in range(3)] for p in range(points)] for h in range(H)]
    return [[[row[x * H * points + h * points + p] for x in range(3)] for p in range(points)] for h in range(H)]


def algorithm_22(state, s, z, rotations, translations, mask, multimer):
    """One item: s [N][c_s] and so on. Differentiable, with nothing but sums of products of single rows."""

    def linear(name, x):
        y = state[f"{name}.weight"] @ x
        return y + state[f"{name}.bias"] if f"{name}.bias" in state else y

    n = len(s)
    q, k, v, qp, kp, vp = [], [], [], [], [], []
    for i in range(n):

        def to_global(points, i=i):
            return [[rotations[i] @ torch.stack(point) + translations[i] for point in head] for head in points]

        q.append(linear("linear_q", s[i]).reshape(H, C))
        qp.append(to_global(points_of(linear("linear_q_points.linear", s[i]), PQ, multimer)))
        if multimer:
            k.append(linear("linear_k", s[i]).reshape(H, C))
            v.append(linear("linear_v", s[i]).reshape(H, C))
            kp.append(to_global(points_of(linear("linear_k_points.linear", s[i]), PQ, True)))
            vp.append(to_global(points_of(linear("linear_v_points.linear", s[i]), PV, True)))
        else:
            kv = linear("linear_kv", s[i]).reshape(H, 2, C)
            k.append(kv[:, 0])
            v.append(kv[:, 1])
            both = to_global(points_of(linear("linear_kv_points.linear", s[i]), PQ + PV, False))
            kp.append([head[:PQ] for head in both])
            vp.append([head[PQ:] for head in both])
    w_l, w_c = math.sqrt(1 / 3), math.sqrt(2 / (9 * PQ))
    gamma = torch.log(1 + torch.exp(state["head_weights"]))
    rows = []
    for i in range(n):
        if mask is not None and not mask[i]:
            rows.append(torch.zeros(C_S, dtype=torch.float64))
            continue
        keys = [j for j in range(n) if mask is None or mask[j]]
        parts = {"o": [], "points": [], "norms": [], "pair": []}
        for h in range(H):
            logits = []
            for j in keys:
                distance = sum(((qp[i][h][p] - kp[j][h][p]) ** 2).sum() for p in range(PQ))
                b = linear("linear_b", z[i][j])[h]
                logits.append(w_l * (q[i][h] @ k[j][h] / math.sqrt(C) + b - gamma[h] * w_c / 2 * distance))
            powers = torch.exp(torch.stack(logits))
            a = dict(zip(keys, powers / powers.sum(), strict=True))
            parts["o"].append(sum(a[j] * v[j][h] for j in keys))
            parts["pair"].append(sum(a[j] * z[i][j] for j in keys))
            local = [rotations[i].T @ (sum(a[j] * vp[j][h][p] for j in keys) - translations[i]) for p in range(PV)]
            parts["points"] += local
            parts["norms"] += [torch.sqrt((point**2).sum() + 1e-8) for point in local]
        points = torch.stack(parts["points"])  # [H Pv, 3]
        row = [*parts["o"], points[:, 0], points[:, 1], points[:, 2], torch.stack(parts["norms"]), *parts["pair"]]
        rows.append(linear("linear_out", torch.cat(row)))
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("multimer", [False, True])
def test_values_and_gradients_are_the_algorithms(multimer, masked):
    module = made(multimer)
    leaves = [value.requires_grad_() for value in inputs()]
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]]).bool() if masked else None
    out = module(*leaves, mask)
    names = list(dict(module.named_parameters()))
    state = {name: value.detach().clone().requires_grad_() for name, value in module.state_dict().items()}
    expected = algorithm_22(state, *(value[0] for value in leaves), None if mask is None else mask[0], multimer)
    torch.testing.assert_close(out[0], expected, rtol=1e-11, atol=1e-11)
    cotangent = random(*out.shape, seed=30)
    found = torch.autograd.grad(out, [*leaves, *module.parameters()], cotangent)
    right = torch.autograd.grad(expected, [*leaves, *(state[name] for name in names)], cotangent[0])
    for name, one, other in zip(("s", "z", "rotations", "translations", *names), found, right, strict=True):
        if name == "linear_out.bias" and masked:  # the algorithm's masked rows are left out of the module's result
            other = cotangent[0][mask[0]].sum(0)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("multimer", [False, True])
def test_the_result_is_invariant(multimer):
    module, (s, z, *frames) = made(multimer), inputs()
    turn = Frames.from_quaternion(random(4), 300 * random(3))
    moved = turn.compose(Frames(*frames))
    torch.testing.assert_close(module(s, z, *frames), module(s, z, *moved), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shapes", [MONOMER, MULTIMER], ids=["monomer", "multimer"])
def test_openfold_state_dict(shapes):
    module = InvariantPointAttention(C_S, C_Z, C, H, PQ, PV, is_multimer=shapes is MULTIMER)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == shapes
    state = {name: random(*shape, seed=3).float() for name, shape in shapes.items()}
    older = {name.replace("_points.linear.", "_points."): value for name, value in state.items()}
    assert older.keys() != state.keys()
    assert module.load_state_dict(older, strict=True).missing_keys == []
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    assert all("_points.linear" not in name for name in older)  # the caller's own dictionary is left as it was
    with pytest.raises(RuntimeError, match='Unexpected key.*"linear_q_points.weight"'):
        module.load_state_dict({**state, **older}, strict=True)
    outer = torch.nn.ModuleDict({"ipa": module})
    outer.load_state_dict({f"ipa.{name}": value for name, value in older.items()}, strict=True)


def test_initialisation():
    torch.manual_seed(0)
    module = InvariantPointAttention(256, 128, 16, 12, 4, 8)
    assert torch.nn.functional.softplus(module.head_weights).allclose(torch.ones(12))
    assert not module.linear_out.weight.any() and not module.linear_out.bias.any()
    assert module.linear_kv.weight.detach().std() == pytest.approx(1 / 16, rel=0.02) and not module.linear_kv.bias.any()


def test_leading_dimensions_and_masks():
    module, given = made(False), inputs(5, (2, 3))
    mask = torch.tensor([1, 1, 0, 1, 1]).expand(2, 3, 5)
    out = module(*given, mask.double())
    assert out.shape == (2, 3, 5, C_S)
    for i in range(2):
        for j in range(3):
            one = module(*(value[i, j] for value in given), mask[i, j].bool())
            torch.testing.assert_close(out[i, j], one)
    assert not out[:, :, 2].any()
    finite = made(False, finite_mask=True, inf=1e5)(*given, mask.double())
    torch.testing.assert_close(finite[:, :, :2], out[:, :, :2])
    assert finite[:, :, 2].any()
    assert module(*inputs(0)).shape == (1, 0, C_S)


@pytest.mark.parametrize("multimer", [False, True])
def test_autocast_and_compile(multimer):
    module, given = made(multimer).float(), [value.float() for value in inputs(8)]
    exact = copy.deepcopy(module).double()(*(value.double() for value in given))
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(*given)
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside.double(), exact, rtol=0.05, atol=0.05)
    half = module.bfloat16()(*(value.bfloat16() for value in given[:2]), *given[2:])
    torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.1)
    module = module.float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaves = [value.clone().requires_grad_() for value in given]
    out = compiled(*leaves)
    torch.testing.assert_close(out, module(*leaves))
    torch.autograd.grad(out.sum(), leaves)


def test_copies_and_words():
    module, given = made(True), inputs()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(*given), module(*given))
    assert "no_heads=3" in repr(module) and "is_multimer=True" in repr(module)


def test_refused():
    module, (s, z, rotations, translations) = made(False), inputs()
    mask = torch.ones(1, 6)
    for given, error, said in (
        ((s[..., :4], z, rotations, translations), ValueError, r"s must have shape \[\*, 10\], c_s = 10 channels; got"),
        ((s, z[:, :3], rotations, translations), ValueError, "z must be square"),
        (
            (s, z[..., :3], rotations, translations),
            ValueError,
            r"z must have shape \[1, 6, 6, 7\] for s of \[1, 6, 10\]",
        ),
        ((s, z, rotations[..., :2], translations), ValueError, r"rotations must have shape \[\*, 3\]"),
        (
            (s, z, rotations[:, :3], translations[:, :3]),
            ValueError,
            r"rotations must have shape \[1, 6, 3, 3\] for s of",
        ),
        ((s, z, rotations, translations[:, :3]), ValueError, r"translations must have shape \[1, 6, 3\]"),
        ((s, z, rotations, translations, mask[:, :3]), ValueError, r"mask must have shape \[1, 6\]"),
        ((None, z, rotations, translations), TypeError, "s must be a torch.Tensor"),
        (
            (s.half(), z, rotations, translations),
            TypeError,
            "s of torch.float16 does not go with parameters of torch.float64",
        ),
        (
            (s, z, Frames(rotations, translations), mask),
            TypeError,
            r"got Frames: pass both of its tensors, as \*frames",
        ),
    ):
        with pytest.raises(error, match=said):
            module(*given)
    for options, error, said in (
        ({"no_heads": 0}, ValueError, "no_heads must be at least 1"),
        ({"c_hidden": 2.5}, TypeError, "c_hidden must be an int"),
        ({"inf": -1}, ValueError, "inf must be positive"),
        ({"is_multimer": 1}, TypeError, "is_multimer must be True or False"),
    ):
        sizes = {"c_s": 4, "c_z": 4, "c_hidden": 4, "no_heads": 2, "no_qk_points": 2, "no_v_points": 2}
        with pytest.raises(error, match=said):
            InvariantPointAttention(**{**sizes, **options})


def test_backends_agree():
    module, given = made(False), inputs(9, (2,))
    with paperops.use_backend("reference"):
        expected = module(*given)
    torch.testing.assert_close(module(*given), expected)
