"""Shared dropout: what its masks share, how they scale, what backward keeps."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from paperops.nn import DropoutColumnwise, DropoutRowwise

KINDS = {"rows": (DropoutRowwise, -3), "columns": (DropoutColumnwise, -2)}


@pytest.fixture(params=KINDS)
def kind(request):
    """The class, and the dimension over which its mask is shared."""
    torch.manual_seed(0)
    return KINDS[request.param]


def ones(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def test_the_mask_is_shared_along_one_dimension_only(kind):
    cls, shared = kind
    dropped = cls(0.5)(ones(3, 2, 20, 30, 10))
    first = dropped.select(shared, 0)
    assert torch.equal(dropped, first.unsqueeze(shared).expand_as(dropped))
    for dim in {-5, -4, -3, -2, -1} - {shared}:  # every other index has a mask of its own
        assert not torch.equal(dropped.select(dim, 0), dropped.select(dim, 1)), dim
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_rows_are_dimension_3_from_the_end_and_columns_2():
    assert DropoutRowwise.shared_dim == -3 and DropoutColumnwise.shared_dim == -2


@pytest.mark.parametrize("r", [0.1, 0.25, 0.9])
def test_rate_and_scale(kind, r):
    cls, shared = kind
    dropped = cls(r)(ones(64, 16, 16, 32))
    independent = dropped.select(shared, 0)  # 32768 masks
    share = (independent == 0).double().mean().item()
    assert abs(share - r) < 5 * (r * (1 - r) / independent.numel()) ** 0.5
    kept = independent[independent != 0].unique()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - r)), rtol=1e-15, atol=0)
    assert not torch.equal(cls(r)(ones(64, 16, 16, 32)), dropped)  # the next call has other masks


def test_fused_is_the_residual_plus_what_is_dropped(kind):
    cls, _ = kind
    update, residual = torch.randn(2, 5, 7, 3, dtype=torch.float64), torch.randn(2, 5, 7, 3, dtype=torch.float64)
    module = cls(0.4)
    torch.manual_seed(3)
    alone = module(update)
    torch.manual_seed(3)
    torch.testing.assert_close(module(update, residual), residual + alone, rtol=1e-15, atol=1e-15)
    assert 0 < (alone == 0).sum() < alone.numel()
    torch.manual_seed(3)
    mask = module(torch.ones_like(update))
    torch.testing.assert_close(alone, mask * update, rtol=1e-15, atol=0)


def test_gradients(kind):
    cls, _ = kind
    module = cls(0.4)
    update, residual = (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def seeded(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return module(*tensors)

    cotangent = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    mask = seeded(torch.ones_like(update))
    of_update, of_residual = torch.autograd.grad(seeded(update, residual), (update, residual), cotangent)
    torch.testing.assert_close(of_update, mask * cotangent, rtol=1e-15, atol=0)
    assert torch.equal(of_residual, cotangent)
    assert torch.autograd.gradcheck(seeded, (update, residual)) and torch.autograd.gradcheck(seeded, (update,))
    assert torch.autograd.gradgradcheck(lambda u, z: seeded(u * u, z), (update, residual))


@pytest.mark.parametrize("with_residual", [False, True])
def test_backward_keeps_the_small_mask_alone(kind, with_residual):
    cls, shared = kind
    update, residual = (torch.randn(2, 9, 9, 4, requires_grad=True) for _ in range(2))
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cls(0.25)(update, residual if with_residual else None)
    shape = [2, 9, 9, 4]
    shape[shared] = 1
    assert [list(tensor.shape) for tensor in kept] == [shape]
    assert kept[0].untyped_storage().nbytes() == 4 * kept[0].numel()  # and no view of something larger


def test_random_numbers_are_as_many_as_the_mask(kind):
    """The generator's state after a call is that after drawing one mask."""
    cls, shared = kind
    shape = [9, 9, 4]
    shape[shared] = 1
    torch.manual_seed(1)
    cls(0.25)(torch.ones(9, 9, 4))
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    torch.empty(shape).bernoulli_(0.75)
    assert torch.equal(after, torch.random.get_rng_state())


def test_evaluation_and_rate_0_leave_all(kind):
    cls, _ = kind
    update, residual = torch.randn(5, 5, 3), torch.randn(5, 5, 3)
    for module in (cls(0.25).eval(), cls(0), cls(1.0).eval()):
        assert torch.equal(module(update), update)
        assert torch.equal(module(update, residual), residual + update)


def test_rate_1_drops_all(kind):
    cls, _ = kind
    update, residual = (torch.randn(5, 5, 3, requires_grad=True) for _ in range(2))
    out = cls(1)(update, residual)
    assert torch.equal(out, residual)
    of_update, of_residual = torch.autograd.grad(out.sum(), (update, residual))
    assert of_update.count_nonzero() == 0 and (of_residual == 1).all()
    assert cls(1)(update).count_nonzero() == 0


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(kind, dtype, residual_dtype):
    """The scale is not rounded to the dtype: 3 / 0.75 is 4 in bfloat16 too, forward and backward."""
    cls, _ = kind
    update = torch.full((6, 6, 40), 3.0, dtype=dtype, requires_grad=True)
    residual = None
    if residual_dtype is not None:
        residual = torch.full((6, 6, 40), 1.0, dtype=residual_dtype, requires_grad=True)
    out = cls(0.25)(update, residual)
    base = 0.0 if residual is None else 1.0
    assert out.dtype == (dtype if residual is None else torch.promote_types(dtype, residual_dtype))
    assert set(out.unique().tolist()) == {base, base + 4.0}
    out.backward(torch.full_like(out, 3.0))
    assert update.grad.dtype == dtype and set(update.grad.unique().tolist()) == {0.0, 4.0}
    if residual is not None:
        assert residual.grad.dtype == residual_dtype and (residual.grad == 3).all()


def test_compiles_whole(kind):
    cls, shared = kind
    module = cls(0.25)
    whole = torch.compile(module, fullgraph=True)
    update, residual = (torch.randn(6, 6, 5, requires_grad=True) for _ in range(2))
    out = whole(update, residual)
    mask = (out - residual).detach() / update.detach()
    assert torch.equal(mask.round(decimals=3).select(shared, 0), mask.round(decimals=3).select(shared, 1))
    of_update, of_residual = torch.autograd.grad(out.sum(), (update, residual))
    torch.testing.assert_close(of_update, mask, rtol=1e-3, atol=1e-5)  # the mask of the forward pass
    assert set(of_update.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()} and (of_residual == 1).all()
    assert torch.equal(torch.compile(cls(0.25).eval(), fullgraph=True)(update, residual), residual + update)


def test_vmap(kind):
    cls, shared = kind
    out = torch.func.vmap(cls(0.5), randomness="different")(ones(3, 8, 8, 16))
    assert torch.equal(out, out.select(shared, 0).unsqueeze(shared).expand_as(out))
    assert not torch.equal(out[0], out[1])


def test_copies_words_and_state(kind):
    cls, _ = kind
    module = cls(0.15)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.r == 0.15 and type(other) is cls
    assert repr(module) == f"{cls.__name__}(r=0.15)"
    assert not nn.Sequential(module).state_dict()


def test_refused(kind):
    cls, _ = kind
    for r in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="r must be a probability"):
            cls(r)
    for r in ("0.5", True, None, [0.5], torch.tensor(0.5)):
        with pytest.raises(TypeError, match="r must be a number"):
            cls(r)
    with pytest.raises(TypeError, match="residual must have a floating dtype; got torch.int64"):
        cls(0.25)(torch.zeros(5, 5, 3), torch.zeros(5, 5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="residual must be on the device of update, cpu; got meta"):
        cls(0.25)(torch.zeros(5, 5, 3), torch.zeros(5, 5, 3, device="meta"))
    with pytest.raises(ValueError, match=r"update must be floating.*got torch.float32 \[5, 3\]"):
        cls(0.25)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="update must be floating.*got torch.int64"):
        cls(0.25)(torch.zeros(5, 5, 3, dtype=torch.int64))
    for module in (cls(0.25), cls(0.25).eval()):
        with pytest.raises(ValueError, match=r"residual must have update's shape, \[5, 5, 3\]; got \[5, 1, 3\]"):
            module(torch.zeros(5, 5, 3), torch.zeros(5, 1, 3))
        with pytest.raises(TypeError, match="residual must be a torch.Tensor"):
            module(torch.zeros(5, 5, 3), 0.0)
