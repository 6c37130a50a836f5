"""How long a dry run over a large split takes, which is to be told of before days of scoring.

    python benchmarks/generation_dry_run.py [--queries 443757]

Real processes: API, one worker, one scorer on the echo engine (no model), SQLite; 19 pointers of two shots a query are asked for
and the empty one, out of random pools of 64 of all items. `accepted_s`: until `POST /rl-data/generate` answered; `seconds`: from
then until the job was done, in which worker and scorer open the dataset. Writes benchmarks/results/generation_dry_run.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import RESULTS, commit, machine
from trainer_processes import Trainer, write_questions

from leverplus.files import write_json

ASKED: dict[str, Any] = {"num_beams": 5, "num_samples_per_temp": 2, "num_random": 1, "num_retrieval": 9}
LIMIT_S = 1200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=443_757)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Trainer(folder, f"sqlite:///{folder / 'store.sqlite'}", workers=1, scorers=1) as trainer:
            write_questions(trainer.root, arguments.queries, seed=arguments.seed)
            start = time.perf_counter()
            job_id = trainer.generate(key="dry run", dry_run=True, **ASKED)
            accepted = time.perf_counter()
            result = trainer.wait_for(job_id, "succeeded", limit_s=LIMIT_S).result
            seconds = time.perf_counter() - accepted
    row = {"accepted_s": round(accepted - start, 1), "seconds": round(seconds, 1), "result": result}
    print(row)
    header = {"command": "python " + " ".join(sys.argv), "seed": arguments.seed, "machine": before, "commit": commit()}
    write_json(RESULTS / "generation_dry_run.json", {**header, **row})


if __name__ == "__main__":
    main()
