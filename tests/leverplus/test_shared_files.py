"""Files that hosts share, over a real S3 server (moto's) and over a folder: what is whole, what is seen, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from leverplus.cli import app
from leverplus.data_root import DataRoot
from leverplus.errors import Conflict, InvalidConfig, InvalidSharedFile, NotInstalled, Unavailable
from leverplus.shared_files import SharedFiles


@dataclass(frozen=True)
class Hosts:
    """Two data folders on one store."""

    url: str
    ada: DataRoot
    bob: DataRoot

    @property
    def fs(self) -> Any:
        return fsspec.filesystem(self.url.partition("://")[0], use_listings_cache=False)

    def objects(self, name: str) -> list[str]:
        return [str(found) for found in self.fs.find(f"{self.url}/{name}/objects")]


@pytest.fixture(params=["file", "s3"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Hosts:
    url = f"file://{tmp_path / 'store'}" if request.param == "file" else request.getfixturevalue("s3_url")
    return Hosts(url, DataRoot.at(tmp_path / "ada", url), DataRoot.at(tmp_path / "bob", url))


def shared(root: DataRoot) -> SharedFiles:
    assert root.shared is not None
    return root.shared


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_comes_whole_when_it_is_asked_for(hosts: Hosts) -> None:
    made = write(hosts.ada.dataset("d"), items="one", images__a="two", images__b="two")
    assert not hosts.bob.dataset("d").exists(), "nothing is shared yet"
    hosts.ada.publish(made)
    there = hosts.bob.dataset("d")
    assert {path.relative_to(there).as_posix(): path.read_text() for path in there.rglob("*") if path.is_file()} == {
        "items": "one",
        "images/a": "two",
        "images/b": "two",
    }
    assert len(hosts.objects("datasets/d")) == 2, "equal contents are kept once"
    assert shared(hosts.bob).names(hosts.bob.path / "datasets") == ["d"]


def test_a_file_comes_under_its_name(hosts: Hosts) -> None:
    path = hosts.ada.rl_data("rl-1")
    path.parent.mkdir(parents=True)
    path.write_text("lines")
    hosts.ada.publish(path)
    assert hosts.bob.rl_data("rl-1").read_text() == "lines"
    assert not hosts.bob.rl_data("rl-2").exists()


def test_what_is_published_again_must_be_the_same(hosts: Hosts) -> None:
    hosts.ada.publish(write(hosts.ada.checkpoint("c"), model="1"))
    same = write(hosts.bob.path / "checkpoints" / "c", model="1", index__faiss="more")
    hosts.bob.publish(same)
    write(same, model="2")
    with pytest.raises(Conflict, match=r"checkpoints/c is shared already and differs: model has sha256 6b86b273ff34… there"):
        hosts.bob.publish(same)


def test_of_two_hosts_that_publish_at_one_moment_one_is_told(hosts: Hosts) -> None:
    folders = [write(root.path / "checkpoints" / "c", model=text) for root, text in ((hosts.ada, "1"), (hosts.bob, "2"))]

    def outcome(root: DataRoot, folder: Path) -> str:
        try:
            root.publish(folder)
        except Conflict:
            return "told"
        return "published"

    with ThreadPoolExecutor() as threads:
        outcomes = list(threads.map(outcome, (hosts.ada, hosts.bob), folders))
    assert sorted(outcomes) == ["published", "told"]
    third = DataRoot.at(hosts.ada.path.parent / "third", hosts.url).checkpoint("c")
    assert (third / "model").read_text() == "12"[outcomes.index("published")]


def test_an_altered_object_is_refused_and_leaves_nothing(hosts: Hosts) -> None:
    hosts.ada.publish(write(hosts.ada.dataset("d"), items="one", images__a="two"))
    path = hosts.ada.rl_data("rl-1")
    path.parent.mkdir(parents=True)
    path.write_text("lines")
    hosts.ada.publish(path)
    for name in ("datasets/d", "rl-data/rl-1.ndjson"):
        hosts.fs.pipe_file(hosts.objects(name)[0], b"xyz")
    with pytest.raises(InvalidSharedFile, match=r"datasets/d: object .* has sha256 3608bca1e44e…: it was altered"):
        hosts.bob.dataset("d")
    with pytest.raises(InvalidSharedFile, match="altered"):
        hosts.bob.rl_data("rl-1")
    left = [path for path in hosts.bob.path.rglob("*") if path.is_file() and not path.name.endswith(".fetching")]
    assert left == []


@pytest.mark.parametrize("name", ["../../outside", "/outside", ""])
def test_a_manifest_leads_nowhere_else(hosts: Hosts, name: str) -> None:
    hosts.ada.publish(write(hosts.ada.dataset("d"), items="one"))
    place = f"{hosts.url}/datasets/d/manifest-00000001.json"
    value = json.loads(hosts.fs.cat_file(place))
    value["files"][name] = value["files"].pop("items")
    hosts.fs.pipe_file(place, json.dumps(value).encode())
    with pytest.raises(InvalidSharedFile, match="leads out of it"):
        hosts.bob.dataset("d")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "other"}', b'{"format": "leverplus-shared-1", "files": {"a": 1}}'])
def test_a_broken_manifest_is_told(hosts: Hosts, content: bytes) -> None:
    hosts.ada.publish(write(hosts.ada.dataset("d"), items="one"))
    hosts.fs.pipe_file(f"{hosts.url}/datasets/d/manifest-00000001.json", content)
    with pytest.raises(InvalidSharedFile, match="delete it there and publish it again"):
        hosts.bob.dataset("d")


def test_a_file_is_replaced_by_one_host_at_a_time(hosts: Hosts) -> None:
    path, other = hosts.ada.deployment("a"), hosts.bob.deployment("a")
    hosts.ada.replace(path, b"1", version=hosts.ada.newest(path))
    version = hosts.bob.newest(other)
    assert (version, other.read_bytes()) == (1, b"1")
    hosts.ada.replace(path, b"2", version=1)
    with pytest.raises(Conflict, match=r"deployments/a.json was replaced by another host"):
        hosts.bob.replace(other, b"3", version=version)
    assert other.read_bytes() == b"1", "the store comes first"
    hosts.bob.replace(other, b"3", version=hosts.bob.newest(other))
    assert shared(hosts.ada).read(path) == (b"3", 3)
    assert len(hosts.objects("deployments/a.json")) <= 2, "what was replaced goes"


def test_a_run_directory_is_shared_as_it_grows(hosts: Hosts) -> None:
    run = write(hosts.ada.run("job-1"), log="a", state="1", shards__one="x")
    shared(hosts.ada).publish_newest(run, without=("shards",))
    write(run, log="ab", metrics="m")
    (run / "state").unlink()
    shared(hosts.ada).publish_newest(run, without=("shards",))
    there = write(hosts.bob.run("job-1"), log="old", own="stays")
    assert hosts.bob.newest(there) == 2
    assert {path.name: path.read_text() for path in there.iterdir()} == {"log": "ab", "metrics": "m", "own": "stays"}
    assert len(hosts.objects("runs/job-1")) == 2
    shared(hosts.ada).publish_newest(run, without=("shards",))
    assert hosts.bob.newest(there) == 2, "nothing has changed"


def test_what_is_deleted_is_fetched_no_more(hosts: Hosts) -> None:
    made = write(hosts.ada.checkpoint("c"), model="1")
    hosts.ada.publish(made)
    hosts.ada.publish(write(made / "index-x", faiss="i"))
    assert hosts.bob.prefilter("c", "x").is_dir()
    hosts.ada.unpublish(made)
    hosts.ada.unpublish(made)
    third = DataRoot.at(hosts.ada.path.parent / "third", hosts.url)
    assert not third.checkpoint("c").exists()
    third.bring_all("checkpoints")
    assert not third.checkpoint("c").exists()


def test_lists_hold_what_others_shared(hosts: Hosts) -> None:
    for name in ("a", "b", "damaged"):
        hosts.ada.publish(write(hosts.ada.checkpoint(name), model=name))
    hosts.fs.pipe_file(hosts.objects("checkpoints/damaged")[0], b"xyz")
    hosts.bob.bring_all("checkpoints")
    assert sorted(path.name for path in (hosts.bob.path / "checkpoints").glob("[!.]*")) == ["a", "b"]


PUBLISHING = """
import sys
from pathlib import Path
from leverplus.data_root import DataRoot
root = DataRoot.at(Path(sys.argv[1]), sys.argv[2])
root.publish(root.dataset("d"))
"""


def test_an_upload_that_is_killed_is_never_seen_and_goes_on(s3_url: str, tmp_path: Path) -> None:
    hosts = Hosts(s3_url, DataRoot.at(tmp_path / "ada", s3_url), DataRoot.at(tmp_path / "bob", s3_url))
    write(hosts.ada.dataset("d"), **{f"images__{number}": str(number) for number in range(1500)})
    process = subprocess.Popen([sys.executable, "-c", PUBLISHING, str(hosts.ada.path), s3_url])
    end = time.monotonic() + 60
    while not (begun := len(hosts.objects("datasets/d"))):
        assert time.monotonic() < end
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert 0 < begun < 1500
    assert not hosts.bob.dataset("d").exists()
    hosts.ada.publish(hosts.ada.dataset("d"))
    assert sum(1 for _ in (hosts.bob.dataset("d") / "images").iterdir()) == 1500


def test_a_store_that_is_away_is_told_and_what_is_here_stays(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    root = DataRoot.at(tmp_path, s3_url)
    here = write(root.path / "checkpoints" / "c", model="1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("leverplus.shared_store._OPTIONS", {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}})
    assert root.checkpoint("c") == here
    root.bring_all("checkpoints")
    with pytest.raises(Unavailable, match=rf"the store {s3_url} is away: EndpointConnectionError.*look at LEVERPLUS_SHARED"):
        root.checkpoint("other")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_job_waits_for_a_store_that_is_away(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.ada.publish(write(hosts.ada.dataset("d"), items="one"))
    pauses: list[float] = []
    monkeypatch.setattr("leverplus.shared_files.time.sleep", pauses.append)
    newest = SharedFiles._newest  # pyright: ignore[reportPrivateUsage]
    outages = 3

    def away(self: SharedFiles, path: Path) -> Any:
        if len(pauses) < outages:
            raise Unavailable(what="the store", reason="restarted", hint="")
        return newest(self, path)

    monkeypatch.setattr(SharedFiles, "_newest", away)
    with pytest.raises(Unavailable):
        hosts.bob.dataset("d")
    assert hosts.bob.patient(120).dataset("d").exists()
    assert pauses == [0.5, 1, 2]
    pauses.clear()
    outages = 10**6
    with pytest.raises(Unavailable):
        hosts.bob.patient(20).dataset("e")
    assert sum(pauses) == pytest.approx(20)


def test_a_bucket_that_is_not_there_is_told(s3_url: str, tmp_path: Path) -> None:
    root = DataRoot.at(tmp_path, "s3://no-such-bucket/x")
    with pytest.raises(Unavailable, match=r"no-such-bucket/x is away: .*bucket does not exist"):
        root.publish(write(tmp_path / "checkpoints" / "c", model="1"))


def test_an_url_must_be_one_and_its_store_installed(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="LEVERPLUS_SHARED: 'bucket' is no URL"):
        DataRoot.at(tmp_path, "bucket")
    with pytest.raises(NotInstalled, match=r"needs leverplus\[s3\]"):
        DataRoot.at(tmp_path, "gs://bucket/x").checkpoint("c")


def test_by_hand(hosts: Hosts) -> None:
    write(hosts.ada.dataset("d"), items="one")

    def leverplus(root: DataRoot, *arguments: str) -> str:
        result = CliRunner().invoke(app, ["shared", *arguments, "--shared", hosts.url, "--data", str(root.path)])
        return f"{result.exit_code} {result.output}"

    assert leverplus(hosts.ada, "publish", "datasets/d") == "0 datasets/d: shared\n"
    assert leverplus(hosts.bob, "list", "datasets") == "0 datasets/d\n"
    assert leverplus(hosts.bob, "fetch", "datasets/d") == "0 datasets/d: here\n"
    assert leverplus(hosts.bob, "fetch", "datasets/e").startswith("2 error:")
    assert leverplus(hosts.bob, "fetch", "../ada").startswith("2 error:")
