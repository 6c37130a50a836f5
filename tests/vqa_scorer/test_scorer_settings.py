from __future__ import annotations

import re

import pytest

from leverplus.data_root import DataRoot
from leverplus.errors import InvalidConfig
from leverplus.web import read_settings
from vqa_scorer.app import create_app
from vqa_scorer.settings import ScorerSettings

KEY = "sk-never-shown"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "exactly one of LEVERPLUS_VLM .* and LEVERPLUS_OPENAI_URL .*; neither is set"),
        ({"LEVERPLUS_VLM": "/vlm", "LEVERPLUS_OPENAI_URL": "http://host"}, "both are set"),
        ({"LEVERPLUS_OPENAI_URL": "http://host", "LEVERPLUS_OPENAI_MODEL": "m"}, "LEVERPLUS_OPENAI_REVISION"),
        ({"LEVERPLUS_OPENAI_URL": "http://host", "LEVERPLUS_OPENAI_REVISION": "r"}, "LEVERPLUS_OPENAI_MODEL"),
    ],
)
def test_settings_name_one_vlm(given: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(ScorerSettings, {**given, "LEVERPLUS_OPENAI_API_KEY": KEY})
    said = capsys.readouterr().err
    assert re.search(f"^error: .*{named}", said)
    assert KEY not in said


def test_beams_with_a_server_are_refused_before_anything_starts(data: DataRoot) -> None:
    settings = ScorerSettings(data=data.path, openai_url="http://host", openai_model="m", openai_revision="r", num_beams=3)
    with pytest.raises(InvalidConfig, match="LEVERPLUS_NUM_BEAMS"):
        create_app(settings)
