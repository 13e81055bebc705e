"""What is particular to the triangle multiplicative update, beyond the generic checks."""

import pytest
import torch
from paperops.benchmarks import memory

import paperops
from paperops import backends, reference
from paperops.ops import _checks
from paperops.ops.triangle_multiplication import PARAMETERS, update_op
from paperops.reference.triangle_multiplication import layer_norm
from paperops.testing.targets import DEVICES, fast_targets, targets
from paperops.testing.triangle_multiplication import update_arguments

CPU = torch.device("cpu")
# The family has no CUDA C++.
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)
kernels = pytest.mark.parametrize("target", targets("cuda", "reference"), ids="-".join)
# Sizes at which memory is counted: the interpreter would need minutes.
large = pytest.mark.parametrize("target", fast_targets("cuda"), ids="-".join)
directions = pytest.mark.parametrize("direction", ["outgoing", "incoming"])
gates = pytest.mark.parametrize("gate_position", ["after_projection", "before_projection"])


def arguments(target, leading=(1,), n=6, channels=8, hidden=4, dtype=torch.float64, gate_position="after_projection"):
    gate_first = gate_position == "before_projection"
    found = update_arguments(leading, n, channels, hidden, torch.device(target[0]), dtype, gate_first)
    return found | ({"gate_position": gate_position} if gate_first else {})


def update(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.triangle_multiplicative_update(**given)


def gradients(target, **given):
    """The result, and the gradients of x and the parameters for a fixed cotangent."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in ("x", *PARAMETERS) if name in given}
    with paperops.use_backend(target[1]):
        out = paperops.triangle_multiplicative_update(**{**given, **leaves})
        cotangent = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape).to(out.dtype)
        return out.detach(), torch.autograd.grad(out, list(leaves.values()), cotangent)


# --- what the formula says -----------------------------------------------------------------------------------------


@backend
@directions
def test_a_masked_row_gives_what_the_formula_gives(target, direction):
    """t is 0 there, LN(0) its bias, and the result the gate times a constant: finite, with finite gradients."""
    given = arguments(target, n=5)
    mask = torch.ones(given["x"].shape[:-1], device=target[0])
    mask[:, 2] = mask[:, :, 2] = 0  # residue 2 is not there
    out, found = gradients(target, direction=direction, mask=mask, **given)
    x = given["x"][:, 2]
    h = torch.nn.functional.layer_norm(x, x.shape[-1:], given["norm_in_weight"], given["norm_in_bias"])
    gate = torch.sigmoid(h @ given["g_out_weight"].T + given["g_out_bias"])
    constant = given["p_out_weight"] @ given["norm_out_bias"] + given["p_out_bias"]
    torch.testing.assert_close(out[:, 2], gate * constant)
    assert all(gradient.isfinite().all() for gradient in found)


@backend
def test_everything_masked_is_finite(target):
    given = arguments(target, dtype=torch.float32)
    out, found = gradients(target, mask=torch.zeros(given["x"].shape[:-1], dtype=torch.bool, device=target[0]), **given)
    assert out.isfinite().all() and all(gradient.isfinite().all() for gradient in found)
    named = dict(zip(("x", *PARAMETERS), found, strict=True))
    assert not named["p_in_weight"].any() and not named["g_in_bias"].any()  # nothing of a and b counts


@backend
def test_incoming_is_outgoing_of_the_transposed_representation(target):
    """But for the output's gate, which sits at (i, j) in both: here it is open everywhere."""
    given = arguments(target, n=7)
    given["g_out_weight"].zero_()
    transposed = given | {"x": given["x"].transpose(1, 2)}
    torch.testing.assert_close(
        update(target, direction="incoming", **given), update(target, direction="outgoing", **transposed)
    )


@backend
@directions
def test_exchanging_a_and_b_transposes_the_product(target, direction):
    given = arguments(target, n=7)
    a, b = torch.randn(2, 1, 7, 7, 4, dtype=torch.float64, device=target[0])
    with paperops.use_backend(target[1]):
        forth = paperops.triangle_contract(a, b, direction)
        back = paperops.triangle_contract(b, a, direction)
    torch.testing.assert_close(forth, back.transpose(1, 2))
    given["g_out_weight"].zero_()
    swapped = {name: torch.cat(given[name].chunk(2)[::-1]) for name in PARAMETERS[2:6]}
    forth, back = (update(target, direction=direction, **{**given, **change}) for change in ({}, swapped))
    torch.testing.assert_close(forth, back.transpose(1, 2))


@backend
@directions
@gates
def test_permuting_residues_permutes_the_result(target, direction, gate_position):
    given = arguments(target, n=7, gate_position=gate_position)
    order = torch.randperm(7, device=target[0])
    mask = (torch.rand(1, 7, 7, device=target[0]) > 0.3).double()

    def permuted(value):
        return value[:, order][:, :, order]

    before = update(target, direction=direction, mask=mask, **given)
    after = update(target, direction=direction, mask=permuted(mask), **{**given, "x": permuted(given["x"])})
    torch.testing.assert_close(after, permuted(before))


@backend
def test_product_by_hand(target):
    a = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], device=target[0])
    b = torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]], device=target[0])
    mask = torch.tensor([[True, False], [True, True]], device=target[0])
    with paperops.use_backend(target[1]):
        outgoing = paperops.triangle_contract(a, b, "outgoing").squeeze(-1)
        incoming = paperops.triangle_contract(a, b, "incoming").squeeze(-1)
        masked = paperops.triangle_contract(a, b, "outgoing", mask).squeeze(-1)
    assert outgoing.tolist() == [[17, 23], [39, 53]]  # a b^T
    assert incoming.tolist() == [[26, 30], [38, 44]]  # a^T b
    assert masked.tolist() == [[5, 7], [15, 53]]


# --- forms of input ------------------------------------------------------------------------------------------------


@backend
@pytest.mark.parametrize("leading", [(), (1, 2), (2, 1, 2)], ids=str)
def test_leading_dimensions(target, leading):
    given = arguments(target, leading)
    mask = (torch.rand(given["x"].shape[:-1], device=target[0]) > 0.3).double()
    out = update(target, mask=mask, **given)
    assert out.shape == given["x"].shape
    flat = given["x"].reshape(-1, 6, 6, 8)
    each = [
        update(target, mask=m[None], **{**given, "x": x[None]})
        for x, m in zip(flat, mask.reshape(-1, 6, 6), strict=True)
    ]
    torch.testing.assert_close(out.reshape(flat.shape), torch.cat(each))


@backend
@pytest.mark.parametrize("shape", [(0, 3, 3, 8), (2, 0, 0, 8), (0, 0, 0, 8), (2, 0, 5, 5, 8), (0, 0, 8)], ids=str)
def test_nothing_in_nothing_out(target, shape):
    given = arguments(target) | {"x": torch.zeros(shape, dtype=torch.float64, device=target[0])}
    out, found = gradients(target, **given)
    assert out.shape == shape
    assert all(not gradient.any() for gradient in found)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters_beside_halves(target, dtype):
    """The result is x's dtype, gradients have each parameter's; under autocast the same, for float32 x too."""
    half = arguments(target, n=9, dtype=dtype)
    given = {name: value.float() if name in PARAMETERS else value for name, value in half.items()}
    out, found = gradients(target, **given)
    assert out.dtype == dtype
    assert [value.dtype for value in found] == [dtype] + [torch.float32] * len(PARAMETERS)
    exact, exact_gradients = gradients((target[0], "reference"), **{name: v.double() for name, v in given.items()})
    eps = torch.finfo(dtype).eps
    for ours, right in zip((out, *found), (exact, *exact_gradients), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=8 * eps * float(right.abs().max()))
    with torch.autocast(target[0], dtype):
        inside, found_inside = gradients(target, **given)
        single, _ = gradients(target, **{**given, "x": given["x"].float()})
    for one, other in zip((out, *found), (inside, *found_inside), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert single.dtype == dtype  # of float32, more digits are kept
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=8 * eps * float(exact.abs().max()))


def test_precision_is_honoured_or_refused():
    given = arguments(("cpu", ""), dtype=torch.float32)
    default = paperops.triangle_multiplicative_update(**given)
    assert torch.equal(paperops.triangle_multiplicative_update(**given, precision="ieee"), default)
    assert torch.equal(paperops.triangle_multiplicative_update(**given, precision="IEEE"), default)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="precision='ieee' on a CPU is torch's setting"):
            paperops.triangle_multiplicative_update(**given, precision="ieee")
    finally:
        torch.set_float32_matmul_precision(before)
    half = {name: value.bfloat16() for name, value in given.items()}  # no float32 is multiplied
    default = paperops.triangle_multiplicative_update(**half)
    assert torch.equal(paperops.triangle_multiplicative_update(**half, precision="tf32"), default)


def test_precision_in_a_compiled_graph():
    """torch's setting is read when the graph is made, and a graph made under another setting is not used."""
    given = arguments(("cpu", ""), dtype=torch.float32)
    update = torch.compile(paperops.triangle_multiplicative_update, fullgraph=True, backend="eager")
    assert torch.equal(update(**given, precision="ieee"), paperops.triangle_multiplicative_update(**given))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(Exception, match="precision='ieee' on a CPU is torch's setting"):
            update(**given, precision="ieee")
    finally:
        torch.set_float32_matmul_precision(before)


def test_constant_when_compiled_does_what_torch_does():
    def ours() -> int:
        return 1

    def torchs() -> int:
        return 1

    torch.compiler.assume_constant_result(torchs)
    assert vars(_checks.constant_when_compiled(ours)) == vars(torchs)


# --- memory --------------------------------------------------------------------------------------------------------


def peak(target, **given):
    """Bytes at the peak of a call, the result included."""
    return memory.peak(lambda: update(target, **given), torch.device(target[0]))


@large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_memory_of_a_recorded_forward_pass(target, dtype):
    """At most three [N, N, D] beyond x and the result, and one of them, t, is kept for the backward pass."""
    n, channels, hidden = 192, 64, 64
    given = arguments(target, (1,), n, channels, hidden, dtype)
    x = given["x"].requires_grad_()
    element = x.element_size()
    fixed = 8 << 20  # scratch that does not grow with N
    assert peak(target, **given) <= n * n * (channels + 3 * hidden) * element + fixed
    saved = memory.saved_for_backward(
        lambda: update(target, **given), [v for v in given.values() if torch.is_tensor(v)]
    )
    assert saved == n * n * hidden * element


@large
@directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_memory(target, direction, dtype):
    """Half of an [N, N, C] beyond x and the result, and the same values."""
    n, channels = 320, 128
    given = arguments(target, (1,), n, channels, 128, dtype)
    mask = torch.rand(given["x"].shape[:-1], device=target[0]) > 0.2
    with torch.no_grad():
        bytes_ = peak(target, direction=direction, mask=mask, low_memory=True, **given)
        low = update(target, direction=direction, mask=mask, low_memory=True, **given)
        whole = update(target, direction=direction, mask=mask, **given)
    mask_copy = n * n * 4  # the bool mask in float32
    fixed = 4 << 20
    assert bytes_ <= 1.5 * n * n * channels * given["x"].element_size() + mask_copy + fixed
    torch.testing.assert_close(low, whole)


@pytest.mark.parametrize("n", [256, 4096])
@pytest.mark.parametrize("low_memory", [False, True])
def test_memory_that_the_triton_plan_asks_for(n, low_memory):
    """The plan of a GPU, made without one: what its steps use beyond x, mask, parameters and the result."""
    pytest.importorskip("triton")
    from paperops.kernels import triangle_multiplication as kernels
    from paperops.kernels.launch import KNOWN_ARCHITECTURES, Launch

    channels = hidden = 128
    x, mask, parameters = kernels.meta_arguments(n, channels, hidden, False, torch.bfloat16)
    (out, _), steps = kernels.plan_update(
        x, mask, parameters, True, False, 1e-5, "ieee", low_memory, KNOWN_ARCHITECTURES["sm_90"]
    )
    used = [
        value
        for step in steps
        for value in (step.arguments.values() if isinstance(step, Launch) else step.arguments)
        if torch.is_tensor(value)
    ]
    given = {value.untyped_storage()._cdata for value in (x, mask, *parameters, out)}
    beyond = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in used}
    assert given & beyond.keys(), "the steps read x and write the result"
    bytes_ = sum(size for storage, size in beyond.items() if storage not in given)
    whole = n * n * hidden * x.element_size()
    assert whole * (0.3 if low_memory else 2.9) < bytes_ <= whole * (0.5 if low_memory else 3) + (1 << 16)


@kernels
@gates
@pytest.mark.parametrize(("channels", "hidden"), [(8, 4), (4, 12), (33, 17)])
def test_low_memory_has_the_same_values(target, channels, hidden, gate_position):
    given = arguments(target, (2,), 7, channels, hidden, gate_position=gate_position)
    with torch.no_grad():
        for direction in ("outgoing", "incoming"):
            low = update(target, direction=direction, low_memory=True, **given)
            right = reference.triangle_multiplicative_update(direction=direction, **given)
            torch.testing.assert_close(low, right)


def test_the_definition_refuses_low_memory():
    with pytest.raises(backends.BackendError, match="plain torch holds every intermediate: pass low_memory=False"):
        update(("cpu", "reference"), low_memory=True, **arguments(("cpu", "")))


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs the memory and speed of a GPU")
@directions
def test_pairs_past_two_to_the_31st(direction):
    """N = 4096, 2^31 elements in x: some pairs against the definition, from the rows that they need."""
    n, channels = 4096, 128
    given = arguments(("cuda", ""), (1,), n, channels, 128, torch.bfloat16)
    x = given["x"]
    with torch.no_grad():
        out = paperops.triangle_multiplicative_update(direction=direction, **given)
        for i, j in ((0, 0), (4095, 4095), (4095, 1), (2047, 4000)):
            rows = (x[:, i], x[:, j]) if direction == "outgoing" else (x[:, :, i], x[:, :, j])
            # Two rows as a square of which only the pair's own place is read.
            exact = _one_pair(rows, x[:, i, j], direction, given)
            torch.testing.assert_close(out[:, i, j].double(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def _one_pair(rows, x, direction, given):
    """The result at one pair, in float64, from the rows (or columns) [1, N, C] of its two residues."""
    wide = {name: value.double() for name, value in given.items() if torch.is_tensor(value)}
    linear, eps = torch.nn.functional.linear, 1e-5
    norm = layer_norm

    def project(row):
        h = norm(row.double(), wide["norm_in_weight"], wide["norm_in_bias"], eps)
        gate = linear(h, wide["g_in_weight"], wide["g_in_bias"]).sigmoid()
        return (gate * linear(h, wide["p_in_weight"], wide["p_in_bias"])).chunk(2, -1)

    t = (project(rows[0])[0] * project(rows[1])[1]).sum(1)  # [1, D]
    n = norm(t, wide["norm_out_weight"], wide["norm_out_bias"], eps)
    h = norm(x.double(), wide["norm_in_weight"], wide["norm_in_bias"], eps)
    return linear(h, wide["g_out_weight"], wide["g_out_bias"]).sigmoid() * linear(
        n, wide["p_out_weight"], wide["p_out_bias"]
    )


def test_one_pair_is_the_definition():
    """The helper above, where the definition can be run."""
    given = arguments(("cpu", ""), n=5)
    x = given["x"]
    for direction, rows in (("outgoing", (x[:, 1], x[:, 3])), ("incoming", (x[:, :, 1], x[:, :, 3]))):
        exact = reference.triangle_multiplicative_update(direction=direction, **given)
        torch.testing.assert_close(_one_pair(rows, x[:, 1, 3], direction, given), exact[:, 1, 3])


# --- derivatives ---------------------------------------------------------------------------------------------------


@kernels
def test_backends_may_differ_between_forward_and_backward(target):
    given = arguments(target, (2,), 5)
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    expected = gradients((target[0], "reference"), **given)[1]
    for forward, backward in ((target[1], "reference"), ("reference", target[1])):
        out = update((target[0], forward), **leaves)
        cotangent = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape).to(out.dtype)
        with paperops.use_backend(backward):
            found = torch.autograd.grad(out, [leaves[name] for name in ("x", *PARAMETERS)], cotangent)
        for ours, right in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, right)


@kernels
def test_frozen_parameters(target):
    """Gradients of some inputs only."""
    given = arguments(target)
    everything = dict(zip(("x", *PARAMETERS), gradients(target, **given)[1], strict=True))
    for name in ("x", "g_in_bias", "norm_out_weight"):
        leaf = given[name].clone().requires_grad_()
        out = update(target, **{**given, name: leaf})
        cotangent = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape).to(out.dtype)
        with paperops.use_backend(target[1]):
            (found,) = torch.autograd.grad(out, leaf, cotangent)
        assert torch.equal(found, everything[name])


@backend
def test_vmap_over_parameters_and_per_sample_gradients(target):
    given = arguments(target, (2,), 4)
    x, weight = given.pop("x"), given.pop("p_in_weight")

    def function(x, weight):
        return paperops.triangle_multiplicative_update(x, p_in_weight=weight, **given)

    weights = torch.stack([weight, 2 * weight, weight - 1])
    with paperops.use_backend(target[1]):
        together = torch.vmap(function, (None, 0))(x, weights)
        apart = torch.stack([function(x, one) for one in weights])
        torch.testing.assert_close(together, apart)
        both = torch.vmap(function, (0, 0))(torch.stack([x, x + 1, 2 * x]), weights)
        torch.testing.assert_close(both[1], function(x + 1, weights[1]))

        def loss(weight, x):
            return function(x, weight).square().sum()

        per_sample = torch.vmap(torch.func.grad(loss), (None, 0))(weight, x)  # x's own batch, one by one
        for number in range(2):
            leaf = weight.clone().requires_grad_()
            (right,) = torch.autograd.grad(loss(leaf, x[number]), leaf)
            torch.testing.assert_close(per_sample[number], right)


def test_a_gradient_recorded_without_t_is_right():
    """The dispatcher op called without keep, as torch.func's levels may have it: t is computed again."""
    given = arguments(("cpu", ""))
    leaf = given["x"].requires_grad_()
    parameters = [given[name] for name in PARAMETERS]
    found = []
    for keep in (True, False):
        out, t = update_op(leaf, None, *parameters, True, False, 1e-5, 0, keep, False)
        assert t.numel() == (6 * 6 * 4 if keep else 0)
        found.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert torch.equal(*found)


def test_compiled_training_step():
    """Inductor, forward and backward in one graph each, in half precision under autocast."""
    given = arguments(("cpu", ""), (1,), 8, 16, 8, torch.float32)
    names = list(PARAMETERS)

    def step(x, *parameters):
        with torch.autocast("cpu", torch.bfloat16):
            return paperops.triangle_multiplicative_update(x, **dict(zip(names, parameters, strict=True))).float()

    compiled = torch.compile(step, fullgraph=True)
    found = []
    for function in (step, compiled):
        leaves = [given[name].clone().requires_grad_() for name in ("x", *names)]
        out = function(*leaves)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right)


# --- numbers and direct calls --------------------------------------------------------------------------------------


@backend
def test_huge_values(target):
    """Sums of squares are infinite from 1e19 on; what a norm takes off rounding errors must not be."""
    given = arguments(target, n=5, channels=8, hidden=4, dtype=torch.float32)
    for factor in (1e15, 1e33):
        out = update(target, **{**given, "x": given["x"] * factor})
        exact = reference.triangle_multiplicative_update(**{**given, "x": given["x"] * factor})
        assert torch.equal(out.isfinite(), exact.isfinite()) and out.isfinite().all()


@pytest.mark.parametrize("name", ["p_in_weight", "g_in_weight", "p_out_weight", "g_out_weight", "norm_in_bias"])
def test_direct_calls_stay_within_their_tensors(name):
    """The public function checks shapes; a call past it must not write outside of what was allocated."""
    if backends.missing("native", "cpu") is not None:
        pytest.skip(backends.missing("native", "cpu"))
    given = arguments(("cpu", ""), n=4, channels=8, hidden=8, dtype=torch.float32)
    x, t = given["x"], torch.randn(1, 8, 4, 4)
    update(("cpu", "native"), **given)  # loads the library
    backward = torch.ops.paperops.triangle_multiplication_backward.native
    for change in (lambda value: value[None], lambda value: value.flatten()[:-1], lambda value: value[..., None]):
        parameters = [change(given[key]) if key == name else given[key] for key in PARAMETERS]
        with pytest.raises(RuntimeError, match=r"a parameter has the wrong shape|p_out_weight must be \[C, D\]"):
            backward(x, t, x, None, *parameters, True, False, 1e-5, 0)
