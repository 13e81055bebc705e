"""The generic checks catch faults: each is planted in a throwaway op, and seen to be reported by the check that must.

The op is the row sum of squares, x [B, N] -> [B]. It passes every check as long as nothing is planted in it.
"""

import itertools

import pytest
import torch

from paperops.ops._define import define, library, plain
from paperops.testing import checks
from paperops.testing.compare import CheckFailure
from paperops.testing.registry import Cost, Entry, Refused, Sample


def reference(x):
    return (x * x).sum(1)


def samples(device, dtype):
    generator = torch.Generator().manual_seed(0)
    for batch, points in ((3, 5), (2, 300)):
        x = torch.randn(batch, points, generator=generator, dtype=torch.float64).to(device, dtype)
        yield Sample(f"{batch} by {points}", {"x": x}, gradcheck=points < 10)


def refused(device):
    yield Refused("rank 1", {"x": torch.zeros(3, device=device)}, ValueError, r"x must have shape .*got \[3\]")


def forward(x):
    out = torch.empty(x.shape[0], dtype=x.dtype)
    return torch.sum((x * x).contiguous(), 1, out=out)


def leaves_one_element(x):
    out = torch.empty(x.shape[0], dtype=x.dtype)
    out[: max(x.shape[0] - 1, 0)] = (x * x)[:-1].sum(1)
    return out


calls = itertools.count()


def sums_in_another_order(x):
    start = next(calls) % max(x.shape[1], 1)
    total = torch.zeros(x.shape[0], dtype=x.dtype)
    for column in (x * x).roll(start, 1).unbind(1):
        total = total + column
    return total


def derivative(ctx, grad):
    (x,) = ctx.saved_tensors
    return 2 * grad[:, None] * x


def wrong_derivative(ctx, grad):
    return derivative(ctx, grad) * 1.01


def save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


numbers = itertools.count()


def entry(implementation=forward, backward=derivative, with_fake=True, checked=True, autocast=None, follows=()):
    """The throwaway op as a registered one, with or without a fault."""
    name = f"planted_{next(numbers)}"
    schema = "(Tensor x) -> Tensor"
    if with_fake:
        op = define(
            name,
            schema,
            {"reference": plain(implementation)},
            fake=lambda x: x.new_empty(x.shape[0]),
            save=save,
            backward=backward,
            autocast=autocast,
        )
    else:
        library.define(name + schema)
        library.impl(name, implementation, "CPU")
        torch.library.register_autograd(f"paperops::{name}", backward, setup_context=save, lib=library)
        op = getattr(torch.ops.paperops, name).default

    def function(x):
        if checked and x.dim() != 2:
            raise ValueError(f"x must have shape [batch, points]; got {list(x.shape)}")
        return op(x if x.dim() == 2 else x[None])

    return Entry(
        name=name,
        family="planted",
        function=function,
        reference=reference,
        samples=samples,
        refused=refused,
        differentiable=("x",),
        batched=("x",),
        cost=lambda sample: Cost(0, 0),
        bench=(),
        sources=(),
        twice=True,
        autocast_arguments=follows,
    )


FAULTS = {
    "a wrong gradient": ({"backward": wrong_derivative}, ("gradients", "gradcheck")),
    "an unwritten output element": ({"implementation": leaves_one_element}, ("overwritten",)),
    "an order-dependent sum": ({"implementation": sums_in_another_order}, ("deterministic",)),
    "a missing fake": ({"with_fake": False}, ("opcheck", "compiles")),
    "float32 under autocast where its dtype is promised": ({"follows": ("x",)}, ("autocast",)),
    "autocast's dtype where float32 is promised": ({"autocast": (0,)}, ("autocast",)),
    "a silent acceptance of bad input": ({"checked": False}, ("refused",)),
}


def run(check, planted):
    for dtype in planted.dtypes:
        if checks.applies(check, planted, "cpu", dtype):
            checks.run(check, planted, torch.device("cpu"), dtype)


@pytest.fixture(autouse=True)
def restored():
    """A throwaway op leaves no trace in the table of implementations."""
    from paperops import backends

    before = dict(backends._implementations)
    yield
    backends._implementations.clear()
    backends._implementations.update(before)


@pytest.mark.parametrize("check", list(checks.CHECKS))
def test_the_op_itself_passes(check):
    run(check, entry())


@pytest.mark.parametrize("check", ["autocast", "values", "gradients", "opcheck", "compiles"])
def test_an_op_that_follows_autocast_passes(check):
    run(check, entry(autocast=(0,), follows=("x",)))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault):
    planted, caught_by = FAULTS[fault]
    for check in caught_by:
        with pytest.raises(CheckFailure):
            run(check, entry(**planted))
