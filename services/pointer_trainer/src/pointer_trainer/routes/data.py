"""Datasets and RL data."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import open_file, to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from leverplus.dataset import Dataset, DatasetInfo
from leverplus.errors import InvalidInput, LeverPlusError
from leverplus.files import remove_folder
from leverplus.rl_data import InfoScoreSign
from pointer_trainer.errors import UploadTooLarge
from pointer_trainer.rl_files import head, take_in, upload_folder
from pointer_trainer.routes.broken import Broken, BrokenList
from pointer_trainer.state import State

router = APIRouter(tags=["data"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Uploaded(BaseModel):
    rl_data_id: str
    report: dict[str, Any]


class RlDataHead(BaseModel):
    rl_data_id: str
    bytes: int
    meta: dict[str, Any]


class DatasetList(BaseModel):
    datasets: list[DatasetInfo]
    broken: BrokenList = []


class RlDataList(BaseModel):
    rl_data: list[RlDataHead]
    broken: BrokenList = []


@router.post("/rl-data", openapi_extra=_BODY)
async def upload_rl_data(
    request: Request,
    state: State,
    dataset: Annotated[str, Query(description="the dataset its ids are of")],
    name: Annotated[str, Query(min_length=1, max_length=255, description="what errors call the file")] = "upload",
    info_score: Annotated[
        InfoScoreSign | None,
        Query(description="of a legacy InfoScore file, which scores are better; lower ones are negated. Refused with any other"),
    ] = None,
) -> Uploaded:
    """Takes an RL JSON or NDJSON file as the raw body, checks it against the dataset, and keeps it. Equal contents: equal id."""
    await to_thread.run_sync(lambda: Dataset.open(state.data_root.dataset(dataset), verify=False))
    folder = await to_thread.run_sync(upload_folder, state.data_root)
    take = partial(take_in, info_score=info_score)
    try:
        uploaded = folder / "upload"
        limit = state.settings.max_upload_mib * 1024 * 1024
        size = 0
        async with await open_file(uploaded, "wb") as stream:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise UploadTooLarge(limit_mib=state.settings.max_upload_mib)
                await stream.write(chunk)
        if size == 0:
            raise InvalidInput("the body is empty; send the file's bytes, e.g. curl --data-binary @file.json")
        rl_data_id, report = await to_thread.run_sync(take, uploaded, state.data_root, dataset, name)
    finally:
        await to_thread.run_sync(remove_folder, folder)
    return Uploaded(rl_data_id=rl_data_id, report=report)


@router.get("/rl-data")
def get_rl_data(state: State) -> RlDataList:
    """RL data by id, each with its size and `_meta`."""
    listed = RlDataList(rl_data=[])
    state.data_root.bring_all("rl-data")
    for path in sorted((state.data_root.path / "rl-data").glob("[!.]*.ndjson")):
        try:
            listed.rl_data.append(RlDataHead(rl_data_id=path.stem, bytes=path.stat().st_size, meta=head(path)))
        except LeverPlusError as exc:
            listed.broken.append(Broken(name=path.stem, reason=str(exc)))
    return listed


@router.get("/datasets")
def get_datasets(state: State) -> DatasetList:
    """Datasets with their splits and hashes."""
    listed = DatasetList(datasets=[])
    state.data_root.bring_all("datasets")
    for path in sorted((state.data_root.path / "datasets").glob("[!.]*/dataset.json")):
        try:
            listed.datasets.append(Dataset.open(path.parent, verify=False).info)
        except LeverPlusError as exc:
            listed.broken.append(Broken(name=path.parent.name, reason=str(exc)))
    return listed
