"""Print what every Triton kernel takes of every architecture: registers/shared bytes, and spilled bytes where any."""

from __future__ import annotations

import importlib
import pkgutil

from paperops.testing import aot_triton


def main() -> None:
    kernels = importlib.import_module("paperops.kernels")
    modules = [f"paperops.kernels.{found.name}" for found in pkgutil.iter_modules(kernels.__path__)]
    modules = [module for module in modules if hasattr(importlib.import_module(module), "aot_cases")]
    cases = [case for module in modules for target in aot_triton.TARGETS for case in aot_triton.cases(module, target)]
    rows: dict[str, dict[str, str]] = {}
    with aot_triton.compilers() as submit:
        for case, future in [(case, submit(case)) for case in cases]:
            used = future.result()
            spilled = f" ({used.spills} spilled)" if used.spills else ""
            rows.setdefault(case.name, {})[case.target] = f"{used.registers}/{used.shared}{spilled}"
    width = max((len(name) for name in rows), default=0)
    print(f"{'kernel: registers/shared bytes':{width}}", *(f"{target:>12}" for target in aot_triton.TARGETS))
    for name, cells in rows.items():
        print(f"{name:{width}}", *(f"{cells.get(target, ''):>12}" for target in aot_triton.TARGETS))


if __name__ == "__main__":
    main()
