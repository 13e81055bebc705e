"""paperops.nn.TriangleMultiplicativeUpdate against Algorithms 11 and 12, written term by term."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import paperops
from paperops import backends
from paperops.nn import TriangleMultiplicationIncoming, TriangleMultiplicationOutgoing, TriangleMultiplicativeUpdate

# OpenFold's state dict, written down: name and shape in C = c_z and D = c_hidden.
OPENFOLD = {
    "linear_a_p.weight": "DC", "linear_a_p.bias": "D",
    "linear_a_g.weight": "DC", "linear_a_g.bias": "D",
    "linear_b_p.weight": "DC", "linear_b_p.bias": "D",
    "linear_b_g.weight": "DC", "linear_b_g.bias": "D",
    "linear_g.weight": "CC", "linear_g.bias": "C",
    "linear_z.weight": "CD", "linear_z.bias": "C",
    "layer_norm_in.weight": "C", "layer_norm_in.bias": "C",
    "layer_norm_out.weight": "D", "layer_norm_out.bias": "D",
}  # fmt: skip


def random_state(c: int, d: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = {"C": c, "D": d}
    return {
        name: torch.randn([width[letter] for letter in shape], generator=generator, dtype=torch.float64)
        for name, shape in OPENFOLD.items()
    }


def made(c: int, d: int, outgoing: bool, **options) -> TriangleMultiplicativeUpdate:
    module = TriangleMultiplicativeUpdate(c, d, outgoing, **options).double()
    module.load_state_dict(random_state(c, d), strict=True)
    return module


def pair(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / (variance + 1e-5) ** 0.5 * weight + bias


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def defined(state: dict[str, Tensor], z: Tensor, mask: Tensor | None, outgoing: bool) -> Tensor:
    """Algorithm 11, or 12, for one pair representation [N, N, C], one pair and one term at a time."""
    n = z.shape[0]
    pairs = [(i, j) for i in range(n) for j in range(n)]

    def linear(name: str, x: Tensor) -> Tensor:
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return normalised(x, state[f"{name}.weight"], state[f"{name}.bias"])

    h, a, b, g = {}, {}, {}, {}
    for i, j in pairs:
        m = 1 if mask is None else mask[i, j]
        h[i, j] = layer_norm("layer_norm_in", z[i, j])
        a[i, j] = m * sigmoid(linear("linear_a_g", h[i, j])) * linear("linear_a_p", h[i, j])
        b[i, j] = m * sigmoid(linear("linear_b_g", h[i, j])) * linear("linear_b_p", h[i, j])
        g[i, j] = sigmoid(linear("linear_g", h[i, j]))
    rows = []
    for i, j in pairs:
        t = torch.zeros_like(a[i, j])
        for k in range(n):
            t = t + (a[i, k] * b[j, k] if outgoing else a[k, i] * b[k, j])
        rows.append(g[i, j] * linear("linear_z", layer_norm("layer_norm_out", t)))
    return torch.stack(rows).reshape(z.shape)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("n, c, d", [(4, 3, 5), (5, 6, 2), (1, 4, 4)])
def test_values_and_gradients_are_the_algorithms(n, c, d, outgoing, masked):
    module = made(c, d, outgoing)
    z = pair(n, n, c).requires_grad_()
    mask = pair(n, n, seed=2).sigmoid() if masked else None
    state = {name: value.clone().requires_grad_() for name, value in random_state(c, d).items()}
    ours, expected = module(z, mask), defined(state, z, mask, outgoing)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)

    cotangent = pair(n, n, c, seed=3)
    of_ours = torch.autograd.grad(ours, [z, *module.parameters()], cotangent)
    names = [name for name, _ in module.named_parameters()]
    of_expected = torch.autograd.grad(expected, [z, *(state[name] for name in names)], cotangent)
    for name, found, wanted in zip(["z", *names], of_ours, of_expected, strict=True):
        assert found.isfinite().all(), name
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("outgoing", [True, False])
def test_a_masked_row_is_finite_with_finite_gradients(outgoing):
    module = made(4, 3, outgoing)
    z, mask = pair(5, 5, 4).requires_grad_(), torch.ones(5, 5, dtype=torch.float64)
    mask[2], mask[:, 2] = 0, 0  # a residue that is padding
    update = module(z, mask)
    torch.testing.assert_close(update, defined(random_state(4, 3), z, mask, outgoing), rtol=1e-10, atol=1e-10)
    assert update.isfinite().all()
    gradients = torch.autograd.grad(update.square().sum(), [z, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    # t is 0 there, so its normalised value is the bias, and only the gate depends on z
    state = random_state(4, 3)
    flat = state["linear_z.weight"] @ state["layer_norm_out.bias"] + state["linear_z.bias"]
    h = normalised(z[2, 0].detach(), state["layer_norm_in.weight"], state["layer_norm_in.bias"])
    gate = sigmoid(state["linear_g.weight"] @ h + state["linear_g.bias"])
    torch.testing.assert_close(update[2, 0].detach(), gate * flat, rtol=1e-10, atol=1e-10)
    fully = module(z, torch.zeros(5, 5))
    assert fully.isfinite().all() and torch.autograd.grad(fully.sum(), z)[0].isfinite().all()


def test_incoming_of_z_is_outgoing_of_its_transpose_in_the_product():
    """Algorithm 12's a_ki b_kj is Algorithm 11's a_ik b_jk of transposed a and b.

    So with the gate held at one half (its parameters 0), incoming(z) = outgoing(z^T), where ^T swaps the pair
    dimensions of the argument and of the mask, and not those of the result: t_ij keeps its places. With its gate, which
    reads z at (i, j), incoming(z) is gate(z) times that.
    """
    outgoing, incoming = made(4, 3, True), made(4, 3, False)
    z, mask = pair(2, 6, 6, 4), pair(2, 6, 6, seed=4).sigmoid()
    gate_weight, gate_bias = (value.clone() for value in (outgoing.linear_g.weight.data, outgoing.linear_g.bias.data))
    for module in (outgoing, incoming):
        torch.nn.init.zeros_(module.linear_g.weight)
        torch.nn.init.zeros_(module.linear_g.bias)
    ungated = 2 * outgoing(z.transpose(1, 2), mask.transpose(1, 2))
    torch.testing.assert_close(2 * incoming(z, mask), ungated, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(2 * incoming(z, mask), 2 * outgoing(z, mask))

    incoming.linear_g.load_state_dict({"weight": gate_weight, "bias": gate_bias})
    gate = torch.sigmoid(incoming.linear_g(incoming.layer_norm_in(z)))
    torch.testing.assert_close(incoming(z, mask), gate * ungated, rtol=1e-10, atol=1e-10)


def test_trading_a_and_b_transposes_the_product():
    """sum_k b_ik a_jk = (sum_k a_ik b_jk)^T: with the gate held, a module whose a and b traded places gives u^T."""
    module = made(4, 3, True)
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(getattr(module.linear_g, name))
    state = module.state_dict()
    other = made(4, 3, True)
    trade = {"linear_a": "linear_b", "linear_b": "linear_a"}
    other.load_state_dict({trade.get(key[:8], key[:8]) + key[8:]: value for key, value in state.items()})
    z, mask = pair(6, 6, 4), pair(6, 6, seed=4).sigmoid()
    torch.testing.assert_close(other(z, mask), module(z, mask).transpose(0, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outgoing", [True, False])
def test_permuting_residues_permutes_the_update(outgoing):
    module, z, mask = made(4, 3, outgoing), pair(7, 7, 4), pair(7, 7, seed=4).sigmoid()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    permuted = module(z[order][:, order], mask[order][:, order])
    torch.testing.assert_close(permuted, module(z, mask)[order][:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,), (2, 0)])
def test_leading_dimensions(shape):
    module = made(4, 3, True)
    z, mask = pair(*shape, 5, 5, 4), pair(*shape, 5, 5, seed=4) > 0
    update = module(z, mask)
    assert update.shape == z.shape
    flat, flat_mask = z.reshape(-1, 5, 5, 4), mask.reshape(-1, 5, 5)
    for one, single, its_mask in zip(update.reshape(-1, 5, 5, 4), flat, flat_mask):
        torch.testing.assert_close(one, module(single, its_mask), rtol=1e-10, atol=1e-10)


def test_no_residues():
    module = made(4, 3, True)
    z = pair(2, 0, 0, 4).requires_grad_()
    update = module(z)
    update.sum().backward()
    assert update.shape == z.shape and z.grad.shape == z.shape
    assert all(parameter.grad.count_nonzero() == 0 for parameter in module.parameters())


def test_openfold_state_dict_and_names():
    module = TriangleMultiplicativeUpdate(6, 3)
    width = {"C": 6, "D": 3}
    shapes = {name: [width[letter] for letter in shape] for name, shape in OPENFOLD.items()}
    assert {name: list(value.shape) for name, value in module.state_dict().items()} == shapes
    assert TriangleMultiplicationOutgoing(6, 3).outgoing and not TriangleMultiplicationIncoming(6, 3).outgoing
    z = pair(4, 4, 6)
    for outgoing, kind in ((True, TriangleMultiplicationOutgoing), (False, TriangleMultiplicationIncoming)):
        named = kind(6, 3).double()
        named.load_state_dict(random_state(6, 3), strict=True)
        assert torch.equal(named(z), made(6, 3, outgoing)(z))
    with pytest.raises(RuntimeError, match="linear_b_g.bias"):
        module.load_state_dict({k: v for k, v in random_state(6, 3).items() if k != "linear_b_g.bias"}, strict=True)


def test_initialisation():
    torch.manual_seed(0)
    module = TriangleMultiplicativeUpdate(400, 300)
    for projection in (module.linear_a_p, module.linear_b_p):
        weight = projection.weight * 400**0.5  # of variance 1
        assert abs(weight.std() - 1) < 0.01 and abs(weight.mean()) < 0.01
        assert 2.2 < weight.abs().max() < 2.28  # cut off at two deviations of the normal distribution, 2 / 0.8796
        assert projection.bias.count_nonzero() == 0
    assert not torch.equal(module.linear_a_p.weight, module.linear_b_p.weight)
    for gate in (module.linear_a_g, module.linear_b_g, module.linear_g):
        assert gate.weight.count_nonzero() == 0 and (gate.bias == 1).all()
    assert module.linear_z.weight.count_nonzero() == 0 and module.linear_z.bias.count_nonzero() == 0
    for norm in (module.layer_norm_in, module.layer_norm_out):
        assert (norm.weight == 1).all() and norm.bias.count_nonzero() == 0 and norm.eps == 1e-5
    assert module(torch.randn(4, 4, 400)).count_nonzero() == 0

    torch.manual_seed(5)
    module.reset_parameters()
    torch.manual_seed(5)
    again = TriangleMultiplicativeUpdate(400, 300)
    assert not torch.equal(module.linear_a_p.weight, TriangleMultiplicativeUpdate(400, 300).linear_a_p.weight)
    torch.manual_seed(5)
    again.reset_parameters()
    torch.manual_seed(5)
    module.reset_parameters()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("outgoing", [True, False])
def test_without_biases(outgoing):
    module = TriangleMultiplicativeUpdate(4, 3, outgoing, bias=False).double()
    state = random_state(4, 3)
    for name in state:
        if name.startswith("linear") and name.endswith("bias"):
            state[name] = torch.zeros_like(state[name])
    module.load_state_dict({name: value for name, value in state.items() if name in module.state_dict()}, strict=True)
    assert len(module.state_dict()) == 10
    z = pair(5, 5, 4)
    torch.testing.assert_close(module(z), defined(state, z, None, outgoing), rtol=1e-10, atol=1e-10)


def test_low_memory_is_used_only_where_no_gradient_is_recorded(monkeypatch):
    from paperops.nn import triangle_multiplication as file

    asked = []

    def spy(*arguments, low_memory, **options):
        asked.append(low_memory)
        return paperops.triangle_multiplicative_update(*arguments, **options)  # the definition has no low_memory

    monkeypatch.setattr(file, "triangle_multiplicative_update", spy)
    module, z = made(4, 3, True, low_memory=True), pair(5, 5, 4)
    recorded = module(z)
    with torch.no_grad():
        torch.testing.assert_close(module(z), recorded, rtol=1e-10, atol=1e-10)
    module.requires_grad_(False)
    module(z)
    module(z.clone().requires_grad_()).sum().backward()
    assert asked == [False, True, True, False]
    made(4, 3, True)(z)
    assert asked[-1] is False


@pytest.mark.parametrize("whole", [False, True])
def test_low_memory_gives_the_same(whole):
    if backends.candidates("triangle_multiplication", "cpu")[0] == "reference":
        pytest.skip("the definition has no low_memory")
    module, z, mask = made(4, 3, True), pair(2, 5, 5, 4), pair(2, 5, 5, seed=4).sigmoid()
    lean = made(4, 3, True, low_memory=True)
    lean = torch.compile(lean, fullgraph=True) if whole else lean
    with torch.no_grad():
        torch.testing.assert_close(lean(z, mask), module(z, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["half module", "float32 parameters", "autocast"])
def test_half_precision(dtype, way):
    exact = made(8, 8, True)
    z = pair(2, 9, 9, 8).to(dtype)
    module = copy.deepcopy(exact).to(dtype if way == "half module" else torch.float32)
    if way == "half module":
        exact = copy.deepcopy(module).double()
    x = z.float().requires_grad_() if way == "autocast" else z.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=way == "autocast"):
        update = module(x)
    assert update.dtype == dtype
    update.float().sum().backward()
    expected = exact(z.double())
    bound = 8 * torch.finfo(dtype).eps * expected.abs().max()
    assert (update.double() - expected).abs().max() < bound
    assert x.grad.dtype == x.dtype and x.grad.isfinite().all()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in module.parameters())


def test_compiles_whole():
    module = made(4, 3, False)
    whole = torch.compile(module, fullgraph=True)
    z, mask = pair(2, 5, 5, 4).requires_grad_(), pair(2, 5, 5, seed=4).sigmoid()
    update = whole(z, mask)
    torch.testing.assert_close(update, module(z, mask), rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(update.square().sum(), [z, *module.parameters()])
    eager = torch.autograd.grad(module(z, mask).square().sum(), [z, *module.parameters()])
    torch.testing.assert_close(ours, eager, rtol=1e-8, atol=1e-8)


def test_copies_and_words():
    module = made(4, 3, False, precision="ieee", low_memory=True)
    z = pair(5, 5, 4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(z), module(z)) and other.extra_repr() == module.extra_repr()
    assert "c_z=4, c_hidden=3, outgoing=False, precision='ieee', low_memory=True" in repr(module)
    assert repr(TriangleMultiplicationOutgoing(4, 3, bias=False)).startswith(
        "TriangleMultiplicationOutgoing(\n  c_z=4, c_hidden=3, outgoing=True, bias=False\n"
    )
    meta = TriangleMultiplicativeUpdate(4, 3, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in meta.parameters())


def test_refused():
    module = TriangleMultiplicativeUpdate(4, 3)
    for z, error, said in (
        (torch.zeros(5, 6, 4), ValueError, "z must be square"),
        (torch.zeros(5, 5, 3), ValueError, r"z must have c_z = 4 channels; got \[5, 5, 3\]"),
        (torch.zeros(5, 4), ValueError, "z must have shape"),
        (torch.zeros(5, 5, 4, dtype=torch.int64), TypeError, "z must be float"),
        ([[0.0]], TypeError, "z must be a torch.Tensor"),
    ):
        with pytest.raises(error, match=said):
            module(z)
    with pytest.raises(ValueError, match=r"mask must have shape \[5, 5\]"):
        module(torch.zeros(5, 5, 4), torch.ones(5))
    with pytest.raises(ValueError, match="precision='tf32' is not there on a CPU"):
        TriangleMultiplicativeUpdate(4, 3, precision="tf32")(torch.zeros(5, 5, 4))
    for arguments, options, error, said in (
        ((0, 3), {}, ValueError, "c_z must be at least 1"),
        ((4, 2.5), {}, TypeError, "c_hidden must be an int"),
        ((4, 3, "outgoing"), {}, TypeError, "outgoing must be True or False"),
        ((4, 3), {"precision": "half"}, ValueError, "precision must be one of None, 'tf32', 'tf32x3', 'ieee'"),
        ((4, 3), {"low_memory": 1}, TypeError, "low_memory must be True or False"),
    ):
        with pytest.raises(error, match=said):
            TriangleMultiplicativeUpdate(*arguments, **options)


class _Adapter(torch.nn.Module):
    """A layer around a layer, as adapters of low rank are: it has a weight, and does more than that."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias


def test_children_that_must_be_called_are_refused():
    """The op reads weights: what it would pass over may not stand there."""
    module, z = TriangleMultiplicativeUpdate(4, 3), torch.randn(1, 5, 5, 4)
    module.linear_z = _Adapter(module.linear_z)
    with pytest.raises(TypeError, match=r"linear_z must be a torch.nn.Linear.*got _Adapter"):
        module(z)
    module = TriangleMultiplicativeUpdate(4, 3)
    module.layer_norm_out = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"layer_norm_out must be a torch.nn.LayerNorm.*got Identity"):
        module(z)
    module = TriangleMultiplicativeUpdate(4, 3)
    module.layer_norm_out.eps = 1e-3
    with pytest.raises(ValueError, match="must have one eps; got 1e-05 and 0.001"):
        module(z)
    module = torch.nn.utils.parametrizations.weight_norm(TriangleMultiplicativeUpdate(4, 3).linear_a_p)
    assert isinstance(module, torch.nn.Linear)  # a parametrized layer still is one


def test_a_bias_of_one_side_only():
    module = made(4, 3, True)
    z = torch.randn(1, 5, 5, 4, dtype=torch.float64)
    other = copy.deepcopy(module)
    module.linear_a_p.bias = None
    with torch.no_grad():
        other.linear_a_p.bias.zero_()
    assert torch.equal(module(z), other(z))


def test_dtypes_that_do_not_go_together():
    with pytest.raises(TypeError, match=r"z of torch.float32 does not go with parameters of torch.float16"):
        TriangleMultiplicativeUpdate(4, 3).half()(torch.randn(1, 5, 5, 4))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"autocast takes z as torch.bfloat16"):
        TriangleMultiplicativeUpdate(4, 3).half()(torch.randn(1, 5, 5, 4).half())


def test_autocast_keeps_the_digits_of_a_residual_stream():
    """A float32 z far from zero is not rounded as it stands: only what differs along a row counts."""
    exact, z = made(64, 16, True), torch.randn(1, 24, 24, 64)
    module = copy.deepcopy(exact).float()
    errors = []
    for offset in (0, 100):
        with torch.no_grad():
            right = exact((z + offset).double())
            with torch.autocast("cpu", torch.bfloat16):
                out = module(z + offset)
        assert out.dtype == torch.bfloat16
        errors.append(float((out.double() - right).abs().max() / right.abs().max()))
    assert errors[1] < 1.2 * errors[0] and errors[0] < 0.05, errors
