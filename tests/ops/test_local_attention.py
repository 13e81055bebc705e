"""What is particular to local attention, beyond the generic checks."""

import itertools
import math

import pytest
import torch
from paperops.benchmarks import memory
from torch.nn.functional import pad, scaled_dot_product_attention

import paperops
from paperops import backends
from paperops.reference.local_attention import PADDING_MODES
from paperops.testing.targets import INTERPRETED, targets

THERE = [target for target in targets() if backends.why_not("local_attention", target[1], target[0]) is None]
every = pytest.mark.parametrize("target", THERE, ids="-".join)
modes = pytest.mark.parametrize("padding_mode", PADDING_MODES)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])


def maps(b, heads, d, h, w, dtype=torch.float64, layout=torch.contiguous_format, seed=0):
    """q, k and v, views of one map."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(b, 3 * heads * d, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return [part.unflatten(1, (heads, d)) for part in whole.contiguous(memory_format=layout).chunk(3, 1)]


def call(target, q, k, v, kernel_size, bias=None, grad=None, **options):
    """The result, and the gradients of q, k, v and, where there is one, of the bias."""
    given = [value.to(target[0]).detach().requires_grad_() for value in (q, k, v, bias) if value is not None]
    with paperops.use_backend(target[1]):
        out = paperops.local_attention_2d(*given[:3], kernel_size, bias=given[3] if len(given) > 3 else None, **options)
        found = torch.autograd.grad(out, given, torch.ones_like(out) if grad is None else grad.to(target[0]))
    return [value.detach().cpu() for value in (out, *found)]


# --- explicit loops over the offsets of the window -------------------------------------------------------------------


def first_key(place, size, kernel_size, dilation):
    """Where the window of padding_mode "shift" begins: moved by steps of the dilation until all of it is on the map."""
    start = place - kernel_size // 2 * dilation
    while start < 0:
        start += dilation
    while start + (kernel_size - 1) * dilation >= size:
        start -= dilation
    return start


def shifted(x, dim, slot, kernel_size, stride, dilation):
    """What the slot holds along one dimension, query by query."""
    size = x.shape[dim]
    places = [first_key(i, size, kernel_size, dilation) + slot * dilation for i in range(0, size, stride)]
    return torch.stack([x.select(dim, place) for place in places], dim)


def at_offset(x, padding_mode, slots, kernel_size, stride, dilation):
    """What slot (a, b) holds of x, for every query: [B, H, D, Ho, Wo]."""
    if padding_mode == "shift":
        x = shifted(x, 3, slots[0], kernel_size, stride, dilation)
        return shifted(x, 4, slots[1], kernel_size, stride, dilation)
    border = kernel_size // 2 * dilation
    flat = pad(x.flatten(1, 2), (border,) * 4, mode="reflect" if padding_mode == "reflect" else "constant")
    padded = flat.unflatten(1, x.shape[1:3])
    (top, left), (h, w) = (slot * dilation for slot in slots), x.shape[3:]
    return padded[:, :, :, top : top + h : stride, left : left + w : stride]


def loops(q, k, v, kernel_size, padding_mode, stride, dilation, bias, scale):
    """Slot by slot: first the sum of the weights, then the mean."""
    window = padding_mode, kernel_size, stride, dilation
    queries, there, total, mean = q[:, :, :, ::stride, ::stride], torch.ones_like(q), 0, 0
    for a, b in itertools.product(range(kernel_size), repeat=2):
        key, value = (at_offset(x, window[0], (a, b), *window[1:]) for x in (k, v))
        weight = (scale * (queries * key).sum(2) + bias[:, a, b, None, None]).exp()[:, :, None]
        if padding_mode == "mask":
            weight = weight * at_offset(there, window[0], (a, b), *window[1:])
        total, mean = total + weight, mean + weight * value
    return mean / total


def compare_with_loops(target, shape, kernel_size, padding_mode, stride, dilation, layout):
    q, k, v = maps(*shape, layout=layout)
    bias = torch.randn(shape[1], kernel_size, kernel_size, dtype=torch.float64)
    options = {"padding_mode": padding_mode, "stride": stride, "dilation": dilation, "scale": 0.6}
    leaves = [value.detach().requires_grad_() for value in (q, k, v, bias)]
    expected = loops(*leaves[:3], kernel_size, padding_mode, stride, dilation, leaves[3], 0.6)
    grad = torch.randn_like(expected)
    expected = expected.detach(), *torch.autograd.grad(expected, leaves, grad)
    for ours, theirs in zip(call(target, q, k, v, kernel_size, bias, grad, **options), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def fits(padding_mode, kernel_size, dilation, smallest):
    needed = {"reflect": kernel_size // 2 * dilation + 1, "shift": kernel_size * dilation}.get(padding_mode, 1)
    return smallest >= needed


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@modes
@every
def test_every_window_against_explicit_loops(target, padding_mode, kernel_size):
    layouts = itertools.cycle([torch.contiguous_format, torch.channels_last])
    sizes, steps = [(14, 17), (15, 16), (7, 8), (4, 5)], itertools.product((1, 2, 3), (1, 2))
    cases, checked = list(itertools.product(steps, sizes)), 0
    if INTERPRETED:
        cases = [((1, 1), (6, 5)), ((2, 1), (7, 8)), ((1, 2), (7, 8)), ((3, 2), (8, 7))]
    for (stride, dilation), (h, w) in cases:
        if fits(padding_mode, kernel_size, dilation, min(h, w)):
            shape = (1 if INTERPRETED else 2, 1, 3, h, w)
            compare_with_loops(target, shape, kernel_size, padding_mode, stride, dilation, next(layouts))
            checked += 1
    if kernel_size == 3 or not INTERPRETED:  # windows apart: no query reaches what is between them
        compare_with_loops(target, (1, 1, 3, 23, 14), kernel_size, padding_mode, kernel_size + 2, 1, next(layouts))
    # Every stride meets a border, and every dilation but one that fits no map of these.
    assert checked >= (1 if INTERPRETED else 6)


@layouts
@modes
@every
def test_many_rows_and_channels_against_explicit_loops(target, padding_mode, layout):
    """More than one task a map, vectors of channels and columns with a rest."""
    if INTERPRETED:
        pytest.skip("hundreds of programs")
    compare_with_loops(target, (1, 1, 21, 45, 38), 3, padding_mode, 1, 2, layout)
    compare_with_loops(target, (1, 2, 8, 40, 33), 5, padding_mode, 2, 3, layout)


@pytest.mark.parametrize("padding_mode", ["zeros", "mask"])
@every
def test_windows_larger_than_the_map(target, padding_mode):
    for shape in ((1, 1, 2, 1, 1), *([] if INTERPRETED else [(2, 1, 2, 1, 4)]), (1, 2, 3, 3, 2)):
        compare_with_loops(target, shape, 7, padding_mode, 1, 1, torch.contiguous_format)
        compare_with_loops(target, shape, 3, padding_mode, 2, 5, torch.contiguous_format)


# --- identities ------------------------------------------------------------------------------------------------------


@every
def test_a_window_over_the_whole_map_is_attention(target):
    q, k, v = maps(2, 3, 4, 5, 5)
    flat = [value.flatten(3).mT for value in (q, k, v)]
    expected = scaled_dot_product_attention(*flat).mT.unflatten(3, (5, 5))
    wide = call(target, q, k, v, 9, padding_mode="mask", scale=0.5)[0]  # every window holds all keys
    torch.testing.assert_close(wide, expected)
    torch.testing.assert_close(call(target, q, k, v, 5, padding_mode="shift", scale=0.5)[0], expected)


@pytest.mark.parametrize(
    ("size", "dilation", "windows"),
    [
        (5, 1, [(0, 1, 2), (0, 1, 2), (1, 2, 3), (2, 3, 4), (2, 3, 4)]),
        (7, 2, [(0, 2, 4), (1, 3, 5), (0, 2, 4), (1, 3, 5), (2, 4, 6), (1, 3, 5), (2, 4, 6)]),
    ],
)
@every
def test_shifted_windows_are_those_of_neighbourhood_attention(target, size, dilation, windows):
    """Near a border the window is that of the nearest query of the same residue whose window fits."""
    number = torch.arange(size, dtype=torch.float64)
    v = number.expand(1, 1, 1, size, size)
    nothing = torch.zeros_like(v)
    options = {"padding_mode": "shift", "dilation": dilation}
    out = call(target, nothing, nothing, v, 3, **options)[0]
    torch.testing.assert_close(out[0, 0, 0, 0], torch.tensor([sum(w) / 3 for w in windows], dtype=torch.float64))
    # The bias goes by the place in the window, not by the offset from the query: here it picks the first.
    bias = torch.full((1, 3, 3), -math.inf, dtype=torch.float64)
    bias[:, :, 0] = 0
    out = call(target, nothing, nothing, v, 3, bias, **options)[0]
    assert out[0, 0, 0, 0].tolist() == [w[0] for w in windows]


@every
def test_zeros_count_by_their_bias_alone(target):
    q, k, v, bias = *(torch.full((1, 1, 1, 1, 1), value) for value in (2.0, 0.5, 3.0)), torch.zeros(1, 3, 3)
    bias[0, 0] = 1.0
    weight, others = math.exp(0.7 * 1.0), 3 * math.exp(1.0) + 5
    out = call(target, q, k, v, 3, bias, padding_mode="zeros", scale=0.7)[0]
    torch.testing.assert_close(out.item(), 3.0 * weight / (weight + others))


@modes
@every
def test_a_window_of_one_key_is_its_value(target, padding_mode):
    q, k, v = maps(2, 2, 3, 5, 6)
    out, dq, dk, dv = call(target, q, k, v, 1, padding_mode=padding_mode, stride=3)
    assert torch.equal(out, v[:, :, :, ::3, ::3])
    # Keys that no query reaches have gradient 0.
    expected = torch.zeros_like(v)
    expected[:, :, :, ::3, ::3] = 1
    assert torch.equal(dv, expected) and not dq.any() and not dk.any()


@every
def test_strides_and_dilations_beyond_the_map(target):
    q, k, v = maps(1, 1, 3, 3, 4)
    alone = call(target, q, k, v, 3, padding_mode="mask", dilation=2**31 - 1)
    assert torch.equal(alone[0], v)
    one = call(target, q, k, v, 3, padding_mode="mask", stride=2**31 - 1)
    torch.testing.assert_close(one[0], call(target, q, k, v, 3, padding_mode="mask")[0][:, :, :, :1, :1])


# --- the bias --------------------------------------------------------------------------------------------------------


@modes
@every
def test_a_bias_of_minus_infinity_takes_slots_away(target, padding_mode):
    q, k, v = maps(1, 2, 3, 5, 7)
    bias = torch.zeros(2, 3, 3, dtype=torch.float64)
    bias[0] = -math.inf  # nothing is left of the first head; of the second all but the slot in the middle
    bias[1] = -math.inf
    bias[1, 1, 1] = 0.3
    out, dq, dk, dv, dbias = call(target, q, k, v, 3, bias, padding_mode=padding_mode)
    assert not out[:, 0].any()
    if padding_mode == "shift":  # there the middle is another key at the border
        assert torch.equal(out[:, 1, :, 1:-1, 1:-1], v[:, 1, :, 1:-1, 1:-1])
    else:
        assert torch.equal(out[:, 1], v[:, 1])
    assert not dv[:, 0].any() and not dq.any() and not dk.any() and not dbias.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_a_bias_of_float32_beside_halves(target, dtype):
    q, k, v = maps(1, 2, 8, 5, 6, dtype)
    bias, grad = torch.randn(2, 3, 3), torch.randn(1, 2, 8, 5, 6).to(dtype)
    out, dq, dk, dv, dbias = call(target, q, k, v, 3, bias, grad)
    exact = call(("cpu", "reference"), *(value.double() for value in (q, k, v)), 3, bias.double(), grad.double())
    assert [value.dtype for value in (out, dq, dk, dv, dbias)] == [dtype] * 4 + [torch.float32]
    for ours, theirs in zip((out, dq, dk, dv), exact, strict=False):
        assert (ours - theirs).abs().max() <= 1.5 * torch.finfo(dtype).eps * theirs.abs().max()
    # A sum over 30 queries, of which each may be off by the rounding of its result.
    assert (dbias - exact[4]).abs().max() <= 4 * torch.finfo(dtype).eps * exact[4].abs().max()


# --- layouts, autocast, torch.compile and memory ---------------------------------------------------------------------


@every
def test_layouts_of_results_and_gradients(target):
    for layout in (torch.contiguous_format, torch.channels_last):
        q, k, v = maps(2, 3, 4, 5, 7, layout=layout)
        out, *found = call(target, q, k, v, 3, stride=2)
        for value in (out, *found):
            assert value.flatten(1, 2).is_contiguous(memory_format=layout)
    mixed = call(target, maps(2, 3, 4, 5, 7)[0], k, v, 3, stride=2)
    for ours, theirs in zip((out, *found), mixed, strict=True):
        torch.testing.assert_close(ours, theirs)


@layouts
def test_both_layouts_have_the_same_bits(layout):
    q, k, v = maps(1, 2, 19, 9, 13, torch.float32)
    expected = paperops.local_attention_2d(q, k, v, 5)
    given = (value.flatten(1, 2).contiguous(memory_format=layout).unflatten(1, (2, 19)) for value in (q, k, v))
    assert torch.equal(paperops.local_attention_2d(*given, 5), expected)


def test_autocast_takes_q_k_and_v_in_its_dtype():
    q, k, v = maps(1, 2, 4, 5, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = paperops.local_attention_2d(q, k.bfloat16(), v, 3, bias=torch.zeros(2, 3, 3))
    assert out.dtype == torch.bfloat16
    exact = paperops.local_attention_2d(*(value.bfloat16() for value in (q, k, v)), 3)
    torch.testing.assert_close(out, exact)


def test_sizes_that_change_compile_at_most_twice_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(q, k, v):
        return paperops.local_attention_2d(q, k, v, 3, stride=2, scale=0.5)

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for h, w in ((6, 5), (7, 5), (7, 8), (9, 12), (11, 4)):
        q, k, v = (value.requires_grad_() for value in maps(2, 2, 4, h, w, torch.float32))
        found = torch.autograd.grad(compiled(q, k, v).square().sum(), (q, k, v))
        expected = torch.autograd.grad(step(q, k, v).square().sum(), (q, k, v))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count <= 3


def test_keeps_the_result_and_one_number_a_query():
    q, k, v = (value.requires_grad_() for value in maps(2, 4, 16, 14, 14, torch.float32))
    kept = memory.saved_for_backward(lambda: paperops.local_attention_2d(q, k, v, 7), [q, k, v])
    assert kept == 4 * 2 * 4 * 14 * 14 * (16 + 1)
