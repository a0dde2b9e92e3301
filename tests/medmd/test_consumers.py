"""Who takes a dataset unchanged: `datasets` (folder, streaming, resume), TRL, RadFM's template, Croissant, the viewer."""

import copy
from pathlib import Path

import pytest
from building import make_portal
from PIL import Image
from test_build import own_scans

from radfm.medmd.build import build
from radfm.medmd.shards import ShardWriter, read_records, shard_files

pytestmark = pytest.mark.slow  # streams data sets at every cut


datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("data")
    build({name: make_portal(name, tmp) for name in ("nih", "slake", "ct-rate", "mimic-cxr-jpg", "medframeqa")}, tmp / "out")
    return tmp / "out"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return str(tmp_path / "cache")


def test_the_folder_loads_by_config_and_split(folder, cache):
    images = datasets.load_dataset(str(folder), "2d", cache_dir=cache)
    assert set(images) >= {"train", "test"}
    assert isinstance(images["train"][0]["images"][0], Image.Image)
    volumes = datasets.load_dataset(str(folder), "3d", split="train", cache_dir=cache)
    assert volumes[0]["images"][0]["bytes"][:2] == b"\x1f\x8b"
    assert isinstance(volumes[0]["extra"], dict)
    decoded = volumes.cast_column("images", datasets.List(datasets.Nifti()))[0]["images"][0]
    assert decoded.shape == (12, 14, 8)


def test_two_data_sets_in_folders_of_one_name_are_not_mixed_up_in_the_cache(tmp_path, cache):
    counts = []
    for rows in (2, 3):
        out = tmp_path / str(rows) / "data"
        build({"csv": own_scans(tmp_path / f"own{rows}", rows, split="train")}, out)
        counts.append(len(datasets.load_dataset(str(out), "2d", split="train", cache_dir=cache)))
    assert counts == [2, 3]


def test_configs_have_the_types_that_the_viewer_shows(folder, cache):
    """The viewer shows `Image` columns and takes configs and splits from the card's `configs`."""
    from huggingface_hub import DatasetCard

    configs = DatasetCard.load(folder / "README.md").data.to_dict()["configs"]
    assert [config["config_name"] for config in configs] == ["2d", "3d"]
    for config in configs:
        for entry in config["data_files"]:
            assert list(folder.glob(entry["path"])), entry
    for config, kind in (("2d", datasets.Image()), ("3d", datasets.Nifti(decode=False))):
        rows = datasets.load_dataset(str(folder), config, split="train", streaming=True, cache_dir=cache)
        assert rows.features["images"] == datasets.List(kind)


def test_trl_takes_messages_and_images_as_they_are(folder, cache):
    trl = pytest.importorskip("trl.data_utils")
    for row in datasets.load_dataset(str(folder), "2d", split="train", cache_dir=cache):
        prepared = trl.prepare_multimodal_messages(row["messages"], images=row["images"])
        parts = [part for message in prepared for part in message["content"]]
        assert [part["image"] for part in parts if part["type"] == "image"] == row["images"]
        assert [part["text"] for part in parts if part["type"] == "text"][-1]


def test_the_chat_template_of_radfm_marks_each_scan(folder, cache):
    from transformers import AutoTokenizer

    root = Path(__file__).parents[2]
    tokenizer = AutoTokenizer.from_pretrained(root)
    tokenizer.chat_template = (root / "chat_template.jinja").read_text()
    for row in datasets.load_dataset(str(folder), "2d", split="train", cache_dir=cache):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert text.count("<image>") == len(row["images"])
        assert row["messages"][-1]["content"][0]["text"] in text


def test_croissant_metadata_are_valid_and_read_scalars(folder):
    mlc = pytest.importorskip("mlcroissant")
    dataset = mlc.Dataset(jsonld=str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    name = dataset.metadata.record_sets[0].uuid
    rows = list(dataset.records(name))
    ids = {row[f"{name}/id"].decode() for row in rows}
    assert ids == {record.id for record in read_records(folder / name.removeprefix("records/"))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """Eight shards of 5 rows, as a large dataset has 64 and more."""
    tmp = tmp_path_factory.mktemp("shards")
    build({"csv": own_scans(tmp / "own", 40, split="train")}, tmp / "out")
    records = [record for file in shard_files(tmp / "out") for record in read_records(file)]
    paths = []
    for k in range(8):
        writer = ShardWriter(tmp / f"train-{k:05}.parquet", "2d")
        for record in records[k * 5 : (k + 1) * 5]:
            writer.add(record)
        writer.close()
        paths.append(str(writer.path))
    return paths


def stream(shards: list[str], cache: str):
    return datasets.load_dataset(
        "parquet", data_files=shards, split="train", streaming=True, cache_dir=cache
    ).select_columns(["id"])


def test_a_shuffled_stream_resumes_exactly(shards, cache):
    rows = stream(shards, cache).shuffle(seed=3, buffer_size=1)
    resumed = copy.deepcopy(rows)
    whole, states = [], []
    for row in rows:
        whole.append(row["id"])
        states.append(copy.deepcopy(rows.state_dict()))
    assert len(set(whole)) == 40
    for cut in (1, 4, 5, 6, 13, 39):  # each takes datasets seconds: about the ends of shards, and elsewhere
        resumed.load_state_dict(states[cut - 1])
        assert [row["id"] for row in resumed] == whole[cut:], cut


@pytest.mark.parametrize("world", [1, 2, 4, 8, 3])
def test_ranks_and_workers_share_the_rows_without_loss_or_repeat(shards, cache, world):
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader

    ids = []
    for rank in range(world):
        part = split_dataset_by_node(stream(shards, cache).shuffle(seed=1, buffer_size=1), rank, world)
        workers = 2 if world <= 4 and part.num_shards >= 2 else 0
        ids += [row["id"] for row in DataLoader(part, batch_size=None, num_workers=workers)]
    assert len(ids) == len(set(ids)) == 40


def test_rows_are_mixed_so_that_a_stream_needs_no_buffer(tmp_path, cache):
    """Of a table sorted by class, every tenth of the stream has about as many of each class."""
    source = own_scans(tmp_path / "own", 200, split="train")
    text = source.read_text().splitlines()
    rows = [text[0]] + [line.replace(f"thing {i}", "first" if i < 100 else "second") for i, line in enumerate(text[1:])]
    source.write_text("\n".join(rows) + "\n")
    build({"csv": source}, tmp_path / "out")
    answers = [record.answer for file in shard_files(tmp_path / "out") for record in read_records(file)]
    tenths = [answers[k : k + 20].count("first") for k in range(0, 200, 20)]
    assert all(3 <= count <= 17 for count in tenths), tenths
