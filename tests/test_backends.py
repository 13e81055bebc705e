"""Routing between implementations, forcing one, and the command line."""

import os
import subprocess
import sys

import pytest
import torch

import paperops
from paperops import __main__, backends


def clouds():
    return torch.rand(2, 5, 3), torch.rand(2, 6, 3)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of reference, native, cuda, triton; got 'fast'"):
        with paperops.use_backend("fast"):
            pass


def test_forcing_a_backend_that_cannot_run_says_why():
    with (
        paperops.use_backend("cuda"),
        pytest.raises(paperops.BackendError, match="paperops::knn on cpu.*CUDA devices only"),
    ):
        paperops.knn(*clouds())


def test_blocks_nest_and_restore():
    before = backends.forced()
    with paperops.use_backend("reference"):
        with pytest.raises(RuntimeError, match="inside"), paperops.use_backend("native"):
            assert backends.forced() == "native"
            raise RuntimeError("inside")
        assert backends.forced() == "reference"
    assert backends.forced() == before


def test_a_declined_call_goes_to_the_next_implementation():
    taken = []

    def implementation(name, declines=None):
        return backends.Implementation(lambda: lambda x, n: taken.append(name), declines)

    backends.register(
        "declining",
        {
            "native": implementation("native", lambda x, n: "too many" if n > 3 else None),
            "reference": implementation("plain"),
        },
    )
    try:
        run = backends.route("declining")
        if backends.missing("native", "cpu") is None:
            run(torch.zeros(1), 3)
            with paperops.use_backend("native"), pytest.raises(paperops.BackendError, match="native: too many"):
                run(torch.zeros(1), 4)
        run(torch.zeros(1), 4)
        assert taken in (["native", "plain"], ["plain"])
    finally:
        del backends._implementations["declining"]
        backends._plans.clear()


def test_the_environment_variable_forces_and_is_checked():
    def run(value, code):
        environment = {**os.environ, "PAPEROPS_BACKEND": value}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    good = run("reference", "from paperops import backends; print(backends.forced())")
    assert good.stdout.strip() == "reference", good.stderr
    bad = run("fastest", "import paperops")
    assert bad.returncode != 0
    assert "the environment variable PAPEROPS_BACKEND must be one of" in bad.stderr


def test_backends_agree_bit_for_bit_on_indices():
    x, y = torch.rand(3, 200, 3), torch.rand(3, 150, 3)
    indices = []
    for backend in backends.BACKENDS:
        if backends.missing(backend, "cpu") is None:
            with paperops.use_backend(backend):
                indices.append(paperops.knn(x, y, 4).indices)
    assert all(torch.equal(indices[0], other) for other in indices)


def test_info_tells_of_every_op(capsys):
    assert __main__.main(["info"]) == 0
    printed = capsys.readouterr().out
    for op in backends.ops():
        assert op in printed
    assert "runs" in printed


def test_check_passes_and_fails_with_its_status(capsys, monkeypatch):
    words = ["check", "f_score", "--dtype", "float32", "--backend", "reference", "--device", "cpu"]
    assert __main__.main(words) == 0
    assert "All checks passed" in capsys.readouterr().out
    from paperops.testing import checks
    from paperops.testing.compare import CheckFailure

    def broken(entry, device, dtype):
        raise CheckFailure("planted")

    monkeypatch.setitem(checks.CHECKS, "values", broken)
    assert __main__.main(words) == 1
    assert "values: CheckFailure: planted" in capsys.readouterr().out.replace("\n", " ")


def test_unknown_op_is_named(capsys):
    assert __main__.main(["check", "knnn"]) == 2
    assert "no op or family is called 'knnn'; there are" in capsys.readouterr().out.replace("\n", " ")


def test_check_of_a_backend_that_is_not_there(capsys):
    assert __main__.main(["check", "knn", "--backend", "cuda", "--device", "cpu"]) == 2
    assert "it runs on CUDA devices only" in capsys.readouterr().out.replace("\n", " ")


def test_demo_lists_and_refuses(capsys):
    assert __main__.main(["demo"]) == 0
    assert "lmnet3d" in capsys.readouterr().out
    assert __main__.main(["demo", "nothing"]) == 2
    assert "no demo is called 'nothing'" in capsys.readouterr().out


def test_the_nearest_family_has_every_implementation():
    for op in ("knn", "knn_backward", "nearest", "nearest_backward", "chamfer"):
        assert set(backends._implementations[op]) == set(backends.BACKENDS)


def test_blocks_of_two_threads_that_overlap_leave_nothing_forced():
    before = backends.forced()
    first, second = paperops.use_backend("reference"), paperops.use_backend("native")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert backends.forced() == "native"
    second.__exit__(None, None, None)
    assert backends.forced() == before


def test_a_folder_that_cannot_be_made_is_said_at_once(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert __main__.main(["bench", "knn", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().out
    assert __main__.main(["check", "knn", "--device", "nonsense"]) == 2
