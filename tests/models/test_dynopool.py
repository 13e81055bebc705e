"""Learned sizes in any model: what is replaced, what is counted, and the gradient of the counts."""

import contextlib
import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode

import paperops
from paperops.models.dynopool import MacsCounter, Replaced, ResizedConv2d, gmacs_loss, replace_resizing, synchronise
from paperops.nn import DynOPool2d, ShapeAdaptor


class Block(nn.Module):
    """A residual block as in torchvision."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.relu(self.bn1(self.conv1(x))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Net(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1))
        self.head = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.blocks(self.pool(self.stem(x)))).flatten(1))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def learned(model: nn.Module) -> list[DynOPool2d]:
    return [module for module in model.modules() if isinstance(module, DynOPool2d)]


# --- replace_resizing ----------------------------------------------------------------------------------------------


def test_what_is_replaced():
    torch.manual_seed(0)
    model = Net()
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    assert replace_resizing(model) == [
        Replaced("stem", "Conv2d", (0.5, 0.5), None),
        Replaced("pool", "MaxPool2d", (0.5, 0.5), None),
        Replaced("blocks.1.conv1", "Conv2d", (0.5, 0.5), None),
        Replaced("blocks.1.downsample.0", "Conv2d", (0.5, 0.5), "blocks.1.conv1"),
    ]
    assert isinstance(model.stem, ResizedConv2d) and model.stem.stride == (1, 1)
    assert isinstance(model.pool, DynOPool2d) and model.blocks[1].conv1.resize is model.blocks[1].downsample[0].resize
    for name, parameter in model.named_parameters():
        assert name.endswith("alpha") or (parameter is before[name][0] and torch.equal(parameter, before[name][1]))
    state = {name for name in model.state_dict() if not name.endswith("alpha")}
    assert state == set(Net().state_dict())  # weights of the fixed network fit
    assert model.load_state_dict(Net().state_dict(), strict=False).unexpected_keys == []
    assert replace_resizing(model) == []  # nothing is left to replace


def test_strided_convolution_is_followed_by_pooling():
    convolution = nn.Conv2d(3, 4, 3, (2, 1), 1)
    model = nn.Sequential(convolution, nn.AvgPool2d((1, 3)))
    assert [replaced.scale for replaced in replace_resizing(model)] == [(0.5, 1.0), (1.0, 1 / 3)]
    x = images(2, 3, 8, 9)
    full = functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    one, two = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(model(x), paperops.dynopool_2d(paperops.dynopool_2d(full, one), two, (4, 3), "mean"))


def test_branches_keep_one_size_while_it_is_learned():
    torch.manual_seed(0)
    model = Net()
    replace_resizing(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator, seen = torch.Generator().manual_seed(1), set()
    for _ in range(8):
        with torch.no_grad():
            for layer in learned(model):
                layer.alpha.copy_(1 + 2 * torch.rand(2, generator=generator))
        optimizer.zero_grad()
        out = model(images(4, 3, 33, 26))
        (functional.cross_entropy(out, torch.arange(4)) + gmacs_loss(model, 1.0)).backward()
        assert all(layer.alpha.grad.abs().min() > 0 for layer in learned(model))
        optimizer.step()
        seen.add(tuple(layer.output_size for layer in MacsCounter(model).attach().layers)[-4])
    assert len(seen) > 3


def test_what_stays_as_it_is():
    class Own(nn.Conv2d):
        pass

    keep = (
        nn.MaxPool2d(2, return_indices=True), nn.AdaptiveMaxPool2d(3), nn.ConvTranspose2d(1, 1, 2, 2),
        Own(1, 1, 2, 2), nn.MaxPool2d(3, 1), nn.Conv2d(1, 1, 3), nn.Conv1d(1, 1, 2, 2),
        nn.AvgPool2d(2, divisor_override=1),
    )  # fmt: skip
    model = nn.Sequential(*keep, nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 2, 2)))
    assert [replaced.name for replaced in replace_resizing(model, skip=["8", "9.1"])] == ["9.0"]
    assert all(model[index] is module for index, module in enumerate(keep))


def test_a_layer_with_two_places_is_replaced_in_both():
    pool = nn.MaxPool2d(2)
    model = nn.ModuleDict({"a": pool, "b": nn.Sequential(pool), "c": pool})
    assert len(replace_resizing(model)) == 1
    assert isinstance(model["a"], DynOPool2d) and model["b"][0] is model["a"] and model["c"] is model["a"]


def test_given_shares_and_what_is_refused():
    def pools() -> nn.Sequential:
        return nn.Sequential(nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(4)))

    model = pools()
    assert [replaced.shares for replaced in replace_resizing(model, share=[("1.0", "0")])] == ["1.0", None, None]
    assert model[0] is model[1][0]
    two = nn.ModuleDict({"main": nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2)), "skip": nn.MaxPool2d(4)})
    refused = [
        (pools(), {"share": [("0", "1.1")]}, r"1.1 and 0 share a size, but start from \(0.25, 0.25\)"),
        (pools(), {"share": [("0", "2")]}, "share has names that are no resizing layers of the model: 2"),
        (pools(), {"share": ["01"]}, "share must have groups of two names"),
        (pools(), {"skip": ["7"]}, "skip has names that are not in the model: 7"),
        (pools(), {"mode": "min"}, "mode must be 'max' or 'mean'; got 'min'"),
        (pools(), {"share": [("0", "0")]}, "share must have groups of two names"),
        (pools(), {"share": [("0", "1.0")], "skip": ["0"]}, "share has names that are no resizing layers"),
        (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2)), {"share": [("0", "1")]}, "1 and 0 share a size, but pool by"),
        (two, {}, "ModuleDict resizes 2 times and its skip 1 times"),
        (nn.MaxPool2d(2), {}, "model must hold its layers; got a MaxPool2d"),
    ]
    for broken, options, message in refused:
        with pytest.raises(ValueError, match=message):
            replace_resizing(broken, **options)
    with pytest.raises(TypeError, match="model must be a module; got int"):
        replace_resizing(3)
    for options in ({"skip": "01"}, {"skip": None}, {"shortcuts": "skip"}, {"share": "01"}):
        with pytest.raises(TypeError, match=f"{next(iter(options))} must be"):
            replace_resizing(pools(), **options)
    assert len(replace_resizing(two, shortcuts=())) == 3


def test_groups_with_a_layer_in_common_are_one():
    for share in ([("0", "1"), ("2", "1")], [("0", "1"), ("1", "0"), ("1", "2")], [("2", "0"), ("1", "0")]):
        model = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2))
        assert sum(replaced.shares is None for replaced in replace_resizing(model, share=share)) == 1
        assert model[0] is model[1] is model[2]


def test_same_as_its_twin_on_the_reference():
    results = []
    for backend in (None, "reference"):
        torch.manual_seed(0)
        model = Net()
        replace_resizing(model)
        with paperops.use_backend(backend) if backend else torch.enable_grad():
            out = model(images(2, 3, 29, 38))
            (out.square().mean() + gmacs_loss(model, 10.0)).backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-6)


def test_nan_names_the_layer():
    model = Net()
    replace_resizing(model)
    with torch.no_grad():
        model.blocks[1].conv1.resize.alpha[1] = math.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.conv1\.resize \(DynOPool2d\): alpha must be finite"):
        model(images(1, 3, 16, 16))
    model.blocks[1].conv1.resize.reset_parameters()
    assert model(images(1, 3, 16, 16)).isfinite().all()  # and the model works again
    assert gmacs_loss(model, 1.0) > 0


# --- counting ------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 3, (2, 3), 2), nn.Flatten(),
        nn.Linear(3 * 8 * 9, 7),
    )  # fmt: skip
    with MacsCounter(model) as counter:
        out = model(images(5, 4, 8, 7))
    assert out.shape == (5, 7)
    assert [tuple(layer[:5]) for layer in counter.layers] == [
        ("0", "Conv2d", (6, 4, 4), 6 * 2 * 9 + 6, 6 * 4 * 4 * 2 * 9),
        ("2", "ConvTranspose2d", (3, 8, 9), 6 * 3 * 6 + 3, 6 * 4 * 4 * 3 * 6),
        ("4", "Linear", (7,), 7 * 216 + 7, 7 * 216),
    ]
    assert counter.macs == 1728 + 1728 + 1512
    console = Console(width=120, record=True)
    console.print(counter.table())
    text = console.export_text()
    assert "6 x 4 x 4" in text and "1,728" in text and "4,968" in text and "ConvTranspose2d" in text
    model(images(1, 4, 8, 7))  # no longer recorded
    assert len(counter.layers) == 3 and not model._forward_hooks and not model._forward_pre_hooks


def test_a_map_without_a_batch_counts_the_same():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ConvTranspose2d(6, 3, 2, 2))
    found = []
    for x in (images(5, 4, 8, 7), images(4, 8, 7)):
        with MacsCounter(model) as counter:
            model(x)
        found.append([tuple(layer) for layer in counter.layers])
    assert found[0] == found[1]


def test_counts_are_torchs():
    from torch.utils.flop_counter import FlopCounterMode

    model = Net()
    replace_resizing(model)
    with FlopCounterMode(display=False) as flops, MacsCounter(model) as counter:
        model(images(2, 3, 45, 38))
    assert flops.get_total_flops() == 2 * 2 * counter.macs
    assert [layer.name for layer in counter.layers][:3] == ["stem", "stem.resize", "pool"]


class Windows(nn.Module):
    """Attention of torch's within windows that are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unflatten(1, (3, 5)).flatten(0, 1)).chunk(3, 2)  # [B * 3, 5, 6]
        return functional.scaled_dot_product_attention(q, k[:, :4], v[:, :4, :2])


def test_attention_is_counted():
    with MacsCounter(model := Windows()) as counter:
        model(torch.rand(2, 15, 6))
    assert [(layer.name, layer.macs) for layer in counter.layers] == [
        ("qkv", 15 * 6 * 18),
        ("scaled_dot_product_attention", 15 * 4 * (6 + 2)),
    ]


@pytest.mark.parametrize("backend", ["reference", None])
def test_acmix_is_counted_and_depends_on_its_maps_scale(backend):
    model = nn.Sequential(DynOPool2d(), paperops.nn.ACmix(8, 12, 3, 3, 5, 2))
    with MacsCounter(model) as counter, paperops.use_backend(backend) if backend else contextlib.nullcontext():
        model(torch.rand(2, 8, 18, 18))
    found = {layer.name: (layer.macs, [scale.layer_name for scale in layer.scales]) for layer in counter.layers[1:]}
    assert found == {
        "conv2d": (8 * 36 * 81, ["0"]),
        "1.conv_p": (2 * 4 * 81, []),
        "local_attention": (2 * 9 * 12 * 25, ["0"]),
        "1.dep_conv": (25 * 36 * 81 + 25 * 25 * 12 * 25, ["0"]),
    }


def scales_by_name(model: nn.Module) -> dict[str, list[str]]:
    layers = MacsCounter(model).attach().layers
    return {layer.name: [scale.layer_name for scale in layer.scales] for layer in layers if layer.macs}


def test_which_scales_a_layer_depends_on():
    model = Net()
    replace_resizing(model)
    model(images(2, 3, 45, 38))
    block, stem, pool = "blocks.1.conv1.resize", "stem.resize", "pool"
    assert scales_by_name(model) == {
        "stem": [],
        "blocks.0.conv1": [stem, pool],
        "blocks.0.conv2": [stem, pool],
        "blocks.1.conv1": [stem, pool],  # runs before it is resized
        "blocks.1.downsample.0": [stem, pool],
        "blocks.1.conv2": [stem, pool, block],
        "blocks.2.conv1": [stem, pool, block],
        "blocks.2.conv2": [stem, pool, block],
        "fc": [],
    }


class Branches(nn.Module):
    """Two sizes, each enlarged or reduced to the other's; attention over channels and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = DynOPool2d(0.9), DynOPool2d(0.5)
        self.squeeze, self.on_high, self.on_low, self.spread, self.gate = (nn.Conv2d(2, 2, 1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        low = self.low(high)
        low = low * self.squeeze(low.mean((2, 3), keepdim=True)).sigmoid()
        low = self.on_low(low)
        up = functional.interpolate(low, size=high.shape[-2:], mode="bilinear")
        high = self.on_high(up + high)
        high = high * self.gate(high.amax(1, keepdim=True).expand(-1, 2, -1, -1))
        return self.spread(torch.cat([functional.interpolate(high, size=(7, 7)), x[..., :7, :7]])[:1])


def test_branches_that_meet():
    model = Branches()
    MacsCounter(model).attach()
    model(images(2, 2, 20, 20))
    assert scales_by_name(model) == {
        "squeeze": [],
        "on_low": ["high", "low"],
        "on_high": ["high"],  # low was enlarged to the size of high
        "gate": ["high"],
        "spread": [],
    }


def test_frozen_and_forced_sizes_have_no_gradient():
    model = nn.Sequential(DynOPool2d(0.5), nn.Conv2d(1, 1, 1), DynOPool2d(0.5), nn.Conv2d(1, 1, 1))
    MacsCounter(model).attach()
    model[2].set_sizes((3, 3))
    model(images(1, 1, 16, 16))
    assert scales_by_name(model) == {"1": ["0"], "3": []}
    model[0].freeze()
    model(images(1, 1, 16, 16))
    loss = gmacs_loss(model, 1.0)
    assert scales_by_name(model) == {"1": [], "3": []} and not loss.requires_grad
    assert loss.item() == pytest.approx((64 + 9) / 1e9)


# --- gmacs_loss ----------------------------------------------------------------------------------------------------


def unrounded(scales: list[Tensor], weights: list[float]) -> Tensor:
    """The multiply-adds of `plain()` for 48 x 80 pixels if sizes need not be whole, in units of 10^9, weighted."""
    pixels = 48.0 * 80.0
    total = weights[0] * pixels * 3 * 4 * 9
    pixels = pixels * scales[0].prod()
    total = total + weights[1] * pixels * 4 * 6 * 9
    pixels = pixels * scales[1].prod()
    total = total + weights[2] * pixels * 6 * 2
    return total / 1e9


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), DynOPool2d((0.75, 0.5)), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1),
        DynOPool2d((0.25, 0.9)), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("weights", [2.5, {"0": 1.0, "3": 0.5, "5": 40.0}])
def test_gradient_is_that_of_the_unrounded_formula(weights):
    model = plain()
    MacsCounter(model).attach()
    model(torch.rand(2, 3, 48, 80, dtype=torch.float64))  # sizes 36 x 40, then 9 x 36: whole, so the values agree too
    loss = gmacs_loss(model, weights)
    loss.backward()
    factors = list(weights.values()) if isinstance(weights, dict) else [weights] * 3
    alphas = [model[1].alpha.detach(), model[4].alpha.detach()]
    value = unrounded([1 / alpha for alpha in alphas], factors)
    linear = 0 if isinstance(weights, dict) else weights * 6 / 1e9
    assert loss.item() == pytest.approx(value.item() + linear, rel=1e-6)
    for number, layer in enumerate((model[1], model[4])):
        for axis in range(2):
            around = []
            for step in (1e-5, -1e-5):
                moved = [alpha.clone() for alpha in alphas]
                moved[number][axis] += step
                around.append(unrounded([1 / alpha for alpha in moved], factors).item())
            slope = (around[0] - around[1]) / 2e-5
            assert layer.alpha.grad[axis].item() == pytest.approx(slope, rel=1e-5) and slope < 0


def test_value_is_that_of_the_counts_where_sizes_are_rounded():
    model = Net()
    replace_resizing(model)
    with torch.no_grad():
        for layer in learned(model):
            layer.alpha.copy_(torch.tensor([1.7, 2.6]))
    with MacsCounter(model) as counter:
        model(images(2, 3, 45, 38))
    loss = gmacs_loss(model, 3.0)
    assert loss.item() == pytest.approx(3.0 * counter.macs / 1e9, rel=1e-6)
    loss.backward()
    expected = sum(layer.macs for layer in counter.layers if model.pool in layer.scales)
    torch.testing.assert_close(
        model.pool.alpha.grad.double(), -3.0 * expected / 1e9 / torch.tensor([1.7, 2.6]).double(), rtol=1e-5, atol=0
    )


def test_loss_lowers_the_cost():
    torch.manual_seed(0)
    model = Net()
    replace_resizing(model)
    optimizer = torch.optim.Adam([layer.alpha for layer in learned(model)], lr=0.05)
    costs = []
    for _ in range(20):
        model(images(1, 3, 64, 64))
        optimizer.zero_grad()
        loss = gmacs_loss(model, 1.0)
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs[-1] < 0.7 * costs[0]


def test_copies_count_for_themselves():
    model = Net()
    replace_resizing(model)
    model(images(1, 3, 32, 32))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(images(1, 3, 64, 64))
        gmacs_loss(other, 1.0).backward()
        assert learned(other)[0].alpha.grad is not None and learned(model)[0].alpha.grad is None
        assert gmacs_loss(other, 1.0) > 3 * gmacs_loss(model, 1.0)


def test_wrappers_are_looked_through():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    model = Net()
    replace_resizing(model)
    wrapped = Wrapper(Wrapper(model))
    wrapped(images(1, 3, 32, 32))
    assert gmacs_loss(wrapped, 1.0) == gmacs_loss(model, 1.0)


def test_an_error_within_the_model_leaves_nothing_recording():
    model = Net()
    replace_resizing(model)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(images(1, 2, 32, 32))
        with pytest.raises(RuntimeError, match="no forward pass has been counted"):
            gmacs_loss(model, 1.0)
    model(images(1, 3, 32, 32))
    layers = MacsCounter(model).attach().layers
    functional.conv2d(images(1, 3, 8, 8), images(1, 3, 1, 1))
    assert MacsCounter(model).attach().layers == layers


def test_an_interrupt_leaves_nothing_recording():
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    model = Net()
    replace_resizing(model)
    model(images(1, 3, 32, 32))
    layers = MacsCounter(model).attach().layers
    handle = model.blocks.register_forward_hook(interrupt)
    with pytest.raises(Interrupt):
        model(images(1, 3, 32, 32))
    handle.remove()
    model(images(1, 3, 32, 32))
    assert MacsCounter(model).attach().layers == layers
    assert _get_current_function_mode() is None


def test_each_thread_records_for_itself():
    model = Net().eval()
    replace_resizing(model)
    model(images(1, 3, 32, 32))
    layers, interval = MacsCounter(model).attach().layers, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(lambda _: model(images(1, 3, 32, 32)), range(60)))) == 60
    finally:
        sys.setswitchinterval(interval)
    assert MacsCounter(model).attach().layers == layers


def test_a_model_that_calls_itself_is_recorded_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            return self.layer(x) + (self(x, again=False) if again else 0)

    with MacsCounter(model := Twice()) as counter:
        model(images(1, 1, 5, 5))
    assert [layer.macs for layer in counter.layers] == [81, 81]


def test_shape_adaptors_count_too():
    model = nn.Sequential(ShapeAdaptor(init_scale=0.75), nn.Conv2d(1, 1, 1))
    MacsCounter(model).attach()
    model(images(1, 1, 16, 16))
    loss = gmacs_loss(model, 1e9)
    assert loss.item() == 144
    loss.backward()
    assert model[0].alpha.grad.item() == pytest.approx(2 * 144 / 0.75 * 0.5 * 0.25, rel=1e-5)


def test_refused():
    model = nn.Sequential(nn.MaxPool2d(2))
    with pytest.raises(RuntimeError, match=r"no forward pass has been counted: run the model to its end"):
        gmacs_loss(model, 1.0)
    replace_resizing(model)
    model(images(1, 1, 4, 4))
    for weight, error, message in [
        (-1.0, ValueError, "weight must be finite and not negative; got -1.0"),
        (math.nan, ValueError, "weight must be finite"),
        (10**400, ValueError, "weight must be finite"),
        ("1", TypeError, "weight must be a number; got str"),
        ({"0": -2.0}, ValueError, r"weight\['0'\] must be finite and not negative"),
        ({"1": 2.0}, ValueError, "weight has names that are no layers that ran: 1"),
    ]:
        with pytest.raises(error, match=message):
            gmacs_loss(model, weight)
    assert gmacs_loss(model, np.float32(1)) == 0
    for function in (MacsCounter, lambda broken: gmacs_loss(broken, 1.0)):
        with pytest.raises(TypeError, match="model must be a module; got list"):
            function([])


# --- several ranks -------------------------------------------------------------------------------------------------


def _rank(rank: int, store: str, results: str) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = nn.Sequential(DynOPool2d((0.5 + 0.1 * rank, 0.5)), ShapeAdaptor(init_scale=0.7 + 0.1 * rank))
    synchronise(model)
    torch.save([layer.alpha for layer in model], f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_agree(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].tolist() == [2.0, 2.0]
