"""Takes what the last `make demo` trained into assets/demo: its checkpoint, and the RL data that it was trained on.

    make demo && python benchmarks/demo_checkpoint.py

`leverplus import demo` makes a data folder of it, with the dataset and embeddings made anew.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
from pathlib import Path

from provenance import ROOT

from leverplus.checkpoints import load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.demo.ready_made import CHECKPOINT, RL_DATA_SUFFIX
from leverplus.deployments import DEFAULT_ALIAS, read_deployment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus" / "demo", help="the demo's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "demo")
    options = parser.parse_args()
    root, out = DataRoot(options.data), options.out
    folder = root.checkpoint(read_deployment(root, DEFAULT_ALIAS).checkpoint_id)
    _, info = load_checkpoint(folder)
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(f"*{RL_DATA_SUFFIX}"):
        stale.unlink()
    for stated in info.rl_data:
        packed = lzma.compress(root.rl_data(stated["id"]).read_bytes(), preset=9)
        (out / f"{stated['id']}{RL_DATA_SUFFIX}").write_bytes(packed)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    shutil.copytree(folder, out / CHECKPOINT)
    shutil.copyfile(options.data / "results" / "evaluation.md", out / "evaluation.md")
    print(f"{out}: {info.checkpoint_id}, {sum(path.stat().st_size for path in out.rglob('*') if path.is_file())} bytes")


if __name__ == "__main__":
    main()
