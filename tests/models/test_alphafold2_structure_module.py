"""The structure module against Algorithm 20 from its parameters, and what OpenFold's checkpoints need."""

import copy
import math

import pytest
import torch

import paperops
from paperops.geometry import Frames, frames_to_atom14, torsions_to_frames
from paperops.models.alphafold2 import Structure, StructureModule
from paperops.residues import tables
from paperops.testing.values import random

C_S, C_Z, C, R, H, PQ, PV, BLOCKS = 12, 6, 4, 8, 2, 3, 5, 3
SIZES = {
    "c_s": C_S, "c_z": C_Z, "c_ipa": C, "c_resnet": R, "no_heads_ipa": H, "no_qk_points": PQ, "no_v_points": PV,
    "no_blocks": BLOCKS, "no_resnet_blocks": 2, "no_transition_layers": 2,
}  # fmt: skip


def linear(name, outputs, inputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


COMMON = {
    **linear("layer_norm_s", C_S, C_S), "layer_norm_s.weight": (C_S,),
    **linear("layer_norm_z", C_Z, C_Z), "layer_norm_z.weight": (C_Z,),
    **linear("linear_in", C_S, C_S),
    **linear("layer_norm_ipa", C_S, C_S), "layer_norm_ipa.weight": (C_S,),
    **linear("transition.layers.0.linear_1", C_S, C_S), **linear("transition.layers.0.linear_2", C_S, C_S),
    **linear("transition.layers.0.linear_3", C_S, C_S),
    **linear("transition.layers.1.linear_1", C_S, C_S), **linear("transition.layers.1.linear_2", C_S, C_S),
    **linear("transition.layers.1.linear_3", C_S, C_S),
    **linear("transition.layer_norm", C_S, C_S), "transition.layer_norm.weight": (C_S,),
    **linear("bb_update.linear", 6, C_S),
    **linear("angle_resnet.linear_in", R, C_S), **linear("angle_resnet.linear_initial", R, C_S),
    **linear("angle_resnet.layers.0.linear_1", R, R), **linear("angle_resnet.layers.0.linear_2", R, R),
    **linear("angle_resnet.layers.1.linear_1", R, R), **linear("angle_resnet.layers.1.linear_2", R, R),
    **linear("angle_resnet.linear_out", 14, R),
    "ipa.head_weights": (H,), **linear("ipa.linear_q_points.linear", H * PQ * 3, C_S),
    **linear("ipa.linear_b", H, C_Z), **linear("ipa.linear_out", C_S, H * (C_Z + C + 4 * PV)),
}  # fmt: skip
MONOMER = {
    **COMMON, **linear("ipa.linear_q", H * C, C_S), **linear("ipa.linear_kv", 2 * H * C, C_S),
    **linear("ipa.linear_kv_points.linear", H * (PQ + PV) * 3, C_S),
}  # fmt: skip
MULTIMER = {
    **COMMON, **linear("ipa.linear_q", H * C, C_S, False), **linear("ipa.linear_k", H * C, C_S, False),
    **linear("ipa.linear_v", H * C, C_S, False),
    **linear("ipa.linear_k_points.linear", H * PQ * 3, C_S), **linear("ipa.linear_v_points.linear", H * PV * 3, C_S),
}  # fmt: skip


def made(multimer=False, scale=0.5, **options):
    module = StructureModule(**{**SIZES, "dropout_rate": 0.0, **options}, is_multimer=multimer).double()
    shapes = MULTIMER if multimer else MONOMER
    state = {name: scale * random(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}
    module.load_state_dict(state, strict=True)
    return module


def inputs(n=5, leading=(2,), seed=50):
    aatype = torch.randint(0, 21, (*leading, n), generator=torch.Generator().manual_seed(seed))
    return random(*leading, n, C_S, seed=seed), random(*leading, n, n, C_Z, seed=seed + 1), aatype


def start(n=5, leading=(2,), seed=60):
    return Frames.from_quaternion(random(*leading, n, 4, seed=seed), 5 * random(*leading, n, 3, seed=seed + 1))


def algorithm_20(module, state, s, z, aatype, mask, rotations, translations):
    """One item, line by line; the attention is the module's, which has its own test. Frames are matrices."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def relu(x):
        return x * (x > 0)

    attention = {name.removeprefix("ipa."): value for name, value in state.items() if name.startswith("ipa.")}
    s_initial, z = norm("layer_norm_s", s), norm("layer_norm_z", z)  # lines 1 and 2
    s = linear("linear_in", s_initial)  # line 3
    translations = translations / 10
    blocks = []
    for block in range(BLOCKS):
        if block:
            rotations = rotations.detach()  # line 20
        s = s + torch.func.functional_call(module.ipa, attention, (s, z, rotations, translations, mask))  # line 6
        s = norm("layer_norm_ipa", s)  # line 7
        for layer in range(2):  # line 8
            name = f"transition.layers.{layer}.linear"
            s = s + linear(f"{name}_3", relu(linear(f"{name}_2", relu(linear(f"{name}_1", s)))))
        s = norm("transition.layer_norm", s)  # line 9
        update = linear("bb_update.linear", s)  # line 10, Algorithm 23
        turns = []
        for b, c, d, *_ in update:
            length = torch.sqrt(1 + b**2 + c**2 + d**2)
            a, b, c, d = 1 / length, b / length, c / length, d / length
            turns.append(torch.stack([
                torch.stack([a**2 + b**2 - c**2 - d**2, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c]),
                torch.stack([2 * b * c + 2 * a * d, a**2 - b**2 + c**2 - d**2, 2 * c * d - 2 * a * b]),
                torch.stack([2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a**2 - b**2 - c**2 + d**2]),
            ]))  # fmt: skip
        translations = torch.stack([
            turn @ shift + old for turn, shift, old in zip(rotations, update[:, 3:], translations, strict=True)
        ])  # fmt: skip
        rotations = torch.stack([old @ turn for old, turn in zip(rotations, turns, strict=True)])
        a = linear("angle_resnet.linear_in", relu(s)) + linear("angle_resnet.linear_initial", relu(s_initial))
        for layer in range(2):
            name = f"angle_resnet.layers.{layer}.linear"
            a = a + linear(f"{name}_2", relu(linear(f"{name}_1", relu(a))))
        raw = linear("angle_resnet.linear_out", relu(a)).reshape(-1, 7, 2)  # lines 11 to 14
        angles = raw / torch.sqrt((raw**2).sum(-1, keepdim=True))
        groups = torsions_to_frames(aatype, rotations, 10 * translations, angles)  # line 24
        positions = frames_to_atom14(aatype, *groups)
        blocks.append((rotations, 10 * translations, *groups, positions, angles, raw, s))
    return [torch.stack(parts) for parts in zip(*blocks, strict=True)]


def compared(structure):
    """The fields that the definition gives, [blocks, ...] each; a quaternion is another form of a rotation."""
    quaternions, translations = structure.frames.split([4, 3], -1)
    torch.testing.assert_close(Frames.from_quaternion(quaternions).rotations, structure.rotations)
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones_like(quaternions[..., 0]))
    assert torch.equal(translations, structure.translations)
    assert torch.equal(structure.states[-1], structure.single)
    matrices = structure.sidechain_frames
    assert (matrices[..., 3, :] == torch.tensor([0, 0, 0, 1])).all()
    torch.testing.assert_close(matrices[..., 0, :3, :3], structure.rotations)
    torch.testing.assert_close(matrices[..., 0, :3, 3], structure.translations)
    groups = matrices[..., :3, :3], matrices[..., :3, 3]
    return [
        structure.rotations, structure.translations, *groups, structure.positions, structure.angles,
        structure.unnormalized_angles, structure.states,
    ]  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("multimer", [False, True])
def test_values_and_gradients_are_the_algorithms(multimer, masked):
    module, (s, z, aatype), initial = made(multimer), inputs(leading=(1,)), start(leading=(1,))
    mask = torch.tensor([[1, 0, 1, 1, 1]]).bool() if masked else None
    leaves = [value.requires_grad_() for value in (s, z, *initial)]
    found = compared(module(s, z, aatype, mask, initial=Frames(*leaves[2:])))
    state = {name: value.detach().clone().requires_grad_() for name, value in module.state_dict().items()}
    with paperops.use_backend("reference"):
        expected = algorithm_20(
            module, state, s[0], z[0], aatype[0], None if mask is None else mask[0],
            *(value[0] for value in leaves[2:]),
        )  # fmt: skip
        keep = slice(None) if mask is None else mask[0]
        found, expected = [value[:, 0, keep] for value in found], [value[:, keep] for value in expected]
        cotangents = [random(*value.shape, seed=70 + number) for number, value in enumerate(found)]
        names = [name for name, _ in module.named_parameters()]
        right = torch.autograd.grad(expected, [*leaves, *(state[name] for name in names)], cotangents)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(found, [*leaves, *module.parameters()], cotangents)
    for name, one, other in zip(("s", "z", "rotations", "translations", *names), ours, right, strict=True):
        if name == "rotations":  # compared along turns of the frames: across them nothing has a meaning
            one, other = (_torque(leaves[2], gradient) for gradient in (one, other))
        bound = 1e-9 * max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


def _torque(rotations, gradient):
    """The derivative along small turns: the antisymmetric part of G R^T."""
    product = gradient @ rotations.detach().mT
    return product - product.mT


def test_rotations_pass_no_gradient_between_blocks():
    """The last block's rotations depend on the first frames through values alone."""
    module, (s, z, aatype), initial = made(), inputs(), start()
    rotations = initial.rotations.requires_grad_()
    out = module(s, z, aatype, initial=Frames(rotations, initial.translations))
    (first,) = torch.autograd.grad(out.rotations[0].square().sum() + out.translations[0].sum(), rotations)
    assert first.any()
    frozen = made()
    for part in (frozen.ipa.linear_out, frozen.bb_update.linear):
        torch.nn.init.zeros_(part.weight)  # frames no longer act on s: what is left is their own path
    out = frozen(s, z, aatype, initial=Frames(rotations, initial.translations))
    (later,) = torch.autograd.grad((out.rotations[2] * random(2, 5, 3, 3)).sum(), rotations, allow_unused=True)
    assert later is None or not later.any()


@pytest.mark.parametrize("shapes", [MONOMER, MULTIMER], ids=["monomer", "multimer"])
def test_openfold_state_dict(shapes):
    module = StructureModule(**SIZES, is_multimer=shapes is MULTIMER)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == shapes
    older = {name.replace("_points.linear.", "_points."): torch.randn(shape) for name, shape in shapes.items()}
    module.load_state_dict(older, strict=True)


def test_sizes_of_the_published_model():
    """By default: 12 heads of 16 channels, 4 and 8 points, c_s 384 and c_z 128. 2,019,116 parameters, as OpenFold's."""
    module = StructureModule(device="meta")
    hidden, points = 12 * 16, 12 * 3
    attention = 384 * (3 * hidden + 16 * points) + 3 * hidden + 16 * points + 12 + 128 * 12 + 12
    attention += 12 * (128 + 16 + 32) * 384 + 384
    square = 384 * 384 + 384
    resnet = 2 * (384 * 128 + 128) + 4 * (128 * 128 + 128) + 128 * 14 + 14
    expected = attention + 4 * square + 3 * 768 + 256 + 384 * 6 + 6 + resnet
    assert sum(parameter.numel() for parameter in module.parameters()) == expected == 2_019_116


def test_initial_values():
    torch.manual_seed(0)
    module, (s, z, aatype) = StructureModule(c_s=C_S, c_z=C_Z), inputs()
    out = module.eval()(s.float(), z.float(), aatype)
    one = Frames.identity(8, 2, 5)
    assert torch.equal(out.rotations, one.rotations) and torch.equal(out.translations, one.translations)
    torch.testing.assert_close(out.states[0], out.states[7])  # what is renewed is 0: layer norms of layer norms
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    module.reset_parameters()
    for name, value in module.state_dict().items():
        assert value.std().isclose(before[name].std(), rtol=0.3), name


def moved_by(turn, structure):
    """What the results become when the first frames move by turn."""
    frames = turn.compose(Frames(structure.rotations, structure.translations))
    matrices = structure.sidechain_frames
    groups = turn.compose(Frames(matrices[..., :3, :3], matrices[..., :3, 3]))
    invariant = (structure.angles, structure.unnormalized_angles, structure.states, structure.single)
    return [
        *frames,
        *groups,
        turn.apply(structure.positions.flatten(0, -2)).reshape(structure.positions.shape),
        *invariant,
    ]


@pytest.mark.parametrize("multimer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equivariance(dtype, multimer):
    """Moving the first frames by a rotation and 300 Angstrom moves frames and atoms alike, and nothing else changes.

    A coordinate x is known to eps |x|: the first frames, moved, are off by 300 eps each, and every block adds as much;
    the attention's logits and points turn that into changes of s of the order of gamma r 300 eps / 10, where r, in the
    unit inside, is the largest distance. The bound is 8 roundings of 300 for lengths and of 30 for what has no unit;
    seen: 2 and 3.
    """
    module, (s, z, aatype), initial = made(multimer).to(dtype), inputs(), start()
    exists = tables().atom14_exists[aatype][..., None]  # the others are at the origin always
    turn = Frames.from_quaternion(random(4, seed=80), 300 * torch.nn.functional.normalize(random(3, seed=81), dim=0))
    moved = turn.compose(initial)
    given = s.to(dtype), z.to(dtype), aatype
    out = module(*given, initial=Frames(*(value.to(dtype) for value in initial)))
    after = module(*given, initial=Frames(*(value.to(dtype) for value in moved)))
    expected = moved_by(turn, Structure(*(value.double() for value in out)))
    found = moved_by(Frames.identity(dtype=torch.float64), Structure(*(value.double() for value in after)))
    eps = torch.finfo(dtype).eps
    largest = {}
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if number == 4:
            one, other = one * exists, other * exists
        bound = 8 * eps * (300 if number in (1, 3, 4) else 30)
        largest[number] = float((one - other).detach().abs().max()) / bound
    assert max(largest.values()) < 1, largest


def test_a_mirror_image_differs():
    """Of mirrored first frames (rotations conjugated by the reflection) the result is not the mirrored result."""
    module, (s, z, aatype), initial = made(), inputs(), start()
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    out = module(s, z, aatype, initial=initial)
    after = module(s, z, aatype, initial=Frames(mirror @ initial.rotations @ mirror, initial.translations @ mirror))
    assert (after.positions - out.positions @ mirror).abs().max() > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frames_stay_rotations(dtype):
    """Over the blocks, far from the identity, under autocast too: R R^T is 1 within 16 times 2^-23 (5 are seen)."""
    module, (s, z, aatype) = made(scale=1.5, no_blocks=8).float(), inputs(20)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        out = module(s.float(), z.float(), aatype)
    rotations = torch.cat([out.rotations, out.sidechain_frames[..., :3, :3].flatten(0, 3).reshape(8, 2, -1, 3, 3)], 2)
    rotations = rotations.double()
    assert (out.rotations[7] - out.rotations[0]).abs().max() > 1
    wrong = (rotations @ rotations.mT - torch.eye(3, dtype=torch.float64)).abs().max()
    assert out.rotations.dtype == torch.float32 and wrong < 16 * 2**-23, wrong * 2**23


def test_what_masked_residues_hold_does_not_matter():
    module, (s, z, aatype), initial = made(), inputs(), start()
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]])
    gone = mask == 0
    pairs = gone[:, :, None] | gone[:, None]
    leaves = s.clone(), z.clone(), *(value.clone() for value in initial)
    clean = module(*leaves[:2], aatype, mask.double(), initial=Frames(*leaves[2:]))
    leaves[0][gone], leaves[1][pairs], leaves[2][gone], leaves[3][gone] = math.nan, math.inf, math.nan, -math.inf
    leaves = [value.requires_grad_() for value in leaves]
    out = module(*leaves[:2], torch.where(gone, 3, aatype), mask.bool(), initial=Frames(*leaves[2:]))
    for one, other in zip(out, clean, strict=True):
        assert torch.equal(one, other)
    for value in (out.positions, out.angles, out.unnormalized_angles, out.states, out.translations):
        assert not value[:, gone].any()
    assert not out.single[gone].any()
    assert torch.equal(out.rotations[:, gone], torch.eye(3).double().expand(3, 5, 3, 3))
    assert torch.equal(out.sidechain_frames[:, gone], torch.eye(4).double().expand(3, 5, 8, 4, 4))
    assert torch.equal(out.frames[:, gone], torch.tensor([1.0, 0, 0, 0, 0, 0, 0]).double().expand(3, 5, 7))
    gradients = torch.autograd.grad(sum(value.sum() for value in out), [*leaves, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient, where in zip(gradients, (gone, pairs, gone, gone), strict=False):
        assert not gradient[where].any()
    # an item's residues that are kept have the result of a shorter chain
    keep = mask[0].bool()
    short = module(
        s[:1, keep], z[:1, keep][:, :, keep], aatype[:1, keep], initial=Frames(*(v[:1, keep] for v in initial))
    )
    torch.testing.assert_close(out.positions[:, :1, keep], short.positions)


def test_finite_mask_is_alphafolds():
    """Residues that are kept have the same result; those that are masked have one too."""
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    kept = made()(*inputs(), mask.double())
    out = made(finite_mask=True)(*inputs(), mask.double())
    for one, other in zip(out[:8], kept[:8], strict=True):
        torch.testing.assert_close(one[:, mask.bool()], other[:, mask.bool()])
    assert out.positions[:, mask == 0].any()


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_degenerate(n, masked):
    module, (s, z, aatype) = made(), inputs(n)
    leaves = [s.requires_grad_(), z.requires_grad_()]
    out = module(*leaves, aatype, torch.zeros(2, n) if masked else None)
    assert out.positions.shape == (BLOCKS, 2, n, 14, 3) and out.sidechain_frames.shape == (BLOCKS, 2, n, 8, 4, 4)
    assert all(value.isfinite().all() for value in out)
    gradients = torch.autograd.grad(sum(value.sum() for value in out), [*leaves, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert made()(*inputs(n, ())).positions.shape == (BLOCKS, n, 14, 3)
    assert made()(*inputs(n, (0, 3))).positions.shape == (BLOCKS, 0, 3, n, 14, 3)


def test_leading_dimensions():
    module, (s, z, aatype) = made(), inputs(4, (2, 3))
    out = module(s, z, aatype)
    for i in range(2):
        for j in range(3):
            one = module(s[i, j], z[i, j], aatype[i, j])
            for whole, single in zip(out[:-1], one[:-1], strict=True):
                torch.testing.assert_close(whole[:, i, j], single)


@pytest.mark.parametrize("multimer", [False, True])
def test_the_slow_twin(multimer):
    """The same weights under the definitions give the same outputs and gradients."""
    module, (s, z, aatype) = made(multimer), inputs(17)
    mask = torch.rand(2, 17, generator=torch.Generator().manual_seed(1)) > 0.2
    results = []
    for backend in ("reference", None):
        with paperops.use_backend(backend) if backend else torch.enable_grad():
            out = module(s, z, aatype, mask)
            cotangents = [random(*value.shape, seed=number) for number, value in enumerate(out)]
            results.append([*out, *torch.autograd.grad(out, list(module.parameters()), cotangents)])
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9 * max(1.0, float(slow.detach().abs().max())))


@pytest.mark.slow
def test_compile():
    module = made(no_blocks=1).float()  # one block's graph takes long enough to build
    given = [value.float() if value.is_floating_point() else value for value in inputs(6)]
    mask = torch.tensor([[1, 1, 0, 1, 1, 1]]).expand(2, 6).float()
    options = {"mask": mask, "initial": Frames(*(value.float() for value in start(6)))}
    out = torch.compile(module, fullgraph=True, backend="aot_eager")(*given, **options)
    eager = module(*given, **options)
    for one, other in zip(out, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    found, right = (torch.autograd.grad(v.positions.square().mean(), list(module.parameters())) for v in (out, eager))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * max(1.0, float(other.abs().max())))


def test_autocast_and_half_precision():
    """Geometry stays float32; the error is that of bfloat16 in the representations."""
    module, given = made().float(), inputs(8)
    exact = copy.deepcopy(module).double()(*given)
    single = [value.float() if value.is_floating_point() else value for value in given]
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(*single)
        mixed = module(single[0].bfloat16(), single[1].bfloat16(), single[2])
    half = copy.deepcopy(module).bfloat16()(single[0].bfloat16(), single[1].bfloat16(), single[2])
    for out in (inside, mixed, half):
        for name in ("rotations", "translations", "frames", "sidechain_frames", "positions", "angles"):
            assert getattr(out, name).dtype == torch.float32
        assert (out.rotations - exact.rotations).abs().max() < 0.2
        assert (out.positions - exact.positions).norm(dim=-1).mean() < 0.5
    gradients = torch.autograd.grad(inside.positions.sum(), list(module.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_dropout_acts_in_training_alone():
    given = inputs()
    for other in ("ipa_dropout", "transition.dropout"):  # each of the two by itself
        module = made(dropout_rate=0.5)
        module.get_submodule(other).p = 0.0
        assert not torch.equal(module(*given).single, module(*given).single)
    module.eval()
    assert torch.equal(module(*given).single, module(*given).single)


def test_refused():
    module, (s, z, aatype) = made(), inputs()
    mask, initial = torch.ones(2, 5), start()
    for given, options, error, said in (
        ((s[..., :4], z, aatype), {}, ValueError, r"s must have shape \[\*, 12\], c_s = 12 channels; got \[2, 5, 4\]"),
        ((s[0, 0], z, aatype), {}, ValueError, r"s must have shape \[\*, N, 12\]; got \[12\]"),
        ((s, z[:, :3], aatype), {}, ValueError, "z must be square"),
        ((s, z[..., :3], aatype), {}, ValueError, r"z must have shape \[2, 5, 5, 6\] for s of \[2, 5, 12\]; got"),
        ((s.float(), z, aatype), {}, TypeError, "s of torch.float32 does not go with parameters of torch.float64"),
        ((s, z.float(), aatype), {}, TypeError, "z of torch.float32 does not go with parameters of torch.float64"),
        ((s, z, aatype[:, :3]), {}, ValueError, r"aatype must have shape \[2, 5\], one type a residue; got \[2, 3\]"),
        ((s, z, aatype.double()), {}, TypeError, "aatype must have an integer dtype; got torch.float64"),
        ((s, z, aatype * 0 + 21), {}, ValueError, "aatype must be types of residues, from 0 to 20; got 21"),
        ((s, z, aatype * 0 - 1), {}, ValueError, "aatype must be types of residues, from 0 to 20; got -1"),
        ((s, z, None), {}, TypeError, "aatype must be a torch.Tensor; got NoneType"),
        ((s, z, aatype), {"mask": mask[:, :3]}, ValueError, r"mask must have shape \[2, 5\]"),
        ((s, z, aatype), {"mask": mask.long()}, TypeError, "mask must be bool or floating"),
        ((s, z, aatype), {"initial": tuple(initial)}, TypeError, "initial must be a paperops.geometry.Frames"),
        (
            (s, z, aatype),
            {"initial": start(4)},
            ValueError,
            r"initial must have shape \[2, 5\] for s of .*got \[2, 4\]",
        ),
        (
            (s, z, aatype),
            {"initial": Frames(*(value.float() for value in initial))},
            TypeError,
            "initial of torch.float32 does not go with parameters of torch.float64",
        ),
    ):
        with pytest.raises(error, match=said):
            module(*given, **options)
    for options, error, said in (
        ({"c_s": 0}, ValueError, "c_s must be at least 1"),
        ({"no_blocks": 1.5}, TypeError, "no_blocks must be an int"),
        ({"no_angles": 5}, ValueError, "no_angles must be 7"),
        ({"dropout_rate": 1.5}, ValueError, "dropout_rate must be a probability"),
        ({"trans_scale_factor": 0}, ValueError, "trans_scale_factor must be positive"),
        ({"no_transition_layers": 0}, ValueError, "num_layers must be at least 1"),
        ({"is_multimer": 1}, TypeError, "is_multimer must be True or False"),
    ):
        with pytest.raises(error, match=said):
            StructureModule(**{**SIZES, **options})
