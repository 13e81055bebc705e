"""Install the build requirements of pyproject.toml, with a torch that fits this machine.

On Linux a plain `pip install torch` brings several gigabytes of CUDA packages. This picks the torch first:

1. the one that is installed already, if it is new enough;
2. what PAPEROPS_TORCH says: `cuda` (the default index's torch), `cpu`, or a requirement such as `torch==2.12.1`;
3. where an NVIDIA or AMD driver is visible, or away from Linux, the default index's torch;
4. otherwise a CPU build: of the configured indexes and link folders if they offer one, else of PyTorch's public index
   of CPU builds, else, with a word about it, whatever the default index has.

Run it with the Python of the environment to fill: `.venv/bin/python tools/install_torch.py`. `--torch-only` leaves the
other build requirements out. Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def build_requirements() -> list[str]:
    """The list `requires` of pyproject.toml's [build-system]. (tomllib came with Python 3.11.)"""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^requires = (\[.*?^\])", text, re.DOTALL | re.MULTILINE)
    assert listed, "pyproject.toml: no `requires = [...]` under [build-system]"
    return list(ast.literal_eval(listed.group(1)))


def numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0)"""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def allowed(version: str, requirement: str) -> bool:
    """Whether a version meets a requirement of the form `torch>=2.11,<3`."""
    low, high = re.findall(r"[\d.]+", requirement)
    return numbers(low) <= numbers(version) < numbers(high)


def installed_torch() -> str | None:
    """The version of the torch that imports here, in a process of its own: importing takes seconds and may fail."""
    found = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else None


def gpu_driver() -> str | None:
    """The first sign of a GPU's driver."""
    signs = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd"]
    return shutil.which("nvidia-smi") or next((sign for sign in signs if os.path.exists(sign)), None)


def cpu_build(requirement: str, *options: str) -> str | None:
    """The newest CPU build that pip sees, `2.13.0+cpu` say, or None."""
    try:
        listed = subprocess.run(
            [*PIP, "index", "versions", "torch", *options], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return None
    available = next((line for line in listed.stdout.splitlines() if line.startswith("Available versions:")), "")
    offered = re.findall(r"\b\d+\.\d+\.\d+\+cpu\b", available)
    return max((version for version in offered if allowed(version, requirement)), key=numbers, default=None)


def choose(requirement: str) -> tuple[list[str], str]:
    """Arguments for `pip install`, and why these."""
    wish = os.environ.get("PAPEROPS_TORCH", "").strip()
    if wish not in ("", "cpu", "cuda"):
        return [wish], "PAPEROPS_TORCH asks for it"
    if wish == "cuda":
        return [requirement], "PAPEROPS_TORCH=cuda"
    if wish != "cpu" and (driver := gpu_driver()):
        return [requirement], f"a GPU driver is here ({driver})"
    if not sys.platform.startswith("linux"):
        return [requirement], "the default build of this platform"
    if version := cpu_build(requirement):
        return [f"torch=={version}"], "a CPU build that pip's own settings offer; no GPU driver is visible"
    # Seconds, not pip's default of minutes, where that index cannot be reached.
    if version := cpu_build(requirement, "--index-url", CPU_INDEX, "--timeout", "5", "--retries", "0"):
        return [f"torch=={version}", "--extra-index-url", CPU_INDEX], "PyTorch's CPU build; no GPU driver is visible"
    return [requirement], (
        "no CPU build was found, so this is the default build, several gigabytes on Linux; "
        "to choose another, set PAPEROPS_TORCH to a requirement"
    )


def main() -> int:
    torch, *others = sorted(build_requirements(), key=lambda requirement: not requirement.startswith("torch"))
    version = installed_torch()
    if version and allowed(version, torch):
        print(f"torch {version} is installed", flush=True)
    else:
        arguments, why = choose(torch)
        print(f"Installing {arguments[0]}: {why}.", flush=True)
        if status := subprocess.call([*PIP, "install", "--quiet", *arguments]):
            return status
    if "--torch-only" in sys.argv[1:]:
        return 0
    return subprocess.call([*PIP, "install", "--quiet", *others])


if __name__ == "__main__":
    sys.exit(main())
