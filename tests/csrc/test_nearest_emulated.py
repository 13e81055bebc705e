"""The CUDA kernels of nearest, run thread by thread on the host, against a float64 brute force.

The kernels' source is compiled by the host compiler with tests/csrc/emulate_cuda.h in the place of CUDA. This checks
the algorithm (tiles, splits, filter and recheck, merging, lists, turns), not the device's arithmetic or memory model.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or clang++) to compile the emulation")


class Clouds(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x", "y", "x_lengths", "y_lengths")]
        + [(name, ctypes.c_int64) for name in ("batch", "n", "m")]
        + [(name, ctypes.c_int) for name in ("dimensions", "dtype", "norm", "processors")]
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulated") / "nearest.so"
    subprocess.run(
        [
            COMPILER,
            "-std=c++20",
            "-O1",
            "-ffp-contract=off",
            "-w",
            "-shared",
            "-fPIC",
            "-U_FORTIFY_SOURCE",
            "-DPAPEROPS_EMULATE_CUDA",
        ]
        + [f"-I{HERE}", "-o", str(path), str(HERE / "nearest_emulated.cpp")],
        check=True,
    )
    library = ctypes.CDLL(str(path))
    library.emulated_nearest.restype = ctypes.c_bool
    return library


def clouds_of(x, y, x_lengths, y_lengths, norm, processors):
    def pointer(tensor):
        return None if tensor is None else tensor.data_ptr()

    return Clouds(
        x.data_ptr(), y.data_ptr(), pointer(x_lengths), pointer(y_lengths),
        x.shape[0], x.shape[1], y.shape[1], x.shape[2], DTYPES[x.dtype], norm, processors,
    )  # fmt: skip


def brute_force(x, y, x_lengths, y_lengths, k, norm):
    """Distances [B, N, k] and indices [B, N, k] by sorting float64 distances, stably."""
    x64, y64 = x.double().numpy(), y.double().numpy()
    batch, n, m = x.shape[0], x.shape[1], y.shape[1]
    distances = np.zeros((batch, n, k))
    indices = np.full((batch, n, k), -1, dtype=np.int64)
    for b in range(batch):
        queries = n if x_lengths is None else min(max(int(x_lengths[b]), 0), n)
        valid = m if y_lengths is None else min(max(int(y_lengths[b]), 0), m)
        d = np.zeros((queries, valid))
        for i in range(x.shape[2]):
            with np.errstate(invalid="ignore", over="ignore"):
                difference = x64[b, :queries, None, i] - y64[b, None, :valid, i]
                d = d + (np.abs(difference) if norm == 1 else difference * difference)
        order = np.argsort(d, axis=1, kind="stable")[:, :k]  # NaN last
        kept = order.shape[1]
        distances[b, :queries] = np.inf
        distances[b, :queries, :kept] = np.take_along_axis(d, order, axis=1)
        nan = np.isnan(x64[b, :queries]).any(axis=1)
        indices[b, :queries, :kept] = np.where(nan[:, None], -1, order)
    return distances, indices


def assert_exact(distances, indices, expected, accumulator):
    expected_distances, expected_indices = expected
    np.testing.assert_array_equal(indices.numpy(), expected_indices)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(distances.numpy(), expected_distances.astype(accumulator))


def run_nearest(library, x, y, x_lengths=None, y_lengths=None, norm=2, processors=4, sides=2):
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    results = []
    for cloud in (x, y):
        results.append(torch.full(cloud.shape[:2], 777.0, dtype=kind))
        results.append(torch.full(cloud.shape[:2], 777, dtype=torch.int64))
    fused = library.emulated_nearest(
        ctypes.byref(clouds_of(x, y, x_lengths, y_lengths, norm, processors)),
        sides,
        *(ctypes.c_void_p(result.data_ptr()) for result in results),
    )
    return [*results, fused]


def run_knn(library, x, y, k, x_lengths=None, y_lengths=None, norm=2, processors=4):
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    distances = torch.full((*x.shape[:2], k), 777.0, dtype=kind)
    indices = torch.full((*x.shape[:2], k), 777, dtype=torch.int64)
    library.emulated_knn(
        ctypes.byref(clouds_of(x, y, x_lengths, y_lengths, norm, processors)),
        k,
        ctypes.c_void_p(distances.data_ptr()),
        ctypes.c_void_p(indices.data_ptr()),
    )
    return distances, indices


def adversarial(case, n, m, dimensions, dtype, generator):
    """Clouds [1, n, D] and [1, m, D] that a float32 filter alone gets wrong, or that are not numbers."""
    x = torch.rand(1, n, dimensions, generator=generator, dtype=torch.float64)
    y = torch.rand(1, m, dimensions, generator=generator, dtype=torch.float64)
    if case == "lattice":
        x, y = (x * 4).round() + 0.5, (y * 4).round()
    elif case == "equal":
        y = y[:, :1].expand(1, m, dimensions).contiguous()
    elif case == "offset":
        x, y = x + 1000.0, y + 1000.0
    elif case == "near ties":  # distances that differ by less than float32 tells
        x = torch.zeros_like(x)
        y = torch.ones_like(y) * (1.0 + torch.rand(1, m, 1, generator=generator, dtype=torch.float64) * 4e-7)
    elif case == "overflow":
        x, y = x * 3e38, -y * 3e38
    elif case == "underflow":
        x, y = x * 1e-22, y * 1e-22
    elif case == "infinite":
        x[0, ::3, 0] = torch.inf
        y[0, ::2, 0] = torch.inf
    elif case == "nan":
        x[0, 1::3, -1] = torch.nan
        y[0, 1:, 0] = torch.nan
    elif case == "all nan":
        y[:] = torch.nan
    return x.to(dtype), y.to(dtype)


CASES = ("random", "lattice", "equal", "offset", "near ties", "overflow", "underflow", "infinite", "nan", "all nan")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_is_exact(library, case, dtype):
    generator = torch.Generator().manual_seed(0)
    # 300 targets are five tiles; 200 pretended processors split them over blocks, one does not.
    for dimensions, norm, processors in ((3, 2, 200), (3, 1, 1), (1, 2, 1), (5, 2, 200)):
        x, y = adversarial(case, 37, 300, dimensions, dtype, generator)
        results = run_nearest(library, x, y, norm=norm, processors=processors)
        accumulator = results[0].numpy().dtype
        expected = brute_force(x, y, None, None, 1, norm)
        assert_exact(results[0][..., None], results[1][..., None], expected, accumulator)
        expected = brute_force(y, x, None, None, 1, norm)
        assert_exact(results[2][..., None], results[3][..., None], expected, accumulator)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fused_nearest_is_exact(library, case, dtype):
    """Clouds large enough that both directions come from one evaluation of each distance."""
    generator = torch.Generator().manual_seed(5)
    # Two groups of 1024 x and three tiles of 64 y, which the plan splits to have several blocks on its processor.
    for n, m, norm, processors in ((2000, 150, 2, 1), (1010, 200, 1, 1)):
        x, y = adversarial(case, n, m, 3, dtype, generator)
        lengths = None if norm == 2 else (torch.tensor([900]), torch.tensor([165]))
        x_lengths, y_lengths = lengths or (None, None)
        results = run_nearest(library, x, y, x_lengths, y_lengths, norm=norm, processors=processors)
        assert results[4], "the plan did not choose the fused scan: this test covers nothing"
        expected = brute_force(x, y, x_lengths, y_lengths, 1, norm)
        assert_exact(results[0][..., None], results[1][..., None], expected, "f4")
        expected = brute_force(y, x, y_lengths, x_lengths, 1, norm)
        assert_exact(results[2][..., None], results[3][..., None], expected, "f4")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_knn_is_exact(library, case, dtype):
    generator = torch.Generator().manual_seed(1)
    for k, dimensions, norm, m, processors in ((5, 3, 2, 300, 1), (32, 3, 1, 40, 1), (3, 8, 2, 2100, 8)):
        x, y = adversarial(case, 9, m, dimensions, dtype, generator)
        distances, indices = run_knn(library, x, y, k, norm=norm, processors=processors)
        assert_exact(distances, indices, brute_force(x, y, None, None, k, norm), distances.numpy().dtype)


@pytest.mark.parametrize(
    "lengths", [((0, 5, 70, 300), (130, 0, -3, 999)), (None, (1, 64, 65, 2)), ((70, 1, 0, 2), None)]
)
def test_lengths(library, lengths):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(4, 70, 3, generator=generator)
    y = torch.rand(4, 130, 3, generator=generator)
    x_lengths, y_lengths = (None if values is None else torch.tensor(values) for values in lengths)
    for processors in (1, 100):
        results = run_nearest(library, x, y, x_lengths, y_lengths, processors=processors)
        assert_exact(results[0][..., None], results[1][..., None], brute_force(x, y, x_lengths, y_lengths, 1, 2), "f4")
        assert_exact(results[2][..., None], results[3][..., None], brute_force(y, x, y_lengths, x_lengths, 1, 2), "f4")
        for k in (2, 7):
            distances, indices = run_knn(library, x, y, k, x_lengths, y_lengths, processors=processors)
            assert_exact(distances, indices, brute_force(x, y, x_lengths, y_lengths, k, 2), "f4")


@pytest.mark.parametrize(("batch", "n", "m"), [(1, 1, 1), (2, 3, 0), (0, 3, 4), (3, 0, 2), (1, 1100, 90), (2, 65, 1)])
def test_sizes(library, batch, n, m):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(batch, n, 3, generator=generator)
    y = torch.rand(batch, m, 3, generator=generator)
    results = run_nearest(library, x, y)
    assert_exact(results[0][..., None], results[1][..., None], brute_force(x, y, None, None, 1, 2), "f4")
    assert_exact(results[2][..., None], results[3][..., None], brute_force(y, x, None, None, 1, 2), "f4")
    distances, indices = run_knn(library, x, y, 3)
    assert_exact(distances, indices, brute_force(x, y, None, None, 3, 2), "f4")


def pair_gradient(gradient, a, b, norm):
    return gradient * (2 * (a - b) if norm == 2 else np.sign(a - b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("chosen", ["one", "few", "random"])
@pytest.mark.parametrize("k", [0, 3])
def test_backward(library, dtype, norm, chosen, k):
    """Against float64 sums; k = 0 stands for nearest_backward, both sides; otherwise knn_backward."""
    generator = torch.Generator().manual_seed(4)
    batch, n, m, dimensions = 2, 700, 150, 3
    x = torch.rand(batch, n, dimensions, generator=generator).to(dtype)
    y = torch.rand(batch, m, dimensions, generator=generator).to(dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    high = {"one": 1, "few": 7, "random": m}[chosen]

    def matching(points, others, slots):
        indices = torch.randint(-1, others, (batch, points, slots), generator=generator)
        gradients = torch.rand(batch, points, slots, generator=generator).to(accumulator)
        gradients[indices < 0] = torch.nan  # an unused slot's gradient must not matter
        return indices, gradients

    x_indices, x_gradients = matching(n, high, max(k, 1))
    y_indices, y_gradients = matching(m, n, 1)
    grad_x = torch.full_like(x, torch.nan)
    grad_y = torch.full_like(y, torch.nan)
    library.emulated_backward(
        ctypes.byref(clouds_of(x, y, None, None, norm, 4)),
        max(k, 1),
        ctypes.c_void_p(x_gradients.data_ptr()),
        ctypes.c_void_p(x_indices.data_ptr()),
        ctypes.c_void_p(y_gradients.data_ptr() if k == 0 else None),
        ctypes.c_void_p(y_indices.data_ptr() if k == 0 else None),
        ctypes.c_void_p(grad_x.data_ptr()),
        ctypes.c_void_p(grad_y.data_ptr()),
    )
    expected = [np.zeros(x.shape), np.zeros(y.shape)]
    points = [x.double().numpy(), y.double().numpy()]
    for side, (indices, gradients) in enumerate([(x_indices, x_gradients), (y_indices, y_gradients)][: 2 - (k > 0)]):
        for b, row, slot in np.argwhere(indices.numpy() >= 0):
            target = indices[b, row, slot]
            value = pair_gradient(
                float(gradients[b, row, slot]), points[side][b, row], points[1 - side][b, target], norm
            )
            expected[side][b, row] += value
            expected[1 - side][b, target] -= value
    relative = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    for got, want in zip((grad_x, grad_y), expected, strict=True):
        np.testing.assert_allclose(got.double().numpy(), want, rtol=relative, atol=relative * np.abs(want).max())
