"""Alerts and dashboard ask for metrics that the services really show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from leverplus.selector_health import LEAST_CHANGED, MOST_ALIKE
from pointer_trainer.app import create_app as create_trainer
from pointer_trainer.settings import TrainerSettings
from selector_api.app import create_app as create_selector
from selector_api.settings import SelectorSettings
from vqa_scorer.app import create_app as create_scorer
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"\b(?:leverplus|vqa_scorer)_[a-z_]+\b")
LABELS = re.compile(r"\{[^}]*\}|\bby \([^)]*\)")


def names(expression: str) -> set[str]:
    """Metrics of a PromQL expression."""
    return set(NAME.findall(LABELS.sub("", expression)))


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    found = json.loads((DEPLOY / "grafana" / "dashboards" / "leverplus.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Samples and families under /metrics of all services, before any work was done; without a broker."""
    data = tmp_path_factory.mktemp("data")
    broker = "redis://127.0.0.1:9/0"
    apps = (
        create_scorer(ScorerSettings(data=data, vlm=data / "none"), EchoEngine()),
        create_trainer(TrainerSettings(data=data, redis_url=broker)),
        create_selector(SelectorSettings(data=data)),
    )
    found: set[str] = set()
    for app in apps:
        with TestClient(app) as client:
            text = client.get("/metrics").text
        found |= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    return found | BROKER_GAUGES


BROKER_GAUGES = {"leverplus_workers", "leverplus_broker_messages"}
"""Shown while the broker answers: tests/pointer_trainer/test_trainer_metrics.py."""


def test_every_alert_asks_for_metrics_that_there_are(exposed: set[str]):
    asked = {name: names(rule["expr"]) for name, rule in alerts().items()}
    assert asked["SelectorAlwaysPicksTheSame"] == {"leverplus_selector_most_common_share", "leverplus_selector_queries"}
    assert {name: sorted(metrics - exposed) for name, metrics in asked.items() if metrics - exposed} == {}


def test_every_panel_asks_for_metrics_that_there_are(exposed: set[str]):
    asked = {panel["title"]: {name for target in panel["targets"] for name in names(target["expr"])} for panel in panels()}
    assert all(asked.values())
    assert {title: sorted(metrics - exposed) for title, metrics in asked.items() if metrics - exposed} == {}


def test_a_service_that_is_not_ready_says_so(exposed: set[str]):
    assert "leverplus_ready" in exposed


def test_every_alert_says_what_is_wrong_and_what_to_do():
    for name, rule in alerts().items():
        assert set(rule["annotations"]) == {"summary", "action"}, name
        assert rule["labels"]["severity"] in ("warning", "critical"), name


def test_a_selector_is_called_out_by_the_limits_of_its_health():
    assert f"> {MOST_ALIKE} and" in alerts()["SelectorAlwaysPicksTheSame"]["expr"]
    assert f"< {LEAST_CHANGED} and" in alerts()["SelectorIgnoresTheQuery"]["expr"]


def test_every_alert_is_tried_by_promtools_tests():
    tried = (DEPLOY / "prometheus" / "alerts-test.yml").read_text()
    assert [name for name in alerts() if f'alertname="{name}"' not in tried] == []
