"""What else may lie in the broker's queue: a pickle is refused unread, and neither it nor rubbish holds up our jobs."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path

import pytest
import redis
from hostile_corpus import Runs
from kombu import pools
from trainer_processes import Trainer

from leverplus.errors import LeverPlusError
from pointer_trainer.broker import Broker
from pointer_trainer.celery_app import QUEUE, RUN_JOB, create_celery


def pickled(job_id: str) -> bytes:
    """A message as Celery would write it if it wrote pickles, which does something when it is read."""
    body = pickle.dumps(([job_id, Runs()], {}, {}))
    properties = {"delivery_tag": "1", "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": QUEUE}}
    headers = {"task": RUN_JOB, "id": "1", "lang": "py"}
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-type": "application/x-python-serialize",
            "content-encoding": "binary",
            "headers": headers,
            "properties": properties,
        }
    ).encode()


RUBBISH = [b"", b"{", b"[]", b"7", b'{"body": 7}', b'{"body": "W10="}', b'{"body": "!"}', b"[" * 100_000, b"\xff"]


def test_only_json_is_accepted_of_the_broker():
    celery = create_celery("redis://127.0.0.1:1/0")
    assert celery.conf.accept_content == ["json"]
    assert (celery.conf.task_serializer, celery.conf.result_serializer, celery.conf.event_serializer) == ("json",) * 3


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:x/0", "redi://:hunter2@h/0", "redis://:hunter2@127.0.0.1:1/0"])
def test_a_broker_that_cannot_be_asked_is_told_without_its_password(url: str):
    with pytest.raises(LeverPlusError) as error:
        Broker(url).require()
    assert "hunter2" not in str(error.value)


def test_messages_that_are_not_ours_are_counted_for_no_job(valkey_url: str):
    with redis.Redis.from_url(valkey_url) as client:
        client.delete(QUEUE)
        broker = Broker(valkey_url)
        try:
            client.rpush(QUEUE, pickled("job-x"), *RUBBISH)
            assert broker.waiting() == frozenset()
            broker.send("job-1")
            assert broker.waiting() == {"job-1"}
        finally:
            broker.close()
            pools.reset()  # kombu keeps the connection that sent it for whoever sends next
            client.delete(QUEUE)


def test_a_pickle_is_refused_by_a_worker_which_goes_on(tmp_path: Path):
    Path(Runs.mark).unlink(missing_ok=True)
    with Trainer(tmp_path, f"sqlite:///{tmp_path / 'store.sqlite'}", workers=1) as trainer:
        with redis.Redis.from_url(trainer._redis_url) as client:  # pyright: ignore[reportPrivateUsage]
            client.rpush(QUEUE, pickled("job-x"))
        job_id = trainer.train({"rce_epochs": 1}, key="after")
        assert trainer.wait_for(job_id, "succeeded").status == "succeeded"
        log = trainer.workers[0].log.read_text()
    assert "ContentDisallowed" in log
    assert not Path(Runs.mark).exists()
