"""One running stack for the tests of a module, on a tiny cut of easy-vqa and the model in assets/."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from leverplus.data_root import DataRoot
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.launcher import Ports, Stack, StackConfig

REPOSITORY = Path(__file__).parents[2]
DEFAULT_VLM = REPOSITORY / "assets" / "in-context-vlm"
DATASET = "easy-vqa-tiny"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    data = tmp_path_factory.mktemp("stack")
    folder = DataRoot(data).dataset(DATASET)
    import_easy_vqa(folder, name=DATASET, train_images=12, test_images=6, questions_per_image=3, val_share=0.0)
    with Stack.start(StackConfig(data=data, vlm=DEFAULT_VLM, ports=Ports.free())) as running:
        yield running
