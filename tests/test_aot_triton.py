"""Every Triton kernel compiles ahead of time for every target, with its real launch parameters, and without spills."""

import os
import sys
from importlib.util import find_spec

import pytest

from paperops.testing import aot_triton
from paperops.testing.registry import FAMILIES

if sys.platform != "linux" or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("kernels are compiled in a process that does not interpret them", allow_module_level=True)
pytest.importorskip("triton")

MODULES = [name for family in FAMILIES if find_spec(name := f"paperops.kernels.{family}") is not None]
CASES = [case for module in MODULES for target in aot_triton.TARGETS for case in aot_triton.cases(module, target)]


@pytest.fixture(scope="session")
def resources(request):
    """Of each case that is asked for, all of which are compiled at once, as many as there are processors."""
    wanted = [
        item for item in request.session.items if getattr(item, "originalname", "") == "test_compiles_without_spills"
    ]
    with aot_triton.compilers() as submit:
        found = {id(case): submit(case) for case in (item.callspec.params["case"] for item in wanted)}
        yield lambda case: found[id(case)].result()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.name}")
def test_compiles_without_spills(case, resources, record_property):
    used = resources(case)
    record_property("resources", str(used))
    assert used.spills == 0, f"{used}: use launch.compiler_options(arch), which bounds registers, or smaller blocks"
    assert used.registers <= aot_triton.REGISTER_LIMIT[case.target], used
    assert used.shared <= aot_triton.SHARED_LIMIT[case.target], used
    # What a program of so many threads may hold at most, or it does not launch.
    threads = case.launch.options["num_warps"] * (64 if case.target.startswith("gfx") else 32)
    assert used.registers * threads <= (128 * 1024 if case.target.startswith("gfx") else 64 * 1024), used


# Products of 16-bit numbers and of float32 as tf32, of tiles with at least the 64 rows that the instruction takes.
WGMMA = [
    case
    for case in CASES
    if case.target == "sm_90"
    and case.launch.kernel.__name__ in ("input_kernel", "output_kernel", "product_kernel")
    and (case.name.split("-")[0] in ("f16", "bf16") or "tf32" in case.name)
]


@pytest.mark.parametrize("case", WGMMA, ids=lambda case: case.name)
def test_tensor_cores_of_hopper(case):
    """Hopper's tensor cores are reached by its own instruction, not by the older one with half its rate."""
    code = aot_triton.compile_case(case).asm["ptx"]
    assert "wgmma.mma_async" in code and "mma.sync" not in code


def test_tensor_cores_are_not_seen_in_other_code():
    """ieee float32 has none, and neither has an architecture before Hopper wgmma."""
    other = [case for case in CASES if case.name.split(":")[1] == "product_kernel" and "-n300-" in case.name]
    assert other and WGMMA
    for case in other:
        if case.target == "sm_80" or (case.target == "sm_90" and "ieee" in case.name):
            assert "wgmma" not in aot_triton.compile_case(case).asm["ptx"]


def test_every_kernel_is_compiled():
    import triton

    for module in MODULES:
        compiled = {case.launch.kernel for case in CASES}
        folder = module.rpartition(".")[0]
        own = [name for name in sys.modules if name.startswith(module)]
        for name in own:
            for value in vars(sys.modules[name]).values():
                # Kernels, as opposed to the device functions they call, end their name so.
                if isinstance(value, triton.runtime.JITFunction) and value.__name__.endswith("_kernel"):
                    assert value in compiled, f"{value.__name__} of {name} is missing from aot_cases in {folder}"


def test_planted_spill_is_seen():
    """A kernel squeezed into too few registers is reported."""
    from dataclasses import replace

    case = next(case for case in CASES if case.target == "sm_90" and case.launch.options.get("maxnreg", 0) >= 128)
    squeezed = replace(case.launch, options={**case.launch.options, "maxnreg": 32})
    assert aot_triton.resources(replace(case, launch=squeezed)).spills > 0


def test_unknown_argument_is_refused():
    case = CASES[0]
    arguments = {**case.launch.arguments, "x": object()}
    with pytest.raises(TypeError, match="argument x"):
        aot_triton.specialise(case.launch.kernel, arguments)
