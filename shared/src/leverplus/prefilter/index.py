"""Searching a prefilter: which candidates the selector is given to rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from leverplus.errors import InvalidIndex, NotInstalled
from leverplus.files import file_sha256
from leverplus.policies import Choice, PreparedCandidates, SelectorPolicy
from leverplus.prefilter.manifest import GROUPS_FILE, KEYS_FILE, PrefilterManifest
from leverplus.selector.numpy_base import Indices
from leverplus.vectors import Vector

Take = Callable[[Indices], PreparedCandidates]
"""Rows [H] among the candidates -> what the selector makes of those."""


def import_faiss(name: str) -> Any:
    """faiss; NotInstalled where it is missing."""
    try:
        import faiss
    except ImportError as exc:
        raise NotInstalled(
            what=f"prefilter {name!r}",
            extra="leverplus[index]",
            reason=str(exc),
            hint="install it beside this service (faiss-cpu), or leave `prefilter` out: then every candidate is ranked",
        ) from exc
    return faiss


class Prefilter:
    """An index over the selector's keys, and means of groups of candidates for its attention. Safe to share between threads.

    The exact selector reads the whole pool twice: its attention makes a direction of it, and the cosines of that direction and
    every key are the logits. Here the attention reads `groups` [g, h] instead, the index hands on the keys that are nearest to
    the direction, and the logits of those alone are computed, exactly for that direction. Later steps choose among them too.
    """

    def __init__(self, policy: SelectorPolicy, index: Any, groups: Vector, *, faiss: Any, handed_on: int, probes: int) -> None:
        self._policy = policy
        self._index = index
        self._groups = groups
        self._faiss = faiss
        self._handed_on = handed_on
        self._probes = probes

    @classmethod
    def open(cls, folder: Path, policy: SelectorPolicy, manifest: PrefilterManifest) -> Prefilter:
        """The files of `manifest`, which the caller has compared with what lies here. NotInstalled, InvalidIndex."""
        faiss = import_faiss(manifest.name)
        hashes = {KEYS_FILE: manifest.keys_sha256, GROUPS_FILE: manifest.groups_sha256}
        for file, expected in hashes.items():
            path = folder / file
            if not path.is_file():
                raise InvalidIndex(path=path, reason="missing; make the index anew with `leverplus index`")
            if (found := file_sha256(path)) != expected:
                reason = (
                    f"sha256 is {found[:12]}…, its manifest says {expected[:12]}…; make the index anew with `leverplus index`"
                )
                raise InvalidIndex(path=path, reason=reason)
        try:
            # Into memory, a byte a number: a mapped file that somebody cuts would end the process.
            index = faiss.read_index(str(folder / KEYS_FILE))
            groups = load_file(folder / GROUPS_FILE)["groups"]
        except (RuntimeError, SafetensorError, KeyError) as exc:
            raise InvalidIndex(path=folder, reason=f"cannot be read: {exc}") from exc
        hidden = policy.config.hidden_dim
        shape = (index.d, index.ntotal, *groups.shape)
        if shape != (hidden, manifest.sources.candidates, manifest.groups, hidden):
            raise InvalidIndex(path=folder, reason=f"shapes {shape} are not those of its manifest and checkpoint")
        return cls(policy, index, groups, faiss=faiss, handed_on=manifest.handed_on, probes=manifest.probes)

    def choose(
        self, query: Vector, take: Take, shots: int, beam: int = 1, *, left_out: Indices | None = None
    ) -> tuple[Indices, Choice]:
        """Rows [H] that are handed on, ascending, and the best pointer's positions among them. query [d]; no row of `left_out`
        is handed on. InvalidConfig where fewer are than `shots`."""
        state = self._policy.begin(query[None], self._groups)
        rows = self._nearest(state.direction, left_out)
        return rows, self._policy.choose_from(state, take(rows), shots, beam)[0][0]

    def handed_to(self, query: Vector, left_out: Indices | None = None) -> Indices:
        """The rows that `choose` ranks."""
        return self._nearest(self._policy.begin(query[None], self._groups).direction, left_out)

    def _nearest(self, direction: Vector, left_out: Indices | None) -> Indices:
        """Rows of the keys nearest to direction [1, h], ascending, so that ties go to the lowest; fewer than `handed_on` where
        the lists that are searched hold fewer."""
        omitted = np.empty(0, dtype=np.int64) if left_out is None else left_out
        # Threads of its own would cost more than such a search takes. The setting is the calling thread's.
        self._faiss.omp_set_num_threads(1)
        count = min(self._handed_on + len(omitted), self._index.ntotal)
        parameters = self._faiss.SearchParametersIVF(nprobe=self._probes)
        found: Indices = self._index.search(direction, count, params=parameters)[1][0]
        found = found[(found >= 0) & ~np.isin(found, omitted)]
        return np.sort(found[: self._handed_on])
