"""A dataset on which choosing gains next to nothing: what the headroom report says of easy-vqa, and what the gate does.

    python benchmarks/no_headroom.py

Real questions about one coloured shape, which the small VLM of assets/ answers by itself. Starts the services on free ports in a
folder of its own, then asks them by the commands of the README: import, embed, rl generate, headroom, train, evaluate on val,
promote. Test stays closed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provenance import RESULTS, ROOT, commit, machine

from leverplus.files import write_json
from leverplus.launcher import Ports, Stack, StackConfig

NAME = "easy-vqa"


class Commands:
    """`leverplus` commands against one stack; `said` keeps each with its seconds."""

    def __init__(self, data: Path, stack: Stack) -> None:
        self.said: list[dict[str, Any]] = []
        self._environment = {
            **os.environ,
            "LEVERPLUS_DATA": str(data),
            "LEVERPLUS_SCORER_URL": stack.scorer_url,
            "LEVERPLUS_TRAINER_URL": stack.trainer_url,
        }

    def run(self, *arguments: str, refused: bool = False) -> str:
        """What it printed; of one that is to be refused, its error."""
        began = time.perf_counter()
        code = "from leverplus.cli import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        command = shlex.join(["leverplus", *arguments])
        if (done.returncode != 0) != refused:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self.said.append({"command": command, "seconds": round(time.perf_counter() - began, 1)})
        print(self.said[-1], flush=True)
        return done.stderr.strip() if refused else done.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="train images, and as many of val and test together")
    parser.add_argument("--queries", type=int, default=300, help="train queries whose candidates are scored")
    parser.add_argument("--out", type=Path, default=RESULTS / "easy_vqa.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leverplus-easy-vqa-") as folder:
        data = Path(folder)
        with Stack.start(StackConfig(data=data, vlm=ROOT / "assets" / "in-context-vlm", ports=Ports.free())) as stack:
            write_json(arguments.out, measured(Commands(data, stack), arguments))


def measured(commands: Commands, arguments: argparse.Namespace) -> dict[str, Any]:
    images = str(arguments.images)
    cut = ["--train-images", images, "--test-images", images, "--questions-per-image", "2"]
    commands.run("import", "easy-vqa", "--name", NAME, *cut)
    commands.run("embed", NAME)
    proposed = ["--num-beams", "2", "--temp", "1.0", "--num-samples-per-temp", "4", "--num-random", "4", "--num-retrieval", "2"]
    generated = commands.json(
        "rl", "generate", NAME, "--queries", str(arguments.queries), "--shots", "1", "--shots", "2", *proposed
    )
    headroom = commands.json("headroom", generated["rl_data_id"])
    trained = commands.json("train", generated["rl_data_id"])
    checkpoint = trained["checkpoint_id"]
    evaluated = commands.json("evaluate", NAME, "--checkpoint", checkpoint, *("--shots", "0", "--shots", "1", "--shots", "2"))
    refusal = commands.run("promote", checkpoint, refused=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "headroom": without(headroom, "markdown", "per_query_sha256"),
        "headroom_report": headroom["markdown"],
        "evaluation": without(evaluated, "markdown", "sizes", "run_folder", "per_query_sha256"),
        "evaluation_report": evaluated["markdown"],
        "gate": {"passed": False, "said": refusal},
        "commands": commands.said,
    }


def without(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in names}


if __name__ == "__main__":
    main()
