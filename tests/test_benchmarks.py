"""Measuring: clocks and counters against known work, records and digests, and a bench run from end to end."""

import dataclasses
import io
import itertools
import re
import time
import types

import pytest
import torch
from paperops.benchmarks import bench, contestants, evidence, gpu_mode_trimul, measure, memory, peers, records, tables
from paperops.benchmarks import ceilings as machine
from rich.console import Console

import paperops
from paperops.__main__ import main
from paperops.testing import registry
from paperops.testing.registry import BenchCase, Cost, Entry, Sample
from paperops.testing.triangle_multiplication import gpu_mode_cases

CPU = torch.device("cpu")
CEILINGS = machine.Ceilings(copy=1e10, triad=2e10, vector=1e11, matrix=4e11, elementwise=1e10, threads=2)


def _sample(device, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, points, 3, generator=generator, dtype=torch.float64) for points in (20, 30))
    return Sample("tiny", {"x": x.to(device, dtype), "y": y.to(device, dtype)})


def _entry(**changed) -> Entry:
    """An op with the least of an entry that measuring needs."""
    entry = Entry(
        name="chamfer_distance",
        family="trial",
        function=paperops.chamfer_distance,
        reference=paperops.reference.chamfer_distance,
        samples=lambda device, dtype: iter(()),
        refused=lambda device: iter(()),
        differentiable=("x", "y"),
        batched=("x", "y"),
        cost=lambda sample: Cost(operations=9.0 * 2 * 20 * 30, bytes=12.0 * 2 * 50),
        bench=(
            BenchCase("tiny", _sample),
            BenchCase("tiny, with backward", _sample, backward=True),
            BenchCase("GPU only", _sample, devices=("cuda",)),
        ),
        sources=("csrc", "kernels/trial*.py"),
    )
    return dataclasses.replace(entry, **changed)


@pytest.fixture
def quick(monkeypatch):
    """Ceilings that need no measuring, and the trial entry alone in the registry."""
    monkeypatch.setattr(machine, "measure", lambda device, dtype: CEILINGS)
    monkeypatch.setattr(machine, "others_share", lambda: 0.0)
    for module in (bench, evidence):
        monkeypatch.setattr(module, "select", lambda names, layers: (_entry(),))
    monkeypatch.setattr(evidence, "entries", lambda layers: (_entry(),))


def _console() -> Console:
    return Console(record=True, width=140, file=io.StringIO())


# --- time ----------------------------------------------------------------------------------------------------------


def test_time_of_known_waits(monkeypatch):
    now = [0.0]  # a clock of its own: a busy machine does not change the figures
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(durations):
        now[0] += next(durations)

    drifting = itertools.cycle([0.002, 0.002, 0.003, 0.004, 0.004])
    short = measure.Runner(lambda: wait(drifting))
    long = measure.Runner(lambda: wait(itertools.repeat(0.3)))
    timings = measure.time_together({"short": short, "long": long}, seconds=3.0)
    assert timings["long"].median == pytest.approx(0.3) and timings["long"].calls == 1
    assert timings["short"].calls == 3 and timings["short"].method == "wall clock"
    assert 0.002 <= timings["short"].q10 < timings["short"].median < timings["short"].q90 <= 0.004
    assert len(timings["short"].samples) == len(timings["long"].samples) == 9  # what three seconds allow
    assert 75 < timings["long"].ratio(timings["short"]) < 150


def test_a_real_wait_is_not_underestimated():
    timing = measure.time_together({"nap": measure.Runner(lambda: time.sleep(0.002))}, seconds=0.05)["nap"]
    assert min(timing.samples) >= 0.002 and len(timing.samples) >= 3


def test_quantiles():
    values = [float(value) for value in range(11)]
    assert [measure.quantile(values, share) for share in (0, 0.1, 0.25, 1)] == [0, 1, 2.5, 10]


def test_context_is_entered_around_the_calls():
    seen = set()
    one = measure.Runner(lambda: seen.add(paperops.backends.forced()), lambda: paperops.use_backend("reference"))
    measure.time_together({"one": one}, seconds=0.01)
    assert seen == {"reference"}


def test_input_copies_exceed_the_cache():
    assert measure.copies_beyond_l2(10, 1000) == measure.MOST_COPIES
    assert measure.copies_beyond_l2(100, 1000) == 20
    assert measure.copies_beyond_l2(10**6, 1000) == 2


# --- memory --------------------------------------------------------------------------------------------------------


def test_allocations_are_counted_to_the_byte():
    def call():
        first = torch.empty(1_000_000)  # 4 MB, freed before the next
        del first
        second = torch.empty(3_000, dtype=torch.float64)
        return second, torch.empty(1_500_000)

    assert memory.allocator_peak(call) == 24_000 + 6_000_000
    assert memory.peak(call, CPU) == 24_000 + 6_000_000  # never touched, so resident nowhere


def test_memory_outside_torch_is_seen():
    grown = memory.resident_growth(lambda: bytearray(b"1") * 50_000_000)
    if grown is None:
        pytest.skip("this system does not tell the peak of the resident set")
    assert 45e6 < grown < 120e6
    assert memory.peak(lambda: bytearray(b"1") * 50_000_000, CPU) > 45e6


def test_saved_bytes_count_a_storage_once_and_no_input():
    x = torch.randn(100, 10, requires_grad=True)
    assert memory.saved_for_backward(lambda: (x * 2).sum(), [x]) == 0
    assert memory.saved_for_backward(lambda: x * x, [x]) == 0  # saves its input only
    assert memory.saved_for_backward(lambda: x.exp(), [x]) == 4000  # saves its result

    def twice():
        y = x.exp()
        return y.view(10, 100) * y.view(10, 100)[:, :].flip(0).flip(0)  # y twice, and a copy of it

    assert memory.saved_for_backward(twice, [x]) == 8000


# --- values --------------------------------------------------------------------------------------------------------


def test_disagreement_is_found():
    exact = [torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([0, 1, 2])]
    right = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 2])]
    assert contestants.judge(right, exact, torch.float32) == contestants.Verdict(0.0)
    assert contestants.judge(right[:1], exact, torch.float32).note == ""  # the first results only
    low = contestants.judge([right[0] + 0.004, right[1]], exact, torch.float32)
    assert "0.001 of the largest: low precision" in low.note and not low.refused
    assert low.error == pytest.approx(0.001, rel=1e-3)
    wrong = contestants.judge([right[0] + 1, right[1]], exact, torch.float32)
    assert wrong.refused and "not the same question" in wrong.note
    order = contestants.judge([right[0], torch.tensor([0, 2, 1])], exact, torch.float32)
    assert "2 of 3 indices differ" in order.note and not order.refused
    assert contestants.judge([right[0] * torch.nan], exact, torch.float32).refused
    assert contestants.judge([right[0][:2]], exact, torch.float32).refused
    assert contestants.judge([], exact, torch.float32).refused


def test_a_peer_that_answers_another_question_is_not_timed(quick):
    def unsquared(x, y):
        d = torch.cdist(x, y)
        return (d.amin(2).mean(1) + d.amin(1).mean(1)).mean(), None

    rows = bench.measure_case(
        _entry(), _entry().bench[0], [contestants.Contestant("wrong", unsquared)], CPU, torch.float32, CEILINGS, 0.01
    )
    assert rows[0].median is None and rows[0].note.startswith("not timed: its values are off by")


def test_a_failing_peer_is_a_row_not_the_end(quick):
    def fails(x, y):
        raise RuntimeError("no kernel image")

    peer = peers.Peer("trial", peers)
    rows = bench.measure_case(
        _entry(),
        _entry().bench[0],
        [contestants.Contestant("it", fails, peer=peer)],
        CPU,
        torch.float32,
        CEILINGS,
        0.01,
    )
    assert rows[0].median is None and rows[0].note == "it failed: RuntimeError: no kernel image"


def test_absurd_memory_is_refused_beforehand():
    (eager,) = peers.select(["torch_eager"], CPU)
    huge = torch.empty(1, device="meta").expand(1, 10_000_000, 3)
    contestant = contestants.Contestant(eager.name, eager.function("chamfer_distance"), peer=eager)
    reason = contestants.too_much(_entry(), contestant, Sample("", {"x": huge, "y": huge}), False, 1e15, CPU)
    assert reason is not None and "400000 GB" in reason


@pytest.mark.parametrize("op", ["knn", "chamfer_distance", "f_score", "hausdorff_distance"])
@pytest.mark.parametrize("key", ["torch_eager", "scipy_kdtree"])
def test_peers_agree_with_the_definition(key, op):
    (peer,) = peers.select([key], CPU)
    if (reason := peer.available(CPU)) is not None:
        pytest.skip(reason)
    arguments = _sample(CPU, torch.float64).arguments | {"knn": {"k": 3}, "f_score": {"radius": 0.5}}.get(op, {})
    exact = registry.flatten(getattr(paperops.reference, op)(**arguments))
    assert contestants.judge(registry.flatten(peer.function(op)(**arguments)), exact, torch.float64).note == ""


@pytest.mark.parametrize("key", ["torch_eager", "torch_compile"])
def test_peers_of_the_triangle_ops_agree_with_the_definition(key):
    (peer,) = peers.select([key], CPU)
    for entry in registry.select(["triangle_multiplication"]):
        samples = [sample for sample in entry.samples(CPU, torch.float64) if sample.gradcheck]
        for sample in samples if key == "torch_eager" else samples[:1]:
            arguments = sample.arguments
            if entry.name == "triangle_contract":  # the peers have it without a mask
                arguments = {name: value for name, value in arguments.items() if name != "mask"}
            exact = registry.flatten(entry.reference(**arguments))
            assert (
                contestants.judge(registry.flatten(peer.function(entry.name)(**arguments)), exact, torch.float64).note
                == ""
            )


def test_the_peer_of_structural_violations_agrees_with_the_definition():
    (peer,) = peers.select(["torch_eager"], CPU)
    (entry,) = registry.select(["structural_violations"])
    for case in ("compact", "two chains", "gaps", "prolines", "bridged cysteines", "overlapping"):
        (sample,) = (sample for sample in entry.samples(CPU, torch.float64) if sample.name == case)
        arguments = {name: value for name, value in sample.arguments.items() if name != "clash_overlap_tolerance"}
        exact = registry.flatten(entry.reference(**arguments))
        found = registry.flatten(peer.function(entry.name)(**arguments))
        assert len(found) == len(exact)
        # Its means are off by 1e-6 in the number of bonds that they are divided by.
        assert contestants.judge(found, exact, torch.float32).note == ""


def test_the_peers_of_dynopool_agree_with_the_definition():
    eager, pooling = peers.select(["torch_eager", "torch_max_pool2d"], CPU)
    seen = 0
    for entry in registry.select(["dynopool"]):
        for sample in entry.samples(CPU, torch.float64):
            if sample.arguments.get("align_corners") or not sample.arguments["x"].numel():
                continue  # the peers have neither
            exact = registry.flatten(entry.reference(**sample.arguments))
            found = [eager.function(entry.name)(**sample.arguments)]  # of positions that are rounded once more
            assert contestants.judge(found, exact, torch.float32).note == ""
            if entry.name == "dynopool_2d" and sample.name.startswith(("scale 1/2", "channels last, scale 1/2")):
                if "mean" in sample.name or "odd" in sample.name:
                    with pytest.raises(peers.NotComparable):
                        pooling.function(entry.name)(**sample.arguments)
                else:
                    assert torch.equal(pooling.function(entry.name)(**sample.arguments), exact[0])
                    seen += 1
    assert seen == 2


def test_the_unfolded_peers_agree_with_the_definition():
    (eager,) = peers.select(["torch_eager"], CPU)
    seen = dict.fromkeys(("local_attention_2d", "shift_conv_2d", "acmix"), 0)
    for entry in registry.select(["local_attention", "shift_conv", "acmix"], layers=True):
        for sample in entry.samples(CPU, torch.float64):
            if not next(iter(sample.arguments.values())).numel() or sample.arguments.get("dilation", 1) > 9:
                continue
            exact = registry.flatten(entry.reference(**sample.arguments))
            try:
                found = [eager.function(entry.name)(**sample.arguments)]
            except peers.NotComparable:
                assert sample.arguments["padding_mode"] in ("mask", "shift")
                continue
            assert contestants.judge(found, exact, torch.float64).note == "", (entry.name, sample.name)
            seen[entry.name] += 1
    assert seen["local_attention_2d"] > 4 and seen["shift_conv_2d"] > 4 and seen["acmix"] == 2


def test_layers_are_timed_and_are_no_ops():
    assert "acmix" in {entry.name for entry in registry.entries(layers=True)}
    assert registry.entries(layers=True)[: len(registry.entries())] == registry.entries()
    with pytest.raises(KeyError, match="no op or family is called 'acmix'"):
        registry.select(["acmix"])


def test_one_case_may_be_asked_for(quick):
    (record,) = bench.measure(["chamfer_distance"], against=["torch_eager"], device="cpu", case="with b", seconds=0.02)
    assert {row.case for row in record.rows} == {"tiny, with backward"}
    assert main(["bench", "chamfer_distance", "--device", "cpu", "--case", "tiny", "--out", "nowhere"]) == 2


def test_gpu_mode_list():
    """Sizes of the problem; the mean is over contestants that were timed on all of it."""
    cases = gpu_mode_cases()
    assert len(cases) == 9 and len({case.name for case in cases}) == 9
    sample = next(case for case in cases if case.name == "N=256, B=2, C=384, masked").make(
        torch.device("meta"), torch.float32
    )
    shapes = {name: tuple(value.shape) for name, value in sample.arguments.items() if torch.is_tensor(value)}
    assert shapes["x"] == (2, 256, 256, 384) and shapes["mask"] == (2, 256, 256)
    assert shapes["g_out_weight"] == (128, 384) and "p_in_bias" not in shapes and "norm_out_bias" in shapes
    rows = [
        records.Row(case, name, False, 1.0, 1.0, 1.0, median=median)
        for case, name, median in (("a", "x", 1e-3), ("b", "x", 4e-3), ("a", "y", 1e-3), ("b", "y", None))
    ]
    record = dataclasses.replace(_record(None), rows=rows)
    assert gpu_mode_trimul.means(record) == {"x": pytest.approx(2e-3)}
    if not torch.cuda.is_available():
        assert gpu_mode_trimul.main([]) == 2


def test_peers_say_why_they_are_not_there():
    assert set(peers.names()) >= {
        "torch_eager",
        "torch_compile",
        "scipy_kdtree",
        "pytorch3d",
        "kaolin",
        "cuequivariance",
    }
    everyone = peers.select(peers.names(), CPU)
    assert "CUDA devices only" in next(peer for peer in everyone if peer.key == "kaolin").available(CPU)
    with pytest.raises(KeyError, match="no peer is called 'nobody'; there are cuequivariance, kaolin"):
        peers.select(["nobody"], CPU)


# --- ceilings ------------------------------------------------------------------------------------------------------


def test_floor_is_the_longer_of_arithmetic_and_memory():
    assert CEILINGS.floor(Cost(operations=1e11, bytes=1e9)) == 1.0
    assert CEILINGS.floor(Cost(operations=1e9, bytes=2e10)) == 1.0
    assert machine.last_level_cache() >= 1 << 18


# --- records, digests, evidence ------------------------------------------------------------------------------------


def _record(digest, device_type="cuda", **changed):
    slug = "nvidia-h200" if device_type == "cuda" else "cpu-trial"
    shared = {"case": "tiny", "backward": False, "operations": 1e6, "bytes": 1e3, "floor": 1e-5, "peak": 400}
    ours = records.Row(
        contestant="paperops cuda",
        ours=True,
        chosen=True,
        median=2e-5,
        q10=1.9e-5,
        q90=2.2e-5,
        ratio=1.0,
        error=1e-7,
        **shared,
    )
    theirs = records.Row(contestant="torch eager", median=5e-4, ratio=25.0, note="low precision", **shared)
    values = {
        "op": "chamfer_distance",
        "family": "trial",
        "dtype": "float32",
        "device": {"type": device_type, "name": "NVIDIA H200", "slug": slug},
        "date": "2030-01-02T03:04:05Z",
        "digest": digest,
        "commit": "abc",
        "versions": {"torch": "2.13.0"},
        "conditions": {"threads": 2},
        "ceilings": {**dataclasses.asdict(CEILINGS), "bandwidth": CEILINGS.bandwidth},
        "rows": [ours, theirs],
    }
    return records.Record(**{**values, **changed})


@pytest.fixture
def tree(tmp_path):
    """A checkout with the trial op's sources."""
    root = tmp_path / "tree"
    for name in ("csrc/deep/a.h", "kernels/trial_forward.py", "kernels/other.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_records_survive_the_round_trip_and_replace_their_like(tmp_path):
    first, other = _record("one"), _record("two", dtype="float16")
    file = records.save(tmp_path, first)
    assert file == tmp_path / "nvidia-h200" / "trial.json"
    assert records.load(file) == [first]
    records.save(tmp_path, other)
    newer = dataclasses.replace(first, digest="three")
    records.save(tmp_path, newer)
    assert records.load_all(tmp_path) == [other, newer]
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ValueError, match="has schema 99; this version reads 1: measure again"):
        records.load(file)


def test_digest_follows_the_sources(tree):
    entry, before = _entry(), records.digest(_entry(), tree)
    (tree / "kernels/other.py").write_text("changed")
    assert records.digest(entry, tree) == before  # not one of its sources
    (tree / "csrc/deep/a.h").write_text("changed")
    changed = records.digest(entry, tree)
    assert changed != before
    (tree / "kernels/trial_forward.py").rename(tree / "kernels/trial_backward.py")
    assert records.digest(entry, tree) not in (before, changed)
    assert records.digest(entry, None) is None


def test_sources_of_every_op_exist():
    root = records.checkout()
    if root is None:
        pytest.skip("not in a checkout")
    for entry in registry.entries(layers=True):
        for source, files in records.source_files(entry.sources, root).items():
            assert files, f"{entry}: no file is meant by {source!r}"


def test_sources_hold_every_floor_and_what_kernels_import():
    root = records.checkout()
    if root is None:
        pytest.skip("not in a checkout")
    floors = ("csrc/{}", "kernels/{}*.py", "paperops/ops/{}.py")  # definitions go by op
    for entry in registry.entries(layers=True):
        files = {file for found in records.source_files(entry.sources, root).values() for file in found}
        own = records.source_files(tuple(floor.format(entry.family) for floor in floors), root)
        for floor, expected in own.items():
            assert files.issuperset(expected), f"{entry}: {floor} is missing in `sources`"
        for file in (file for file in files if file.parent == root / "kernels"):
            for name in re.findall(r"^ *from \.(\w+) import", file.read_text(), re.MULTILINE):
                assert root / "kernels" / f"{name}.py" in files, f"{entry}: kernels/{name}.py is missing in `sources`"


def test_evidence_tells_current_stale_and_missing(quick, tree, tmp_path):
    entry = _entry()

    def shown(**options):
        console = _console()
        assert evidence.report(console, results=tmp_path / "results", **options) == 0
        return console.export_text()

    assert evidence.NO_GPU in shown(root=tree)
    records.save(tmp_path / "results", _record(records.digest(entry, tree), device_type="cpu"))
    assert evidence.NO_GPU in shown(root=tree)  # a CPU is no GPU
    records.save(tmp_path / "results", _record(records.digest(entry, tree)))
    assert "current" in shown(root=tree) and evidence.NO_GPU not in shown(root=tree)
    (tree / "csrc/deep/a.h").write_text("changed")
    assert "stale" in shown(root=tree) and "current" not in shown(root=tree)
    found = evidence.statuses([dataclasses.replace(entry, name="knn")], records.load_all(tmp_path / "results"), tree)
    assert {status.state for status in found} == {"never measured"}
    assert evidence.state(entry, _record("any"), None) == evidence.NO_CHECKOUT
    assert evidence.state(entry, _record(None), tree).startswith("stale")


def test_markdown_states_device_conditions_and_staleness(quick, tree, tmp_path):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    assert evidence.NO_GPU in evidence.markdown(results, root=tree)
    records.save(results, _record(records.digest(_entry(), tree)))
    text = evidence.markdown(results, root=tree)
    assert "### NVIDIA H200" in text and "Measured 2030-01-02 with torch 2.13.0; 2 threads" in text
    assert "| `chamfer_distance` | tiny | float32 | 20.0 us (cuda) | 25x (1) | 50% | 400 B | 1e-07 |  |" in text
    assert "(1) Low precision." in text and "| **stale** |" not in text
    (tree / "csrc/deep/a.h").write_text("changed")
    assert "| **stale** |" in evidence.markdown(results, root=tree)

    readme.write_text(f"before\n{evidence.BEGIN}\nold\n{evidence.END}\nafter\n")
    assert evidence.update_readme(readme, text) and not evidence.update_readme(readme, text)
    assert readme.read_text() == f"before\n{evidence.BEGIN}\n{text}{evidence.END}\nafter\n"
    options = ["--results", str(results), "--readme", str(readme)]
    assert evidence.main(["--update-readme", *options]) == 0
    assert evidence.main(["--check", *options]) == 0
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold one"):
        evidence.update_readme(readme, text)


# --- all of it -----------------------------------------------------------------------------------------------------


def test_bench_measures_prints_and_writes(quick, tmp_path):
    console = _console()
    status = bench.run(
        ["chamfer_distance"], against=["torch_eager"], device="cpu", out=tmp_path, console=console, seconds=0.05
    )
    assert status == 0
    (record,) = records.load_all(tmp_path)
    assert (record.op, record.dtype, record.device["type"]) == ("chamfer_distance", "float32", "cpu")
    assert {row.case for row in record.rows} == {"tiny", "tiny, with backward"}
    for row in record.rows:
        assert row.median > 0 and row.q10 <= row.median <= row.q90 and row.rounds >= 3
        assert row.floor == pytest.approx(1.08e-7) and row.truth == "the definition in float64"
        assert row.error < 1e-3 and (row.saved is not None) == row.backward
        assert (row.ratio == 1) == row.chosen
    eager = next(row for row in record.rows if row.contestant == "torch eager")
    assert eager.peak >= 2 * 20 * 30 * 4  # the matrix of distances
    assert (tmp_path / record.device["slug"] / "chamfer_distance-float32.png").stat().st_size > 10_000
    text = console.export_text()
    assert "tiny, with backward" in text and "torch eager" in text and "Measured ceilings" in text


def test_bench_says_what_it_does_not_know(quick):
    console = _console()
    assert bench.run(against=["nobody"], device="cpu", console=console) == 2
    assert bench.run(device="cpu", dtype=torch.complex64, console=console) == 1
    text = console.export_text()
    assert "no peer is called 'nobody'" in text and "nothing to measure" in text


def test_figures_are_printed_to_three_digits():
    assert [tables.seconds(value) for value in (1.5, 0.0123, 9.996e-5, 2e-9)] == ["1.50 s", "12.3 ms", "100 us", "2 ns"]
    assert [tables.size(value) for value in (12, 1500, 2_500_000)] == ["12 B", "1.50 kB", "2.50 MB"]
    rates = [tables.rate(value) for value in (2.5, 2.948e5, 1e6, 3.3e10)]
    assert rates == ["2.5 ", "295 k", "1 M", "33 G"]
    assert [tables.times(value) for value in (0.5, 9.99, 23.4)] == ["0.50x", "9.99x", "23x"]
