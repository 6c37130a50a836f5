"""Environment variables, what each service makes of them, and what they name."""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import orjson

from leverplus.doctor.finding import Finding, Notable, checked
from leverplus.errors import InvalidConfig
from leverplus.keys import KeyFile

_PREFIX = "LEVERPLUS_"

SERVICES = {
    "vqa_scorer": "ScorerSettings",
    "pointer_trainer": "TrainerSettings",
    "selector_api": "SelectorSettings",
}
"""Each service's own package, and the class of its settings module."""

# fmt: off
KNOWN = frozenset({
    "LEVERPLUS_ACCESS_LOG", "LEVERPLUS_ALLOW_ANONYMOUS", "LEVERPLUS_BATCH_SIZE", "LEVERPLUS_CLAIM_EXPIRY_S", "LEVERPLUS_DATA",
    "LEVERPLUS_DEADLINE_S", "LEVERPLUS_DEVICE", "LEVERPLUS_DTYPE", "LEVERPLUS_HOST", "LEVERPLUS_HOST_CACHE_MIB",
    "LEVERPLUS_IMAGE_CACHE_MIB", "LEVERPLUS_KEY", "LEVERPLUS_KEYS", "LEVERPLUS_KEY_RATE", "LEVERPLUS_LENGTH_PENALTY",
    "LEVERPLUS_LOG", "LEVERPLUS_LORA", "LEVERPLUS_MAX_NEW_TOKENS", "LEVERPLUS_MAX_UPLOAD_MIB", "LEVERPLUS_NUM_BEAMS",
    "LEVERPLUS_OPENAI_API_KEY", "LEVERPLUS_OPENAI_CONCURRENCY", "LEVERPLUS_OPENAI_MODEL", "LEVERPLUS_OPENAI_REVISION",
    "LEVERPLUS_OPENAI_URL", "LEVERPLUS_PREFIX_CACHE_MIB", "LEVERPLUS_PROMPT", "LEVERPLUS_QUEUE_SIZE",
    "LEVERPLUS_RECONCILE_EVERY_S", "LEVERPLUS_RETENTION_DAYS", "LEVERPLUS_SCORERS", "LEVERPLUS_SCORER_KEY",
    "LEVERPLUS_SCORER_MEMORY", "LEVERPLUS_SCORER_PORT", "LEVERPLUS_SCORER_URL", "LEVERPLUS_SELECTOR_MEMORY",
    "LEVERPLUS_SELECTOR_PORT", "LEVERPLUS_SELECTOR_URL", "LEVERPLUS_SHARED", "LEVERPLUS_THREADS",
    "LEVERPLUS_TRAINER_PORT", "LEVERPLUS_TRAINER_URL", "LEVERPLUS_VLM", "LEVERPLUS_WORKER_MEMORY", "LEVERPLUS_WORKER_PULSE",
})
# fmt: on
"""All that services, the command line and docker-compose.yml read."""


def settings_findings(environ: Mapping[str, str], model: Path | None) -> Iterator[Finding]:
    """`model`: the directory to score with; None where LEVERPLUS_OPENAI_URL names a server."""
    yield checked("variables", lambda: _variables(environ))
    for package, name in SERVICES.items():
        if find_spec(package) is not None:
            yield checked(f"settings of {package}", lambda package=package, name=name: _settings(environ, package, name))
    if environ.get("LEVERPLUS_KEYS"):
        yield checked("keys", lambda: keys(Path(environ["LEVERPLUS_KEYS"])))
    if find_spec("vqa_scorer") is not None:
        yield checked("model", lambda: _model(model))


def _variables(environ: Mapping[str, str]) -> str:
    given = sorted(name for name in environ if name.startswith(_PREFIX))
    unknown = [name for name in given if name not in KNOWN and not re.match(r"LEVERPLUS_(TEST|WRITE)_", name)]
    if unknown:
        listed: list[str] = []
        for name in unknown:
            # Without what all begin with, or everything would be near.
            own = [known.removeprefix(_PREFIX) for known in KNOWN]
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), own, n=1, cutoff=0.7)
            listed.append(f"{name} is read by nobody" + (f": is {_PREFIX}{near[0]} meant?" if near else "; unset it"))
        raise InvalidConfig(field="environment", reason="; ".join(listed))
    return ", ".join(given) or "no LEVERPLUS_ variable is set"


def _settings(environ: Mapping[str, str], package: str, name: str) -> str:
    from leverplus.web.settings import setting_faults

    # What the launcher fills in where it is unset.
    filled = {"REDIS_URL": "redis://127.0.0.1", "LEVERPLUS_VLM": "assets"}
    if environ.get("LEVERPLUS_OPENAI_URL"):
        del filled["LEVERPLUS_VLM"]
    given = {variable: value for variable, value in environ.items() if value}
    faults = setting_faults(getattr(import_module(f"{package}.settings"), name), {**filled, **given})
    if faults:
        raise InvalidConfig(field="environment", reason=f"{'; '.join(faults)}; correct or unset it")
    return "valid"


def keys(path: Path) -> str:
    """That the file can be read, and that nobody else can write it: whoever does gives himself a key."""
    KeyFile(path)
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = f"{path} can be written by others (mode {stat.S_IMODE(mode):o}), who could add keys: `chmod go-w {path}`"
        raise InvalidConfig(field="LEVERPLUS_KEYS", reason=reason)
    return f"{path}, mode {stat.S_IMODE(mode):o}"


def _model(folder: Path | None) -> str:
    from leverplus.launcher.processes import require_model

    if folder is None:
        return "the server at LEVERPLUS_OPENAI_URL; the scorer asks it for its models when it starts"
    require_model(folder)
    try:
        kind = orjson.loads((folder / "config.json").read_bytes()).get("model_type")
    except (orjson.JSONDecodeError, AttributeError) as exc:
        raise InvalidConfig(field="vlm", reason=f"{folder / 'config.json'} is no model's configuration; copy it again") from exc
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if weights == 0:
        reason = f"{folder} has no weights (*.safetensors); copy the whole model, or have Git LFS fetch what it left out"
        raise InvalidConfig(field="vlm", reason=reason)
    if kind is None:
        raise Notable(f"{folder / 'config.json'} names no model_type; the scorer may not know how to load it")
    return f"{folder.resolve()}, {kind}, {weights / 2**20:.1f} MiB of weights"
