"""The paired permutation test: had the two systems' names been exchanged on any of the images, how large would the gain look?"""

from __future__ import annotations

import numpy as np

from leverplus.evaluation.bootstrap import Clusters, Floats

_CHUNK = 2_000_000


def sign_flip_p(differences: Floats, clusters: Clusters, draws: int, seed: int) -> Floats:
    """Two-sided p of each column of paired `differences` [n, m] → [m].

    Under the hypothesis that two systems do not differ, an image's difference has either sign; all queries of an image change
    it together. (1 + draws at least as far from 0) / (1 + draws), which is never 0 (B. Phipson, G. K. Smyth: Permutation p-values
    should never be zero, 2010). A difference that is 0 on every image has p = 1.
    """
    sums = clusters.sums(differences)
    images = len(clusters)
    # What rounding alone tells apart counts as equally far.
    observed = np.abs(sums.sum(axis=0)) * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    as_far = np.zeros(sums.shape[1])
    step = max(1, _CHUNK // images)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        bits = np.frombuffer(generator.bytes((count * images + 7) // 8), dtype=np.uint8)
        signs = np.unpackbits(bits, count=count * images).reshape(count, images).astype(np.float64)
        signs *= 2
        signs -= 1
        as_far += (np.abs(signs @ sums) >= observed).sum(axis=0)
    return (1 + as_far) / (1 + draws)
