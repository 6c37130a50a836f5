"""README.md of a reward table, from what its table.json says.

python benchmarks/reward_table_readme.py assets/reward-table
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from leverplus.files import atomic_file
from leverplus.reward_table import RewardTable


def write_readme(folder: Path) -> None:
    """Writes README.md into the folder of a finished table."""
    lines: list[str] = []
    header = orjson.loads((folder / "table.json").read_bytes())
    for split in header["splits"]:
        table = RewardTable.open(folder, split)
        figures = [
            table.zero_shot(),
            *(values for shots in (1, 2) for values in (table.random(shots), table.best(shots))),
        ]
        cells = " | ".join(f"{100 * values.mean():.1f}" for values in figures)
        size = (folder / f"rewards-{split}.npy.xz").stat().st_size / 1e6
        lines.append(f"| {split} | {len(table.query_ids):,} | {size:.2f} | {cells} |")
    rate = header["made"]["pointers_per_s_of_a_warm_sample"]
    made, checks = header["made"], header["made"]["compared_with_the_engine"]
    agreement = "; ".join(
        f"{name}: {one['texts_differing']} texts and {one['rewards_differing']} rewards of {one['pointers']:,} differ"
        for name, one in checks.items()
    )
    agreement = agreement or "not done"
    text = f"""# reward-table

The reward of **every** pointer of length 0, 1 and 2 over the 64-item pools of the first val, test and train queries of
`invented-words` (size full, seed 0): {made["pointers"]:,} greedy answers of `assets/in-context-vlm`, judged with the official
VQA accuracy. Random choice, the best pointer and any policy's expected accuracy are exact on it: `leverplus.reward_table`.
The answers are a model's and the questions generated; Apache-2.0 as the project.

| split | queries | MB | zero-shot | random, 1 shot | best, 1 shot | random, 2 shots | best, 2 shots |
|---|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(lines)}

Accuracies in percent. "Best" looks at the answers and so includes lucky hits; it is no oracle of what a pointer tells.

- `rewards-*.npy.xz`: uint8 [queries, 4097]. A byte is an index into `levels` of table.json: {header["levels"]}.
- Column 0 is zero-shot, 1 + i the pointer (i,), 65 + 63·i + (j if j < i else j - 1) the pointer (i, j), j next to the query.
  i and j are positions in the query's pool under the policy of table.json.
- `table.json`: query ids, hashes (dataset, pixels, pools, weights, these files), prompt, precision, and how it was made.

```python
table = RewardTable.open(Path("assets/reward-table"), "val")
table.random(2).mean(), table.best(2).mean()  # exact, over the queries
table.chosen(positions).mean()  # [queries, 2]: one pointer a query
table.expected(probabilities, 2).mean()  # [queries, 4032], in the order of all_pointers(64)[columns(64, 2)]
```

Made on {made["device"]} in {made["seconds"]} s ({header["precision"]}; {rate:,} pointers a second on a warm sample).
Compared with the scorer's own engine in float32 on a processor: {agreement}.

```
{made["command"]}
```
"""
    with atomic_file(folder / "README.md") as stream:
        stream.write(text.encode())


if __name__ == "__main__":
    write_readme(Path(sys.argv[1]))
