// paperops._C: how this installation was built. No implementation of an op is here.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "How the compiled libraries of paperops were built.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["compiler"] = PAPEROPS_COMPILER;
        info["flags"] = PAPEROPS_FLAGS;
        info["torch"] = PAPEROPS_TORCH;
        info["python"] = PAPEROPS_PYTHON;
        info["nvcc"] = PAPEROPS_NVCC;  // empty: the CUDA library was not built
        info["nvcc_flags"] = PAPEROPS_NVCC_FLAGS;
        info["cuda_architectures"] = PAPEROPS_CUDA_ARCHITECTURES;
        return info;
      },
      "The compilers, their flags, and the versions that the libraries were built with and for.");
}
