"""Training of the demo checkpoint: independent questions, exact resume, weights of an earlier checkpoint, the whole way."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import IMAGE, demo_texts, small_model
from torch import nn
from transformers import AutoModelForImageTextToText

from radfm.medmd.build import build
from radfm.medmd.schema import Message, Part, Record
from radfm.processing_radfm import RadFMProcessor
from radfm.training.demo.checkpoint import image_processor, new_model
from radfm.training.demo.evaluate import interval
from radfm.training.demo.language import Row, TextEncoder, build_row, collate_rows
from radfm.training.demo.scans import DemoScan, label_values, read_scans
from radfm.training.demo.stage import Steps, fall, train_stage
from radfm.training.demo.tokenizer import train_tokenizer
from radfm.training.demo.tower import LabelHeads, augment, label_loss
from radfm.training.demo.train import start_from, train_demo
from radfm.training.recipe import Augmentation, Loss, RecipeError, Stage, load_recipe


def record(question: str, answer: str) -> Record:
    messages = (Message("user", (Part("image"), Part("text", question))), Message("assistant", (Part("text", answer),)))
    return Record(
        id="demo/x/vqa/0", images=(), messages=messages, task="vqa", answer_type="open", source="demo", licence="CC BY 4.0",
        access="open", split="train", split_origin="ours", group="ab", image_sha256=("0",), image_hash=("0",),
        shapes=((8, 8),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> RadFMProcessor:
    return RadFMProcessor(image_processor(), train_tokenizer(demo_texts()))


def test_a_question_answers_the_same_beside_others_as_alone():
    model = small_model()
    scan = torch.rand(1, 32, 32, 1)
    prefix, asked = [1, *IMAGE], [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    count = len(prefix)
    row = Row(list(prefix), list(prefix), [1.0] * count, list(range(count)), [0] * count)
    for number, branch in enumerate(asked, start=1):
        row.ids, row.labels, row.weights = row.ids + branch, row.labels + branch, row.weights + [1.0] * len(branch)
        row.positions += range(count, count + len(branch))
        row.question += [number] * len(branch)
    with torch.no_grad():
        batch = collate_rows([row], pad=0)
        together = model(
            **{k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}, pixel_values=[scan]
        ).logits[0]
        start = count
        for branch in asked:
            alone = model(input_ids=torch.tensor([prefix + branch]), pixel_values=[scan]).logits[0]
            torch.testing.assert_close(together[start : start + len(branch)], alone[count:], atol=1e-5, rtol=1e-5)
            start += len(branch)


def test_rows_learn_answers_and_nothing_else(processor):
    records = [record("Which imaging modality is this?", "CT"), record("Which body part is shown?", "brain")]
    row = build_row(records, TextEncoder(processor, Loss()), text_tokens=200)
    learned = processor.tokenizer.decode([label for label in row.labels if label >= 0])
    assert learned == " CT</s> brain</s>"
    assert all((weight > 0) == (label >= 0) for weight, label in zip(row.weights, row.labels, strict=True))
    assert row.ids.count(processor.image_token_id) == processor.num_image_tokens


def test_a_row_has_the_questions_that_fit(processor):
    encode = TextEncoder(processor, Loss())
    records = [record("Which imaging modality is this?", "CT")] * 5
    length = len(encode(records[0])[0])
    row = build_row(records, encode, text_tokens=2 * length)
    assert max(row.question) == 2 and len(row.ids) == len(encode.prefix) + 2 * length
    assert max(build_row(records, encode, text_tokens=1).question) == 1


def test_an_interrupted_stage_ends_with_the_same_weights(tmp_path):
    """A batch is a function of (seed, step); Trainer resumes optimiser, schedule and dropout."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def forward(self, x):
            return {"loss": self.layers(x).square().mean()}

    stage = Stage(scans={}, training={"max_steps": 12, "save_steps": 4, "learning_rate": 1e-2, "disable_tqdm": True})

    def run(out, stops_at=None):
        torch.manual_seed(0)
        module = Small()

        def make_batch(step, rng):
            if step == stops_at:
                raise KeyboardInterrupt
            return {"x": torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32))}

        train_stage(module, stage, out, make_batch)
        return module.state_dict()

    wanted = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stops_at=7)
    torch.testing.assert_close(run(tmp_path / "stopped"), wanted, rtol=0, atol=0)


def test_steps_are_functions_of_seed_and_number():
    def draw(step, rng):
        return {"step": step, "x": rng.random()}

    assert Steps(5, 3, draw)[4] == Steps(9, 3, draw)[4] != Steps(5, 4, draw)[4]
    assert [fall(step, 10, start=0.5, low=0.2) for step in (0, 5)] == [1, 1] and 0.2 <= fall(9, 10, 0.5, 0.2) < 0.3


def test_augmentation_never_mirrors_and_moves_all_slices_alike():
    """A bright left half stays left, whatever is drawn."""
    pixels = torch.zeros(1, 32, 32, 16, dtype=torch.uint8)
    pixels[:, 8:24, 4:12] = 200
    scan = DemoScan("mr-volumes", "volumes", pixels, {})
    strong = Augmentation(rotation_degrees=15, scale=0.28, shift=0.075, gamma=0.5)
    for seed in range(40):
        moved = augment(scan, strong, np.random.default_rng(seed))
        assert moved[..., :14, :].mean() > moved[..., 18:, :].mean()
        torch.testing.assert_close(moved[..., 0], moved[..., -1])


def test_label_heads_leave_unknown_labels_out():
    scans = [DemoScan("busi", "busi", torch.zeros(1, 8, 8, 1), {"modality": "ultrasound", "busi": "normal"}),
             DemoScan("mednist", "mednist", torch.zeros(1, 8, 8, 1), {"modality": "CT"})]  # fmt: skip
    heads = LabelHeads(
        4, label_values([*scans, DemoScan("busi", "busi", scans[0].pixels, {"busi": "benign breast lesion"})])
    )
    targets = heads.targets(scans)
    assert targets["busi"].tolist() == [1, -100] and targets["modality"].tolist() == [1, 0]
    logits = heads(torch.randn(2, 4))
    changed = {**logits, "busi": logits["busi"] + torch.tensor([[0.0, 0.0], [9.0, -9.0]])}
    torch.testing.assert_close(label_loss(logits, targets), label_loss(changed, targets))


def test_an_earlier_checkpoint_is_continued_under_another_tokenizer(tmp_path, processor):
    earlier_tokenizer = train_tokenizer(["Is this MRI?", " MRI", " CT"])
    earlier = new_model(earlier_tokenizer)
    earlier.save_pretrained(tmp_path)
    RadFMProcessor(image_processor(), earlier_tokenizer).save_pretrained(tmp_path)
    model = new_model(processor.tokenizer)
    nn.init.zeros_(model.model.projector.weight)
    start_from(model, processor.tokenizer, str(tmp_path))
    torch.testing.assert_close(model.model.projector.weight, earlier.model.projector.weight)
    new, old = (tokenizer.get_vocab() for tokenizer in (processor.tokenizer, earlier_tokenizer))
    torch.testing.assert_close(model.lm_head.weight[new["ĠMRI"]], earlier.lm_head.weight[old["ĠMRI"]])
    assert "Ġbreast" in new and "Ġbreast" not in old
    spelled = earlier_tokenizer.encode(" breast", add_special_tokens=False)
    embeddings, before = (m.get_input_embeddings().weight for m in (model, earlier))
    torch.testing.assert_close(embeddings[new["Ġbreast"]], before[spelled].mean(0))


def test_interval_is_wilsons():
    low, high = interval(77, 100)
    assert (round(low, 3), round(high, 3)) == (0.678, 0.842)


@pytest.fixture(scope="module")
def few(packs, tmp_path_factory):
    """The packs with some rows of each finding, modality and body part."""
    folder = tmp_path_factory.mktemp("packs")
    for file in packs.iterdir():
        if file.suffix != ".csv":
            (folder / file.name).symlink_to(file)
            continue
        with open(file, newline="") as source:
            rows = list(csv.DictReader(source))
        kinds: dict[tuple, list[dict]] = {}
        for row in rows:
            kinds.setdefault(tuple(row.get(name) for name in ("split", "finding", "modality", "body_part")), []).append(row)
        with open(folder / file.name, "w", newline="") as target:
            if rows:
                writer = csv.DictWriter(target, rows[0])
                writer.writeheader()
                writer.writerows(row for of_kind in kinds.values() for row in of_kind[:2])
    return folder


@pytest.mark.slow  # builds a data set and trains every stage for a few steps: a minute
def test_the_whole_training_makes_a_repository_that_answers(few, tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    from radfm.training.demo import __main__ as command
    from radfm.training.demo import evaluate

    monkeypatch.setattr(evaluate, "LONGEST_ANSWER", 3)  # an untrained model never ends
    app = typer.Typer()
    app.command()(command.main)
    out, work = tmp_path / "radfm", tmp_path / "work"
    steps = [f"stages.{stage}.training.max_steps=2" for stage in ("tower", "language")]
    run = CliRunner().invoke(app, ["--packs", str(few), "--out", str(out), "--work", str(work), *steps])
    assert run.exit_code == 0, run.output
    scores = json.loads((out / "scores.json").read_text())
    assert {s["pack"] for s in scores} >= {"mednist", "brain-tumor", "pneumonia-mnist", "mr-volumes"}
    assert {s["label"] for s in scores} >= {"modality", "finding", "report", "rationale", "finding named (slices)"}
    assert all(0 <= s["model"] <= s["count"] for s in scores)
    assert (out / "modeling_radfm.py").exists() and (out / "model.safetensors").stat().st_size < 16e6
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    assert model.config.vision_config.image_size == 96

    scans = read_scans(str(work / "data"), "validation", image_processor(), tmp_path / "cache")
    assert {scan.kind for scan in scans} >= {"volumes", "slices", "mednist"}
    assert {scan.finding for scan in scans if scan.pack == "mr-volumes"} == {None}
    missing = load_recipe(
        "demo", [f"data={work / 'data'}", f"training.output_dir={tmp_path / 'x'}", "stages.tower.scans.pet=1"]
    )
    with pytest.raises(RecipeError, match=r"recipe\.yaml differs"):
        train_demo(load_recipe("demo", [f"data={work / 'data'}", f"training.output_dir={work / 'model'}"]))
    with pytest.raises(RecipeError, match=r"stages\.tower\.scans\.pet: the data set has no such scans"):
        train_demo(missing)


@pytest.mark.slow  # reads a pack
def test_a_folder_without_packs_is_refused_with_the_source_of_the_first(packs, tmp_path):
    from radfm.medmd.schema import DataError

    (tmp_path / "packs").mkdir()
    with pytest.raises(DataError, match="CC BY"):
        build({"demo": tmp_path / "packs"}, tmp_path / "out")
