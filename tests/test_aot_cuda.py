"""The CUDA sources compile for every architecture without a GPU, and no kernel spills registers."""

import pytest

from paperops.testing import aot_cuda

LOG = """\
ptxas info    : Compiling entry function '_Z3onev' for 'sm_90a'
ptxas info    : Function properties for _Z3onev
    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 3072 bytes smem
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90a'
ptxas info    : Function properties for _Z3twov
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def needs_nvcc():
    if aot_cuda.find_nvcc() is None:
        pytest.skip("no nvcc: the CUDA sources can be compiled only where CUDA's compiler is installed")


def test_log_is_read():
    one, two = aot_cuda.parse_resources(LOG, "x.cu", "90a")
    assert (one.name, one.registers, one.shared_bytes, one.stack_bytes, one.spilled_bytes) == (
        "_Z3onev",
        40,
        3072,
        8,
        20,
    )
    assert (two.name, two.registers, two.shared_bytes, two.spilled_bytes) == ("_Z3twov", 255, 0, 0)
    assert "20 spilled" in aot_cuda.table([one, two])


def test_a_spill_is_an_error(tmp_path):
    """A kernel that must spill: 64 values alive at once in 24 registers."""
    needs_nvcc()
    source = tmp_path / "spill.cu"
    source.write_text(
        """
        __global__ void __maxnreg__(24) spill(const volatile float* in, float* out) {
          float kept[64];
          #pragma unroll
          for (int i = 0; i < 64; ++i) kept[i] = in[i];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < 64; ++i) out[i] = kept[i] * kept[63 - i];
        }
        """
    )
    with pytest.raises(aot_cuda.SpillError, match="spill"):
        aot_cuda.compile_sources([source], ["90a"])
    (kernel,) = aot_cuda.compile_sources([source], ["90a"], allow_spills=True)
    assert kernel.spilled_bytes > 0


@pytest.mark.slow
def test_sources_compile_without_spills():
    needs_nvcc()
    kernels = aot_cuda.compile_sources()
    print("\n" + aot_cuda.table(kernels))
    assert {kernel.architecture for kernel in kernels} <= set(aot_cuda.ARCHITECTURES)
    assert all(kernel.spilled_bytes == 0 and kernel.registers <= 255 for kernel in kernels)
