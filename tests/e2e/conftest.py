"""Running stacks on tiny cuts of easy-vqa and the model in assets/."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from leverplus.data_root import DataRoot
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.launcher import Ports, Stack, StackConfig

REPOSITORY = Path(__file__).parents[2]
DEFAULT_VLM = REPOSITORY / "assets" / "in-context-vlm"
DATASET = "easy-vqa-tiny"


def import_tiny(data: Path, *, train_images: int, test_images: int, questions_per_image: int) -> None:
    folder = DataRoot(data).dataset(DATASET)
    sizes = {"train_images": train_images, "test_images": test_images, "questions_per_image": questions_per_image}
    import_easy_vqa(folder, name=DATASET, val_share=0.0, **sizes)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """One for all tests of a module."""
    data = tmp_path_factory.mktemp("stack")
    import_tiny(data, train_images=12, test_images=6, questions_per_image=3)
    with Stack.start(StackConfig(data=data, vlm=DEFAULT_VLM, ports=Ports.free())) as running:
        yield running


@pytest.fixture
def tiny_data(tmp_path: Path) -> Callable[..., Path]:
    """Makes the test's data folder, with that much of easy-vqa in it as dataset `easy-vqa-tiny`."""

    def make(*, train_images: int = 8, test_images: int = 2, questions_per_image: int = 2) -> Path:
        data = tmp_path / "data"
        import_tiny(data, train_images=train_images, test_images=test_images, questions_per_image=questions_per_image)
        return data

    return make


@pytest.fixture
def start_stack() -> Callable[..., Stack]:
    """Starts the stack of a data folder, on free ports; further arguments are StackConfig's. The test stops it."""

    def start(data: Path, *, report: Callable[[str], None] | None = None, **settings: Any) -> Stack:
        config = StackConfig(**{"data": data, "vlm": DEFAULT_VLM, "ports": Ports.free(), **settings})
        return Stack.start(config, report=report)

    return start
