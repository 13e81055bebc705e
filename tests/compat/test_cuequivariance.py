"""paperops.compat.cuequivariance against the formula of that library's documentation, written with einsum."""

import enum
import inspect
import math
from unittest import mock

import pytest
import torch
from torch import Tensor

import paperops
from paperops.compat import cuequivariance
from paperops.compat.cuequivariance import triangle_multiplicative_update

PUBLISHED = (
    "x direction='outgoing' mask=None norm_in_weight=None norm_in_bias=None p_in_weight=None p_in_bias=None "
    "g_in_weight=None g_in_bias=None norm_out_weight=None norm_out_bias=None p_out_weight=None p_out_bias=None "
    "g_out_weight=None g_out_bias=None eps=1e-05 precision=None"
)
ARGUMENTS = [word.partition("=")[0] for word in PUBLISHED.split()]
PROJECTIONS = ("p_in_weight", "g_in_weight", "p_out_weight", "g_out_weight")


def test_argument_list():
    parameters = inspect.signature(triangle_multiplicative_update).parameters.values()
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(ours) == PUBLISHED


def parameters(c: int, d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {
        "norm_in_weight": (c,), "norm_in_bias": (c,), "p_in_weight": (2 * d, c), "p_in_bias": (2 * d,),
        "g_in_weight": (2 * d, c), "g_in_bias": (2 * d,), "norm_out_weight": (d,), "norm_out_bias": (d,),
        "p_out_weight": (c, d), "p_out_bias": (c,), "g_out_weight": (c, c), "g_out_bias": (c,),
    }  # fmt: skip
    return {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def defined(x: Tensor, direction: str, mask: Tensor | None, p: dict[str, Tensor | None], eps: float = 1e-5) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        x, weight, bias = (x - mean) / torch.sqrt(variance + eps), p.get(f"{name}_weight"), p.get(f"{name}_bias")
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def linear(name: str, x: Tensor) -> Tensor:
        bias = p.get(f"{name}_bias")
        return x @ p[f"{name}_weight"].T + (0.0 if bias is None else bias)

    h = norm("norm_in", x)
    ab = linear("g_in", h).sigmoid() * linear("p_in", h)
    ab = ab if mask is None else ab * mask[..., None]
    a, b = ab.chunk(2, -1)
    t = torch.einsum("...ikd,...jkd->...ijd" if direction == "outgoing" else "...kid,...kjd->...ijd", a, b)
    return linear("g_out", h).sigmoid() * linear("p_out", norm("norm_out", t))


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
@pytest.mark.parametrize("given", ["all", "no biases", "projections alone"])
def test_values_and_gradients_by_position_and_by_name(direction, given):
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 5, 6, dtype=torch.float64, requires_grad=True), torch.rand(2, 5, 5, dtype=torch.float64)
    p = parameters(6, 4)
    if given == "no biases":
        p = {name: value for name, value in p.items() if not (name.endswith("bias") and "norm" not in name)}
    elif given == "projections alone":
        p = {name: p[name] for name in PROJECTIONS}
    for value in p.values():
        value.requires_grad_()
    expected = defined(x, direction, mask, p, 1e-3)
    by_name = triangle_multiplicative_update(x=x, direction=direction, mask=mask, **p, eps=1e-3)
    by_position = triangle_multiplicative_update(x, direction, mask, *(p.get(name) for name in ARGUMENTS[3:15]), 1e-3)
    torch.testing.assert_close(by_name, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(by_name, by_position)
    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(by_name, [x, *p.values()], cotangent)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [x, *p.values()], cotangent), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_leading_dimensions_and_masks_that_broadcast(leading):
    torch.manual_seed(0)
    x, p = torch.randn(*leading, 4, 4, 3, dtype=torch.float64), parameters(3, 2)
    for shape in ((*leading, 4, 4), (4, 4), (1, 4)):
        mask = torch.rand(shape, dtype=torch.float64) > 0.3
        expected = defined(x, "incoming", mask.expand(*leading, 4, 4), p)
        ours = triangle_multiplicative_update(x, "incoming", mask, **p)
        assert ours.shape == x.shape
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"mask must have shape .* or broadcast to it; got \[3, 3\]"):
        triangle_multiplicative_update(x, "incoming", torch.ones(3, 3), **p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_are_drawn(dtype):
    """The one unknown of each drawn weight is seen through the op that is called in the end."""
    x = torch.randn(1, 3, 3, 200, dtype=dtype)
    with mock.patch.object(cuequivariance, "paperops_update", wraps=cuequivariance.paperops_update) as called:
        torch.manual_seed(0)
        out = triangle_multiplicative_update(x)
        torch.manual_seed(0)
        again = triangle_multiplicative_update(x)
        assert torch.equal(out, again) and not torch.equal(out, triangle_multiplicative_update(x))
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    given = called.call_args_list[0].kwargs
    shapes = dict(zip(PROJECTIONS, ([400, 200], [400, 200], [200, 200], [200, 200])))
    for name, shape in shapes.items():
        weight = given[name]
        assert list(weight.shape) == shape and weight.dtype == dtype and not weight.requires_grad
        scaled = weight.double() * math.sqrt(200)  # of variance 1
        assert abs(scaled.std() - 1) < 0.02 and abs(scaled.mean()) < 0.02
        assert 2.2 < scaled.abs().max() < 2.29  # cut off at two deviations of the normal distribution, 2 / 0.8796
    assert all(given[name] is None for name in given if name.startswith("norm") or name.endswith("bias"))


def test_the_hidden_width_of_drawn_weights_is_that_of_the_others():
    x, p = torch.randn(1, 4, 4, 6, dtype=torch.float64), parameters(6, 3)
    for name in PROJECTIONS:
        lacking = {key: value for key, value in p.items() if key != name}
        assert triangle_multiplicative_update(x, **lacking).shape == x.shape
    for name in ("p_in_weight", "g_in_weight", "p_out_weight"):
        assert triangle_multiplicative_update(x, **{name: p[name]}).shape == x.shape
    weights = {name: p[name].requires_grad_() for name in PROJECTIONS if name != "g_in_weight"}
    triangle_multiplicative_update(x, **weights).sum().backward()
    assert all(weight.grad.count_nonzero() for weight in weights.values())


class TriMulPrecision(enum.IntEnum):
    """As the library's: a member is also a number, and it is its name that counts."""

    NONE = -1
    DEFAULT = 0
    TF32 = 1
    TF32x3 = 2
    IEEE = 3


class Renumbered(enum.Enum):
    IEEE = 1
    TF32 = "x"


def asked(precision: object, x: Tensor) -> object:
    """What the op is asked for."""
    with mock.patch.object(cuequivariance, "paperops_update", return_value=x) as called:
        triangle_multiplicative_update(x, precision=precision)
    return called.call_args.kwargs["precision"]


def test_precision_by_name_number_and_member():
    x = torch.randn(1, 3, 3, 4)
    for name, expected in (("NONE", None), ("DEFAULT", None), ("TF32", "tf32"), ("TF32x3", "tf32x3"), ("IEEE", "ieee")):
        assert asked(TriMulPrecision[name], x) == expected
        assert asked(name, x) == asked(name.lower(), x) == expected
    assert asked(None, x) is None
    assert [asked(number, x) for number in range(4)] == [None, "tf32", "tf32x3", "ieee"]
    assert asked(Renumbered.IEEE, x) == "ieee" and asked(Renumbered.TF32, x) == "tf32"
    for wrong in ("half", 4, -2, True, 1.0):
        with pytest.raises(ValueError, match="precision must be None or one of none, default, tf32, tf32x3, ieee, bfl"):
            triangle_multiplicative_update(x, precision=wrong)


def test_precision_is_honoured_or_refused():
    x, p = torch.randn(1, 3, 3, 4), parameters(4, 2, torch.float32)
    assert torch.equal(triangle_multiplicative_update(x, **p, precision="IEEE"), triangle_multiplicative_update(x, **p))
    with pytest.raises(ValueError, match="precision='tf32' is not there on a CPU"):
        triangle_multiplicative_update(x, **p, precision=TriMulPrecision.TF32)


def test_the_default_for_float32_on_an_nvidia_gpu(monkeypatch):
    """tf32x3, or tf32 where torch allows it; nothing is computed here."""
    x = mock.Mock(device=torch.device("cuda"), dtype=torch.float32)
    monkeypatch.setattr(cuequivariance, "_HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuequivariance.backends, "forced", lambda: None)
    assert cuequivariance._precision("none", x) == cuequivariance._precision("default", x) == "tf32x3"
    assert cuequivariance._precision("ieee", x) == "ieee"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert cuequivariance._precision("none", x) is None  # torch's own setting: tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert cuequivariance._precision("none", mock.Mock(device=torch.device("cuda"), dtype=torch.float16)) is None
    assert cuequivariance._precision("none", mock.Mock(device=torch.device("cpu"), dtype=torch.float32)) is None
    monkeypatch.setattr(cuequivariance.backends, "forced", lambda: "reference")
    assert cuequivariance._precision("none", x) is None
    monkeypatch.setattr(cuequivariance.backends, "forced", lambda: None)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert cuequivariance._precision("none", x) is None


def test_bfloat16_rounds_everything_first():
    torch.manual_seed(0)
    x, mask, p = torch.randn(1, 6, 6, 8, requires_grad=True), torch.rand(1, 6, 6), parameters(8, 4, torch.float32)
    for value in p.values():
        value.requires_grad_()
    ours = triangle_multiplicative_update(x, "outgoing", mask, **p, precision="bfloat16")
    rounded = {name: value.detach().bfloat16() for name, value in p.items()}
    assert ours.dtype == torch.bfloat16
    assert torch.equal(
        ours, triangle_multiplicative_update(x.detach().bfloat16(), "outgoing", mask.bfloat16(), **rounded)
    )
    expected = defined(
        x.detach().bfloat16().double(),
        "outgoing",
        mask.bfloat16().double(),
        {k: v.double() for k, v in rounded.items()},
    )
    assert (ours.double() - expected).abs().max() < 0.05 * expected.abs().max()
    ours.float().square().sum().backward()
    for value in (x, *p.values()):
        assert value.grad.dtype == torch.float32 and value.grad.isfinite().all() and value.grad.count_nonzero()


def test_autocast_and_compile():
    torch.manual_seed(0)
    x, p = torch.randn(1, 6, 6, 8), parameters(8, 4, torch.float32)
    exact = defined(x.double(), "outgoing", None, {name: value.double() for name, value in p.items()})
    with torch.autocast("cpu", torch.bfloat16):
        ours = triangle_multiplicative_update(x, **p)
        assert triangle_multiplicative_update(x).shape == x.shape  # drawn weights
    assert ours.dtype == torch.bfloat16 and (ours.double() - exact).abs().max() < 0.05 * exact.abs().max()
    whole = torch.compile(triangle_multiplicative_update, fullgraph=True)
    torch.testing.assert_close(whole(x, mask=torch.ones(6, 6), **p), triangle_multiplicative_update(x, **p))
    assert whole(x).isfinite().all()


def test_refused():
    x, p = torch.randn(1, 3, 3, 4), parameters(4, 2, torch.float32)
    for arguments, error, said in (
        ({"x": torch.randn(1, 3, 4, 4)}, ValueError, "x must be square"),
        ({"x": torch.randn(3, 4)}, ValueError, "x must have shape"),
        ({"x": None}, TypeError, "x must be a torch.Tensor"),
        ({"direction": "upward"}, ValueError, "direction must be one of 'outgoing', 'incoming'"),
        ({"mask": torch.ones(1, 3, 3, requires_grad=True)}, ValueError, "mask takes no gradient"),
        ({"mask": [1.0]}, TypeError, "mask must be a torch.Tensor"),
        ({"g_in_weight": torch.randn(3, 4)}, ValueError, "g_in_weight must have shape"),
        ({"eps": 0}, ValueError, "eps must be positive"),
        ({"eps": 10**400}, ValueError, "eps must be positive and finite; got inf"),
        ({"precision": "bfloat16", "p_out_weight": torch.ones(4, 2).long()}, TypeError, "p_out_weight must be float16"),
        ({"precision": "bfloat16", "mask": torch.ones(1, 3, 3).long()}, TypeError, "mask must be bool or floating"),
        ({"p_in_weight": [1.0], "p_out_weight": None}, TypeError, "p_in_weight must be a torch.Tensor; got list"),
        (
            {"p_in_weight": p["p_in_weight"][None], "p_out_weight": None},
            ValueError,
            "p_in_weight must have 2 dimensions",
        ),
        ({"norm_in_bias": torch.tensor(0.0)}, ValueError, r"norm_in_bias must have 1 dimension; got \[\]"),
    ):
        with pytest.raises(error, match=said):
            triangle_multiplicative_update(**{"x": x, **p, **arguments})


def test_the_same_as_the_op():
    x, p = torch.randn(2, 5, 5, 4), parameters(4, 2, torch.float32)
    assert torch.equal(
        triangle_multiplicative_update(x, "incoming", **p), paperops.triangle_multiplicative_update(x, "incoming", **p)
    )
