"""A training that cannot go on ends in a sentence with the records and the remedy, and the same command goes on after it."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from training_ranks import WORKER, arguments_of, start, torchrun
from training_recipes import recipe_for

from radfm.medmd.schema import Stored
from radfm.medmd.shards import ShardWriter, read_records
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.training.collator import Collator
from radfm.training.data import load_rows
from radfm.training.examples import ExampleDataset
from radfm.training.faults import TrainingError
from radfm.training.run import find_checkpoint, make_arguments, make_plan, train
from radfm.training.trainer import RadFMTrainer

pytestmark = pytest.mark.slow  # trains small models
SAVE = ["training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=20"]


def process_of_rank(rank, torchrun_process):
    """The process that torchrun started for a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            child = f"PPid:\t{torchrun_process}\n" in (folder / "status").read_text()
            if child and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_broken_scan_is_named_with_its_record(base, data, tmp_path, workers, streaming):
    shard = next((data / "2d").glob("train-*.parquet"))
    first, *others = read_records(shard)
    broken = Stored(first.images[0].bytes[:200], first.images[0].path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("")
    writer = ShardWriter(tmp_path / "data" / "3d" / "train-0.parquet", "3d")
    for record in (*others, first):
        writer.add(record if record is not first else type(first)(**{**vars(first), "images": (broken,)}))
    writer.close()
    settings = ["training.max_steps=20", f"training.dataloader_num_workers={workers}", f"streaming={streaming}"]
    with pytest.raises(TrainingError, match=rf"^{first.id}: scan 1: .*leave the record out") as error:
        train(recipe_for(base, tmp_path / "data", tmp_path / "out", *settings))
    assert "\n" not in str(error.value)


def test_memory_that_runs_out_names_the_records_before_an_update(base, data, tmp_path):
    recipe = recipe_for(base, data, tmp_path, "training.max_steps=1")
    model = RadFMForConditionalGeneration.from_pretrained(base)
    model.model.vision_tower.register_forward_pre_hook(lambda *_: torch.empty(1 << 50))  # a petabyte and more
    processor = RadFMProcessor.from_pretrained(base)
    rows, args = load_rows(str(data), "train"), make_arguments(recipe)
    trainer = RadFMTrainer(
        model=model, args=args, plan=make_plan(recipe, args, rows, processor, model.config),
        train_dataset=ExampleDataset(rows, processor, recipe.loss, None, 0), data_collator=Collator(processor, model.config),
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"^Out of memory on records csv/.*lower batches\.max_patches"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_full_disk_is_named_and_the_half_written_checkpoint_is_not_resumed(base, data, tmp_path):
    """A limit on the size of a file fails as a full disk does, at the same call."""
    out = tmp_path / "out"
    recipe = recipe_for(base, data, out, "training.max_steps=1")
    load_rows(str(data), "train")  # the cache of `datasets` is written outside of the limit
    command = [sys.executable, "-m", "radfm.training", *arguments_of(recipe, tmp_path / "recipe.yaml")]

    def run(limit):
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT.parent, timeout=900,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip

    full = run(100_000)
    assert full.returncode == 2 and "the disk is full; free space" in full.stderr.splitlines()[-1], full.stderr[-2000:]
    assert list(out.glob("checkpoint-*")) and find_checkpoint(out) is None
    assert run(resource.RLIM_INFINITY).returncode == 0
    assert (out / "adapter_model.safetensors").exists()


def test_a_checkpoint_that_a_lost_rank_did_not_finish_is_not_resumed(base, data, tmp_path):
    recipe = recipe_for(base, data, tmp_path / "out", "training.max_steps=1", *SAVE)
    (tmp_path / "trainings.json").write_text(json.dumps([arguments_of(recipe, tmp_path / "recipe.yaml")]))
    assert start(WORKER, "--lose-rank-1", tmp_path / "trainings.json").returncode != 0
    assert list((tmp_path / "out").glob("checkpoint-1/rng_state_0.pth")) and find_checkpoint(tmp_path / "out") is None


@pytest.mark.long  # three trainings on two ranks
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process of a rank in Linux's /proc")
def test_a_lost_rank_ends_the_training_which_then_resumes(base, data, tmp_path):
    def command(out):
        settings = ["training.num_train_epochs=3", "training.per_device_train_batch_size=1", *SAVE]
        recipe = recipe_for(base, data, out, *settings)
        return torchrun("-m", "radfm.training", *arguments_of(recipe, tmp_path / f"{out.name}.yaml"))

    whole, lost = tmp_path / "whole", tmp_path / "lost"
    subprocess.run(**command(whole), check=True)
    with subprocess.Popen(**command(lost)) as run:
        deadline = time.monotonic() + 900
        while find_checkpoint(lost) is None:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process_of_rank(1, run.pid), signal.SIGKILL)
        assert run.wait(timeout=900) != 0
    assert not (lost / "adapter_model.safetensors").exists()
    subprocess.run(**command(lost), check=True)
    assert (lost / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
