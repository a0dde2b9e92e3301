"""Training of the demo checkpoint: true answers, independent questions, exact resume."""

import csv
import json
import random

import pytest
import torch
from helpers import IMAGE, small_model
from torch import nn

from radfm.training.demo.datasets import LABELS, PICTURE_PACKS, SERIES_PACKS, VOLUME_PACKS, Sample, read_packs
from radfm.training.demo.evaluate import interval
from radfm.training.demo.packs import PACKS
from radfm.training.demo.qa_templates import CLASHES, answerable_labels, closed_question, questions, train_tokenizer
from radfm.training.demo.stage1_vision import augment
from radfm.training.demo.stage2_language import Row, build_example, collate
from radfm.training.demo.trainer import train

TUMOUR = Sample(
    "brain_tumor_t1ce",
    "train",
    torch.zeros(1, 96, 96, 1, dtype=torch.uint8),
    {"modality": "MRI", "body_part": "brain", "sequence": "T1", "brain_tumor_t1ce": "glioma"},
)
HEAD_CT = Sample("mednist", "train", torch.zeros(1, 96, 96, 1, dtype=torch.uint8), {"modality": "CT", "body_part": "head"})


@pytest.mark.parametrize("sample", [TUMOUR, HEAD_CT])
def test_answers_are_true(sample):
    rng = random.Random(0)
    known = answerable_labels(sample)
    for qa in questions(sample, 400, rng):
        if qa.label == "all":
            assert all(value in qa.answer for name, value in known.items())
        elif qa.closed:
            named = [v for v in {*LABELS.get(qa.label, ()), "2D", "3D", *sum(LABELS.values(), ())} if v in qa.question]
            if "normal" in qa.question:
                assert (qa.answer == "yes") == ("abnormal" in qa.question or "anything" in qa.question)
            elif named:
                longest = max(named, key=len)
                assert (qa.answer == "yes") == (longest == known[qa.label]), qa
        else:
            assert qa.answer == known[qa.label]


def test_yes_and_no_come_equally_often_and_no_is_never_a_synonym():
    rng = random.Random(1)
    closed = [a for a in questions(TUMOUR, 4000, rng) if a.closed and a.label == "finding"]
    share = sum(a.answer == "yes" for a in closed) / len(closed)
    assert 0.42 < share < 0.58
    for _ in range(200):
        wrong = closed_question(HEAD_CT, "body_part", False, rng)
        assert not any({"head"} <= clash and "brain" in wrong.question for clash in CLASHES)


def test_a_question_answers_the_same_beside_others_as_alone():
    model = small_model()
    scan = torch.rand(1, 32, 32, 1)
    prefix, asked = [1, *IMAGE], [[5, 6, 7], [8, 9], [10, 11, 12, 13]]

    def row(branches):
        ids, positions, question = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        for number, branch in enumerate(branches, start=1):
            ids, question = ids + branch, question + [number] * len(branch)
            positions = positions + list(range(len(prefix), len(prefix) + len(branch)))
        return Row(ids, ids, [1.0] * len(ids), positions, question)

    with torch.no_grad():
        batch = collate([row(asked)], pad=0)
        together = model(
            **{k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}, pixel_values=[scan]
        ).logits[0]
        start = len(prefix)
        for branch in asked:
            alone = model(input_ids=torch.tensor([prefix + branch]), pixel_values=[scan]).logits[0]
            torch.testing.assert_close(together[start : start + len(branch)], alone[len(prefix) :], atol=1e-5, rtol=1e-5)
            start += len(branch)


def test_rows_learn_answers_and_nothing_else():
    tokenizer = train_tokenizer()
    start, end, token = tokenizer.convert_tokens_to_ids(["<image>", "</image>", "<image_token>"])
    image = [start, token, token, end]
    for seed in range(30):
        row = build_example(TUMOUR, tokenizer, image, random.Random(seed))
        learned = tokenizer.decode([label for label in row.labels if label >= 0])
        assert all(word not in learned for word in ("?", "<image"))
        assert learned.count("</s>") >= 1 and row.ids.count(token) == 2
        assert all((weight > 0) == (label >= 0) for weight, label in zip(row.weights, row.labels, strict=True))


@pytest.mark.slow  # trains three times: seconds
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    def run(folder, stops=()):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def loss_of_step(step):
            if step in stops:
                raise KeyboardInterrupt
            return module(torch.randn(16, 4, generator=torch.Generator().manual_seed(step))).square().mean()

        return train("small", module, loss_of_step, steps=500, learning_rate=1e-2, folder=folder)

    wanted = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stops=(333,))
    torch.testing.assert_close(run(tmp_path / "stopped").state_dict(), wanted.state_dict())


def test_augmentation_moves_all_slices_of_a_volume_alike():
    pixels = torch.zeros(3, 1, 32, 32, 4, dtype=torch.uint8)
    pixels[:, :, 8:16, 10:14] = 200
    moved = augment(pixels, 1.0, torch.Generator().manual_seed(0))
    assert moved.shape == pixels.shape and moved.dtype == torch.float32 and moved.min() >= 0 and moved.max() <= 1
    torch.testing.assert_close(moved[..., 0], moved[..., 3])
    assert not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(moved, augment(pixels, 1.0, torch.Generator().manual_seed(0)))


def test_interval_is_wilsons():
    low, high = interval(77, 100)
    assert (round(low, 3), round(high, 3)) == (0.678, 0.842)


@pytest.fixture(scope="module")
def few(packs, tmp_path_factory):
    """The packs with a dozen rows each."""
    folder = tmp_path_factory.mktemp("packs")
    for file in packs.iterdir():
        if file.suffix != ".csv":
            (folder / file.name).symlink_to(file)
            continue
        with open(file, newline="") as source:
            rows = list(csv.DictReader(source))
        rows = [row for split in ("train", "val") for row in [r for r in rows if r.get("split") == split][:6]]
        with open(folder / file.name, "w", newline="") as target:
            if rows:
                writer = csv.DictWriter(target, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return folder


@pytest.mark.slow  # reads every pack: seconds
def test_validation_rows_keep_their_split_slices_too(few):
    from radfm.training.demo.checkpoint import image_processor

    samples = read_packs(few, image_processor())
    with open(few / "mr_volumes.csv", newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    volumes = [s for s in samples if s.pack == "mr_volumes"]
    assert [s.split for s in volumes] == splits
    for split in ("train", "val"):
        of_split = sum(s.pack == "slices" and s.split == split and s.labels["modality"] == "MRI" for s in samples)
        series = 20 if split == "train" else 0
        assert of_split == 20 * splits.count(split) + series
    assert {s.pixels.shape[1:3] for s in samples} == {(96, 96)}


@pytest.mark.slow  # trains every stage for a few steps: half a minute
def test_the_whole_training_makes_a_repository_that_answers(few, tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    from radfm.modeling_radfm import RadFMForConditionalGeneration
    from radfm.training.demo import __main__ as command

    monkeypatch.setattr(command, "ROOT", tmp_path)
    app = typer.Typer()
    app.command()(command.main)
    out = tmp_path / "radfm"
    run = CliRunner().invoke(app, ["--data", str(few), "--out", str(out), "--work", str(tmp_path / "w"), "--brief", "--vit"])
    assert run.exit_code == 0, run.output
    scores = json.loads((out / "scores.json").read_text())
    assert {s["pack"] for s in scores} >= {"mednist", "brain_tumor_t1ce", "pneumoniamnist_28"}
    assert (out / "modeling_radfm.py").exists() and (out / "model.safetensors").stat().st_size < 16e6
    model = RadFMForConditionalGeneration.from_pretrained(out)
    assert model.dtype == torch.float32 and model.config.auto_map["AutoModel"].endswith("RadFMForConditionalGeneration")


def test_a_folder_without_packs_is_refused_with_the_source_of_each(tmp_path):
    import typer
    from typer.testing import CliRunner

    from radfm.training.demo import __main__ as command

    app = typer.Typer()
    app.command()(command.main)
    run = CliRunner().invoke(app, ["--data", str(tmp_path)])
    assert run.exit_code == 2 and "lacks the packs mednist, pneumoniamnist_28" in run.output
    assert "CC BY-SA 4.0" in run.output and "figshare" in run.output


def test_every_pack_that_the_training_reads_has_a_source():
    assert {pack.name for pack in PACKS} == {*PICTURE_PACKS, *VOLUME_PACKS, *SERIES_PACKS, "pneumoniamnist_28"}
