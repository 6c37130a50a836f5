"""Promotion, roll-back, and what is refused; on a real folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from leverplus.data_root import DataRoot
from leverplus.deployments import Deployment, list_deployments, promote, read_deployment, rollback
from leverplus.errors import Conflict, InvalidConfig, NotFound


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    for name in ("ckpt-a", "ckpt-b", "ckpt-c"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")
    return DataRoot(tmp_path)


def test_promote_and_read(root: DataRoot) -> None:
    written = promote(root, "production", "ckpt-a", by="ada", reason="first")
    assert written == read_deployment(root, "production")
    assert (written.checkpoint_id, written.by, written.reason, written.gate, written.predecessor) == (
        "ckpt-a",
        "ada",
        "first",
        None,
        None,
    )
    assert written.promoted_at.endswith("+00:00")
    second = promote(root, "production", "ckpt-b", by="bob", reason="better", gate={"passed": True})
    assert second.gate == {"passed": True}
    assert second.predecessor is not None
    assert second.predecessor["checkpoint_id"] == "ckpt-a"
    assert "predecessor" not in second.predecessor
    third = promote(root, "production", "ckpt-c", by="bob", reason="best")
    assert third.predecessor is not None
    assert third.predecessor["checkpoint_id"] == "ckpt-b"


def test_rollback_swaps(root: DataRoot) -> None:
    promote(root, "production", "ckpt-a", by="ada", reason="first", gate={"difference": 0.1})
    promote(root, "production", "ckpt-b", by="bob", reason="better")
    back = rollback(root, "production", "eve")
    assert (back.checkpoint_id, back.by, back.reason, back.gate) == (
        "ckpt-a",
        "eve",
        "rolled back from ckpt-b",
        {"difference": 0.1},
    )
    assert back.predecessor is not None
    assert back.predecessor["checkpoint_id"] == "ckpt-b"
    assert rollback(root, "production", "eve").checkpoint_id == "ckpt-b"


def test_promoting_what_is_served_keeps_the_way_back(root: DataRoot) -> None:
    promote(root, "production", "ckpt-a", by="ada", reason="first")
    promote(root, "production", "ckpt-b", by="ada", reason="better")
    promote(root, "production", "ckpt-b", by="ada", reason="say it again")
    assert rollback(root, "production", "ada").checkpoint_id == "ckpt-a"


def test_refusals_change_nothing(root: DataRoot) -> None:
    with pytest.raises(NotFound, match=r"no deployment 'production'; promote a checkpoint first"):
        read_deployment(root, "production")
    with pytest.raises(NotFound, match="no deployment"):
        rollback(root, "production", "ada")
    with pytest.raises(NotFound, match="no checkpoint 'ckpt-x'"):
        promote(root, "production", "ckpt-x", by="ada", reason="oops")
    with pytest.raises(InvalidConfig, match="reason: empty"):
        promote(root, "production", "ckpt-a", by="ada", reason=" ")
    with pytest.raises(InvalidConfig, match="no valid name"):
        promote(root, "../production", "ckpt-a", by="ada", reason="oops")
    assert list_deployments(root) == []
    promote(root, "production", "ckpt-a", by="ada", reason="first")
    with pytest.raises(Conflict, match="no predecessor"):
        rollback(root, "production", "ada")


def test_a_deleted_predecessor_is_not_rolled_back_to(root: DataRoot) -> None:
    promote(root, "production", "ckpt-a", by="ada", reason="first")
    promote(root, "production", "ckpt-b", by="ada", reason="better")
    (root.checkpoint("ckpt-a") / "checkpoint.json").unlink()
    with pytest.raises(NotFound, match="ckpt-a"):
        rollback(root, "production", "ada")
    assert read_deployment(root, "production").checkpoint_id == "ckpt-b"


def test_list_by_alias(root: DataRoot) -> None:
    promote(root, "staging", "ckpt-b", by="ada", reason="try")
    promote(root, "production", "ckpt-a", by="ada", reason="first")
    assert [(found.alias, found.checkpoint_id) for found in list_deployments(root)] == [
        ("production", "ckpt-a"),
        ("staging", "ckpt-b"),
    ]


WHOLE = {"alias": "production", "checkpoint_id": "ckpt-a", "promoted_at": "", "by": "ada", "reason": "first"}
BROKEN = [
    (b"", "not JSON: "),
    (b"{", "not JSON: "),
    (b"\xff\x00", "not JSON: "),
    (b"[]", r"it is \[\], expected an object; "),
    (b"{}", "alias is missing; "),
    (b'{"alias": "production"}', "checkpoint_id is missing; "),
    (orjson.dumps({**WHOLE, "other": 1}), "other is no field of one; "),
    (orjson.dumps({**WHOLE, "alias": "staging"}), "holds alias 'staging', expected 'production'; "),
    (orjson.dumps({**WHOLE, "predecessor": {"alias": "production"}}), r"predecessor\.checkpoint_id is missing; "),
]
"""Contents that are no deployment, and what is said of them."""


@pytest.mark.parametrize(("content", "reason"), BROKEN)
def test_a_broken_file_is_named_with_the_way_out_and_an_override_replaces_it(root: DataRoot, content: bytes, reason: str) -> None:
    promote(root, "staging", "ckpt-c", by="ada", reason="untouched")
    path = root.deployment("production")
    path.write_bytes(content)
    told = rf"production\.json: not a deployment: {reason}.*promote a checkpoint with an override and a reason"
    with pytest.raises(InvalidConfig, match=told) as refused:
        read_deployment(root, "production")
    assert "__init__" not in str(refused.value)
    with pytest.raises(InvalidConfig, match=told):
        rollback(root, "production", "ada")
    with pytest.raises(InvalidConfig, match=told):
        promote(root, "production", "ckpt-b", by="ada", reason="better", gate={"passed": True, "incumbent": "ckpt-a"})
    with pytest.raises(InvalidConfig, match="reason: empty"):
        promote(root, "production", "ckpt-b", by="ada", reason="")
    broken = path.with_name("production.json.broken")
    assert (path.read_bytes(), broken.exists()) == (content, False)
    made = promote(root, "production", "ckpt-b", by="ada", reason="the file was damaged")
    assert (made.checkpoint_id, made.gate, made.predecessor) == ("ckpt-b", None, None)
    assert read_deployment(root, "production") == made
    assert broken.read_bytes() == content
    assert [found.alias for found in list_deployments(root)] == ["production", "staging"]
    assert promote(root, "production", "ckpt-c", by="ada", reason="goes on").predecessor is not None
    assert broken.read_bytes() == content


@pytest.mark.parametrize("change", [{"checkpoint_id": 5}, {"gate": "passed"}, {"predecessor": {"checkpoint_id": "ckpt-a"}}])
def test_a_field_of_another_type_is_named(root: DataRoot, change: dict[str, Any]) -> None:
    deployment = promote(root, "production", "ckpt-a", by="ada", reason="first")
    root.deployment("production").write_bytes(orjson.dumps({**deployment.to_json(), **change}))
    with pytest.raises(InvalidConfig, match=r"production\.json: not a deployment"):
        read_deployment(root, "production")


def test_a_file_of_another_alias_is_refused(root: DataRoot) -> None:
    promote(root, "staging", "ckpt-a", by="ada", reason="first")
    root.deployment("production").write_bytes(root.deployment("staging").read_bytes())
    with pytest.raises(InvalidConfig, match="holds alias 'staging'"):
        read_deployment(root, "production")


def test_promotions_at_once_leave_a_whole_chain(root: DataRoot) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(
            threads.map(lambda n: promote(root, "production", f"ckpt-{'abc'[n % 3]}", by=str(n), reason="race"), range(24))
        )
    last = read_deployment(root, "production")
    assert last in made
    assert last.predecessor is not None
    assert last.predecessor["checkpoint_id"] != last.checkpoint_id
    assert Deployment(**orjson.loads(root.deployment("production").read_bytes())) == last
    assert [path.name for path in (root.path / "deployments").iterdir() if path.name.endswith(".tmp")] == []
