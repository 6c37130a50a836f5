"""What VQAv2's 443,757 training questions with 20 pointers each take on 8 and on 64 GPUs, from rates that were measured.

    python benchmarks/scale_arithmetic.py

Reads the results of other benchmarks and writes the tables in docs/scale.md anew, between their markers. Every input is named
with the file that it is from; nothing else goes in but the sizes of the task, which stand below.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from provenance import RESULTS, ROOT

PAGE = ROOT / "docs" / "scale.md"
QUERIES, POINTERS_A_QUERY, SHARD_QUERIES = 443_757, 20, 500
IMAGES, D_MODEL = 82_783, 1664
"""Photographs of COCO's train2014; the width of the default encoders' embeddings."""
GPUS = (8, 64)
GPUS_A_HOST = 8
EPOCHS = 15


@dataclass(frozen=True)
class Input:
    what: str
    value: float
    unit: str
    source: str


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def row_of(rows: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    return next(row for row in rows if row["what"] == what)


def inputs() -> dict[str, Input]:
    gpu = read("scorer_gpu")["rows"]
    shared_pool = next(row for row in gpu if row["what"] == "ours, one pool of 64" and row["beams"] == 1)
    own_pools = row_of(gpu, "ours, own pools of 9009")
    rates, memory, load = read("scale_rates"), read("generation_memory")["rows"][-1], read("rl_load")["loads"][0]
    training = next(row for row in read("training_speed_h100_1024")["queries_per_s"] if row["dropout"])
    selector = read("selector_http_443757")["rows"]
    small = read("scale_small")
    two = row_of(read("scorer_two_gpus")["rows"], "ours, a process on each of 2 GPUs")
    mib = 2**20
    return {
        "own": Input("pointers/s of one H100, pools of their own", own_pools["pointers_per_s"], "/s", "scorer_gpu"),
        "own_images": Input(
            "images read for one pointer, pools of their own", own_pools["images"] / own_pools["pointers"], "", "scorer_gpu"
        ),
        "one": Input("pointers/s of one H100, one pool of 64 for all", shared_pool["pointers_per_s"], "/s", "scorer_gpu"),
        "two": Input("of that, by each of two on one host at least", min(two["each"]), "/s", "scorer_two_gpus"),
        "postgresql": Input(
            "rows/s committed to PostgreSQL, 8 clients, batches of 256",
            rates["database"]["postgresql_8_clients_of_256"]["rows_per_s"],
            "/s",
            "scale_rates",
        ),
        "sqlite": Input(
            "rows/s committed to SQLite, the same",
            rates["database"]["sqlite_8_clients_of_256"]["rows_per_s"],
            "/s",
            "scale_rates",
        ),
        "row": Input(
            "bytes of a score in PostgreSQL, index included",
            rates["database"]["postgresql_8_clients_of_256"]["bytes_a_row"],
            "B",
            "scale_rates",
        ),
        "images": Input("photographs/s decoded by a core", rates["images"]["read_per_s"], "/s", "scale_rates"),
        "image": Input("bytes of a photograph", rates["images"]["bytes_an_image"], "B", "scale_rates"),
        "worker": Input(
            "pointers/s proposed, asked for and written by a worker",
            memory["pointers"] / memory["seconds"],
            "/s",
            "generation_memory",
        ),
        "candidate": Input("bytes of a candidate in RL data", load["file_mib"] * mib / load["candidates"], "B", "rl_load"),
        "load_s": Input("seconds to load a million candidates", load["seconds"] * 1e6 / load["candidates"], "s", "rl_load"),
        "load_mib": Input(
            "memory of a million loaded candidates",
            (load["peak_mib"] - load["resident_before_mib"]["own"]) * 1e6 / load["candidates"],
            "MiB",
            "rl_load",
        ),
        "train": Input(
            "queries/s trained by one H100 (20 candidates, pool of 64)", training["ours"], "/s", "training_speed_h100_1024"
        ),
        "dataset": Input("memory of a dataset of 443,757 questions", rates["dataset"]["bytes"] / mib, "MiB", "scale_rates"),
        "select": Input(
            "answers/s of a selector over all 443,757, new queries",
            row_of(selector, "ours, uncached")["requests_per_s"],
            "/s",
            "selector_http_443757",
        ),
        "connections": Input(
            "connections to PostgreSQL: API, 3 workers, 2 scorers",
            small["three_and_two"]["most_database_connections"],
            "",
            "scale_small",
        ),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}".rstrip("0").rstrip(".")


def gigabytes(count: float) -> str:
    return f"{number(count / 1e9)} GB"


def inputs_table(given: dict[str, Input]) -> str:
    link = "[{0}.json](../benchmarks/results/{0}.json)"
    rows = [[each.what, f"{number(each.value)} {each.unit}".strip(), link.format(each.source)] for each in given.values()]
    return table(["measured", "", "in"], rows)


def task_table(given: dict[str, Input]) -> str:
    value = {name: each.value for name, each in given.items()}
    pointers = QUERIES * POINTERS_A_QUERY
    rows: list[list[str]] = []
    for what, rate, images in (
        ("pools of their own", value["own"], value["own_images"]),
        ("one pool for all", value["two"], None),
    ):
        for gpus in GPUS:
            speed = gpus * rate
            decoded = None if images is None else GPUS_A_HOST * rate * images
            rows.append(
                [
                    f"{gpus}, {what}",
                    number(speed),
                    number(pointers / speed / 3600),
                    f"{100 * speed / value['postgresql']:.0f} %",
                    f"{100 * speed / value['sqlite']:.0f} %",
                    str(ceil(speed / value["worker"])),
                    "few" if decoded is None else f"{decoded / value['images']:.1f}",
                    "few" if decoded is None else f"{number(decoded * value['image'] / 1e6)} MB/s",
                ]
            )
    header = [
        "GPUs",
        "pointers/s",
        "hours",
        "of one PostgreSQL",
        "of one SQLite",
        "workers",
        f"cores that decode, a host of {GPUS_A_HOST}",
        "image bytes read there",
    ]
    return table(header, rows)


def sizes_table(given: dict[str, Input]) -> str:
    value = {name: each.value for name, each in given.items()}
    pointers = QUERIES * POINTERS_A_QUERY
    shards, rl_data = ceil(QUERIES / SHARD_QUERIES), gigabytes(pointers * value["candidate"])
    loading = (
        f"{number(pointers / 1e6 * value['load_s'] / 60)} min, {number(pointers / 1e6 * value['load_mib'] / 1024)} GiB of memory"
    )
    embeddings = gigabytes(QUERIES * D_MODEL * 4)
    memory = f"{number(value['dataset'] / 1024)} GiB of memory, and {embeddings} of embeddings, mapped"
    rows = [
        ["pointers", f"{pointers:,}"],
        ["shards", f"{shards:,} of {SHARD_QUERIES} queries, each a job in the database and a message to the broker"],
        ["scores in PostgreSQL", gigabytes(pointers * value["row"])],
        ["RL data", f"{rl_data}, which pass through the store twice: as shards, then as one file"],
        ["embeddings", embeddings],
        ["images, on every host of scorers, and of selectors", gigabytes(IMAGES * value["image"])],
        ["loading the RL data to train", loading],
        [f"training, {EPOCHS} epochs on one H100", f"{number(EPOCHS * QUERIES / value['train'] / 60)} min"],
        ["a selector over pools of all items", f"{memory}; {number(value['select'])} new queries/s"],
    ]
    return table(["what", "of it"], rows)


def small_table(small: dict[str, Any]) -> str:
    one, several, losses, served = (small[name] for name in ("one_and_one", "three_and_two", "losses", "train_and_serve"))

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(str(count) for count in counts.values() if count)

    limit = f"{small['prompts_a_batch'] / small['batch_s']:.0f}/s a scorer at most"
    rows = [
        [f"pointers/s ({limit})", str(one["pointers_per_s"]), f"{several['pointers_per_s']} ({small['speed_up']} times)", ""],
        ["requests of each scorer", listed(one["score_requests_by_scorer"]), listed(several["score_requests_by_scorer"]), ""],
        [
            f"of {small['shards']} shards, each worker",
            listed(one["shards_by_worker"]),
            listed(several["shards_by_worker"]),
            f"{losses['shards_done_before']} were done before, those left have {listed(losses['shards_by_other_workers'])}",
        ],
        ["connections to PostgreSQL", str(one["most_database_connections"]), str(several["most_database_connections"]), ""],
        [
            f"scores made, of {several['pointers']:,}",
            f"{one['made']:,}",
            f"{several['made']:,}",
            f"{losses['made']:,}: {losses['in_flight_at_the_kill']} were in flight in the scorer that was killed",
        ],
        ["finished shards made again", "", "", str(losses["finished_shards_made_again"])],
        ["committed scores lost, changed", "", "", f"{losses['committed_lost']}, {losses['committed_changed']}"],
        ["RL data", "", same(small["same_lines"]), same(losses["same_lines"])],
        ["done after the losses", "", "", f"{losses['seconds_after_the_kill']} s"],
        ["trained on an empty host", "", "", f"{served['train_s']} s, with what it fetched"],
        ["promotion to the first answer of an empty selector", "", "", f"{served['promotion_to_answer_s']} s"],
    ]
    return table(["", "one worker, one scorer", "three, two", "three, two, with losses"], rows)


def same(is_same: bool) -> str:
    return "the same lines" if is_same else "other lines"


def moved_table(small: dict[str, Any]) -> str:
    shared = small["shared"]
    size = number((shared["dataset_bytes"] + shared["embeddings_bytes"]) / 1e6)
    rows = [
        [name, str(counts["requests"]), number(counts["sent"] / 1e6), number(counts["received"] / 1e6)]
        for name, counts in small["store_by_host"].items()
        if name not in ("unknown", "onlooker")
    ]
    header = ["host", "requests", "MB sent", f"MB received (dataset, {shared['dataset_files']} files, and embeddings: {size})"]
    return table(header, rows)


def main() -> None:
    given, small, page = inputs(), read("scale_small"), PAGE.read_text()
    tables = {
        "inputs": inputs_table(given),
        "task": task_table(given),
        "sizes": sizes_table(given),
        "small": small_table(small),
        "moved": moved_table(small),
    }
    for name, content in tables.items():
        begin, end = f"<!-- {name}: made by benchmarks/scale_arithmetic.py -->", f"<!-- {name}: end -->"
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{content}\n{end}{after}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
