"""A stream: each row once an epoch over ranks and workers, bounds hold, a resumed training ends with the same bits."""

import pickle
from itertools import islice

import pytest
from torch.utils.data import DataLoader
from training_recipes import recipe_for

from radfm.configuration_radfm import RadFMConfig
from radfm.medmd.schema import DataError
from radfm.medmd.shards import ShardWriter, read_records
from radfm.processing_radfm import RadFMProcessor
from radfm.training.collator import Collator
from radfm.training.examples import ExampleDataset
from radfm.training.recipe import Batches, Loss, RecipeError, load_recipe
from radfm.training.run import train
from radfm.training.stream import Shards, StreamedBatches, load_places, save_places


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mixed_data):
    """The rows of `mixed_data` in shards of 4, 3, 2 and 2 row groups."""
    folder = tmp_path_factory.mktemp("stream")
    records = [record for file in sorted(mixed_data.glob("?d/train-*.parquet")) for record in read_records(file)]
    records = [record for record in records if not record.shapes or record.config == "2d"]
    for number, start in enumerate(range(0, len(records), 3)):
        shard = folder / "3d" / f"train-{number}.parquet"  # a row group a row, as for volumes
        writer = ShardWriter(shard, "3d")
        for record in records[start : start + 3]:
            writer.add(record)
        writer.close()
    return folder


@pytest.fixture(scope="module")
def make_stream(base, folder):
    processor, config = RadFMProcessor.from_pretrained(base), RadFMConfig.from_pretrained(base)

    def make(rank=0, ranks=1, workers=0, max_rows=2, max_tokens=8192):
        examples = ExampleDataset([], processor, Loss(), None, 0)
        batches = Batches(max_tokens=max_tokens)
        share = {"rank": rank, "ranks": ranks, "workers": workers}
        shards = Shards(str(folder), "train")
        return StreamedBatches(shards, examples, Collator(processor, config), batches, max_rows=max_rows, seed=3, **share)

    return make


def take(stream, batches):
    processes = 0 if stream.workers == 1 else stream.workers
    loader = DataLoader(stream, batch_size=None, collate_fn=lambda batch: batch, num_workers=processes)
    return list(islice(loader, batches))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_each_row_comes_once_an_epoch_over_ranks_and_workers(make_stream, ranks, workers):
    seen = {0: [], 1: []}
    for rank in range(ranks):
        for batch in take(make_stream(rank, ranks, workers, max_rows=1), 20 // ranks + 2):
            if batch["place"].epoch in seen:
                seen[batch["place"].epoch] += batch["record_ids"]
    assert len(seen[0]) == 10 and sorted(seen[0]) == sorted(set(seen[0])) == sorted(seen[1]) and seen[0] != seen[1]


def test_bounds_hold(make_stream):
    batches = take(make_stream(max_rows=3, max_tokens=100), 9)
    sizes = [len(batch["record_ids"]) for batch in batches]
    assert 1 < max(sizes) <= 3
    with_scans = [batch for batch in batches if len(batch["record_ids"]) == len(batch["input_ids"])]  # no black scan added
    assert with_scans and all(batch["input_ids"].numel() <= 100 for batch in with_scans)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_goes_on_where_a_checkpoint_was_written(make_stream, workers, tmp_path):
    whole = [batch["record_ids"] for batch in take(make_stream(workers=workers), 9)]
    for stop in (1, 4, 7):  # in the first epoch, at its end, in the second
        stream = make_stream(workers=workers)
        for batch in take(make_stream(workers=workers), stop):
            stream.places[batch["place"].worker] = batch["place"]
        save_places(tmp_path / "stream-0.json", stream.places, stop)
        resumed = make_stream(workers=workers)
        resumed.resume(*load_places(tmp_path / "stream-0.json"))
        assert [batch["record_ids"] for batch in take(resumed, 9 - stop)] == whole[stop:]
    assert pickle.loads(pickle.dumps(stream)).places == stream.places


def test_faults_are_named(make_stream, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.max_steps: is needed with streaming=true"):
        load_recipe("finetune-lora", ["streaming=true"])
    with pytest.raises(RecipeError, match="mixture: needs the sizes of all sources"):
        load_recipe("finetune-lora", ["streaming=true", "training.max_steps=1", "mixture.temperature=2"])
    with pytest.raises(RecipeError, match="10 row groups for 12 readers"):
        make_stream(ranks=3, workers=4)
    with pytest.raises(RecipeError, match=r"batches\.max_tokens=20: record csv/\S+ alone has \d+ tokens"):
        take(make_stream(max_tokens=20), 10)
    with pytest.raises(DataError, match="has no shards train-"):
        Shards(str(tmp_path), "train")
    with pytest.raises(RecipeError, match="with 1 readers"):
        make_stream(workers=2).resume(make_stream().places, 0)
    with pytest.raises(RecipeError, match=r"holds no stream-1\.json"):
        load_places(tmp_path / "stream-1.json")


@pytest.mark.slow  # trains small models
def test_a_resumed_training_on_a_stream_ends_with_the_same_weights(base, folder, tmp_path):
    def run(out):
        settings = ["training.max_steps=8", "training.save_strategy=steps", "training.save_steps=1"]
        settings += ["training.save_total_limit=20", "training.per_device_train_batch_size=2"]
        return train(recipe_for(base, folder, out, "streaming=true", "training.gradient_accumulation_steps=2", *settings))

    whole = run(tmp_path / "whole")
    for stop in (1, 4, 7):
        out = tmp_path / str(stop)
        out.mkdir()
        (out / f"checkpoint-{stop}").symlink_to(whole / f"checkpoint-{stop}")
        assert (run(out) / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert "| csv | 10 |" in (whole / "README.md").read_text()
