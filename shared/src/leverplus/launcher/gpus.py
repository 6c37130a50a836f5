"""Which scorer gets which GPU, without importing torch."""

from __future__ import annotations

import os
import subprocess

from leverplus.errors import InvalidConfig


def visible_gpus() -> int:
    """How many GPUs a process started from here sees: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # CUDA stops reading at the first entry that is none.
        count = 0
        for entry in chosen.split(","):
            if not entry.strip() or entry.strip().startswith("-"):
                break
            count += 1
        return count
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def scorer_devices(device: str, scorers: int | None) -> tuple[str, ...]:
    """The device of each scorer: GPU by GPU, or all on the CPU where `device` says so or there is no GPU. None: one for each GPU.

    InvalidConfig where there are fewer GPUs than scorers, or all would share the one GPU that `device` names.
    """
    if scorers == 1 or (scorers is None and device not in ("auto", "cuda")):
        return (device,)
    if device == "cpu":
        return (device,) * (scorers or 1)
    if device not in ("auto", "cuda"):
        raise InvalidConfig(
            field="--scorers", reason=f"{scorers} scorers cannot all have {device}: --device cuda gives each its own"
        )
    count = visible_gpus()
    if count == 0:
        return (device,) * (scorers or 1)
    wanted = scorers or count
    if wanted > count:
        seen = "1 GPU is visible" if count == 1 else f"{count} GPUs are visible"
        raise InvalidConfig(field="--scorers", reason=f"{wanted} scorers need a GPU each, and {seen}; or choose --device cpu")
    return tuple(f"cuda:{number}" for number in range(wanted))
