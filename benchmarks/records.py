"""The JSON files of measurements, ``<folder>/<device>/<op family>.json``, and the digests that date them.

A file is ``{"schema": 1, "family", "device": {"type", "name", "slug"}, "records": [...]}``. A record is one op in one
dtype: when, with what, from which sources (their digest), under which ceilings, and a row a case and contestant.
Times are in seconds, sizes in bytes. Measuring again replaces the records of that op and dtype, and no other.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import paperops
from paperops.testing.registry import Entry

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
"""The evidence that is kept: measurements that belong to the sources beside them."""


@dataclass(frozen=True)
class Row:
    """One contestant on one case. ``note`` says why there are no figures, or what is wrong with them."""

    case: str
    contestant: str
    backward: bool
    operations: float
    bytes: float
    floor: float
    ours: bool = False
    chosen: bool = False  # the implementation that would run unforced; ratios are to it
    median: float | None = None
    q10: float | None = None
    q90: float | None = None
    least: float | None = None
    rounds: int = 0
    calls: int = 0  # per round
    method: str = ""
    ratio: float | None = None
    host: float | None = None  # host time of a call, on a GPU
    peak: int | None = None
    saved: int | None = None
    error: float | None = None  # largest, relative to the largest exact value
    truth: str = ""
    note: str = ""

    @property
    def share(self) -> float | None:
        """The floor's share of the time: of the ceiling that binds the call, how much is reached."""
        return self.floor / self.median if self.median else None


@dataclass(frozen=True)
class Record:
    """One op in one dtype on one device."""

    op: str
    family: str
    dtype: str
    device: dict[str, str]
    date: str
    digest: str | None
    commit: str | None
    versions: dict[str, str]
    conditions: dict[str, Any]
    ceilings: dict[str, float]
    rows: list[Row]
    absent: dict[str, str] = field(default_factory=dict)  # contestants that took no part, and why


# --- files -----------------------------------------------------------------------------------------------------------


def path(folder: Path, device: dict[str, str], family: str) -> Path:
    """Where records of a device and family lie."""
    return folder / device["slug"] / f"{family}.json"


def load(file: Path) -> list[Record]:
    """The records of a file. Raises ValueError for a file of another schema."""
    content = json.loads(file.read_text())
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {content.get('schema')!r}; this version reads {SCHEMA}: measure again")
    shared = {"family": content["family"], "device": content["device"]}
    return [
        Record(**{**record, "rows": [Row(**row) for row in record["rows"]]}, **shared) for record in content["records"]
    ]


def save(folder: Path, record: Record) -> Path:
    """Put a record into its file, in the place of the one of this op and dtype."""
    file = path(folder, record.device, record.family)
    kept = [r for r in load(file) if (r.op, r.dtype) != (record.op, record.dtype)] if file.exists() else []
    content = []
    for one in sorted([*kept, record], key=lambda r: (r.op, r.dtype)):
        plain = asdict(one)
        del plain["family"], plain["device"]
        content.append(plain)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"schema": SCHEMA, "family": record.family, "device": record.device, "records": content}
    file.write_text(json.dumps(whole, indent=1) + "\n")
    return file


def load_all(folder: Path) -> list[Record]:
    """All records of all devices."""
    return [record for file in sorted(folder.glob("*/*.json")) for record in load(file)]


# --- sources ---------------------------------------------------------------------------------------------------------


def checkout() -> Path | None:
    """The folder of the sources, or None where the package is installed away from them."""
    root = Path(paperops.__file__).parent.parent
    return root if (root / "csrc").is_dir() and (root / "pyproject.toml").is_file() else None


def source_files(sources: tuple[str, ...], root: Path) -> dict[str, list[Path]]:
    """The files that each of an entry's sources stands for: a file, a folder with all below it, or a pattern."""
    return {source: _expand(root, source) for source in sources}


def _expand(root: Path, source: str) -> list[Path]:
    found = [root / source] if (root / source).exists() else root.glob(source)
    files = [file for one in found for file in (one.rglob("*") if one.is_dir() else [one]) if file.is_file()]
    return sorted(
        file for file in files if "__pycache__" not in file.parts and file.suffix not in (".pyc", ".so", ".o")
    )


def digest(entry: Entry, root: Path | None) -> str | None:
    """A digest of the names and contents of an op's sources; None without a checkout."""
    if root is None:
        return None
    files = sorted({file for found in source_files(entry.sources, root).values() for file in found})
    total = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()[:16]


def commit(root: Path | None) -> str | None:
    """The checkout's commit, with ``+`` if tracked files differ from it; None if git does not say."""
    if root is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# --- the machine -----------------------------------------------------------------------------------------------------


def describe(device: torch.device) -> dict[str, str]:
    """Type, name and slug of a device; the slug of a CPU begins with ``cpu-``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return {"type": device.type, "name": name, "slug": slug if device.type == "cuda" else f"cpu-{slug}"}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what bears on the figures."""
    found = {"python": platform.python_version(), "paperops": paperops.__version__, "torch": torch.__version__}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if torch.version.hip is not None:
        found["hip"] = torch.version.hip
    for package in ("triton", "numpy", "scipy", "pytorch3d", "kaolin", "cuequivariance-ops-torch-cu12", "trifast"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def conditions(device: torch.device) -> dict[str, Any]:
    """What else bears on the figures."""
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
        }
    return found


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
