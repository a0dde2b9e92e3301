"""A run: the same bytes each time, whatever interrupts it, however many processes share it; answers at every batch size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_data import NOTE, build_data
from helpers import ROOT

from radfm.cli.bench import register_radfm
from radfm.radbench import runner
from radfm.radbench.conditions import MODEL_CONDITIONS, make_requests
from radfm.radbench.draw import draw
from radfm.radbench.items import BenchError, read_items, write_items
from radfm.radbench.models.load import LoadOptions, load_model
from radfm.radbench.predictions import SCAN, read_predictions
from radfm.radbench.processes import Processes
from radfm.radbench.records import ScanReader, read_light
from radfm.radbench.run import RunOptions, run

MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return build_data(tmp_path_factory.mktemp("bench"), patients=4, volumes=1)


@pytest.fixture(scope="module")
def model():
    register_radfm()
    return load_model(str(ROOT), LoadOptions(device="cpu", max_new_tokens=MAX_NEW_TOKENS))


@pytest.fixture(scope="module")
def finished(data, model, tmp_path_factory) -> Path:
    """The results of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished") / "out"
    ask(model, data, out)
    return out


def ask(model, data: Path, out: Path, **options) -> None:
    run(RunOptions(data, out, **options), lambda: model, Processes(), lambda done, total: None)


def predictions_of(out: Path) -> bytes:
    return (out / "predictions.jsonl").read_bytes()


# The same each time ---------------------------------------------------------------------------------------------------


def test_two_runs_write_the_same_bytes(finished, data, model, tmp_path):
    ask(model, data, tmp_path / "out")
    for name in ("items.jsonl", "predictions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()


def test_every_item_is_answered_and_every_baseline_is_there(finished):
    predictions = read_predictions(finished / "predictions.jsonl")
    asked = {prediction.item for prediction in predictions if prediction.condition == SCAN}
    assert asked == {item.id for item in read_items(finished / "items.jsonl")}
    conditions = {prediction.condition for prediction in predictions}
    assert conditions == {*MODEL_CONDITIONS, "most frequent answer", "constant sentence", "nearest training answer"}
    assert sorted(path.name for path in finished.iterdir()) == ["items.jsonl", "predictions.jsonl", "run.json"]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_are_the_same_at_every_batch_size(batch_size, finished, data, model, tmp_path):
    ask(model, data, tmp_path / "out", batch_size=batch_size)
    expected = read_predictions(finished / "predictions.jsonl")
    found = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert [replace(one, likelihoods=None) for one in found] == [replace(one, likelihoods=None) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for option, likelihood in (one.likelihoods or {}).items():
            assert likelihood.sum == pytest.approx(other.likelihoods[option].sum, abs=1e-3)
            assert likelihood.tokens == other.likelihoods[option].tokens


def test_frozen_items_are_asked_as_drawn_ones_are(finished, data, model, tmp_path):
    write_items(draw(read_light(data, "test")).items, tmp_path / "items.jsonl")
    ask(model, data, tmp_path / "out", items=tmp_path / "items.jsonl")
    assert predictions_of(tmp_path / "out") == predictions_of(finished)


def test_likelihoods_are_those_of_one_text_alone(finished, data, model):
    """Against the model's own loss on a prompt and an option, without batches and padding."""
    predictions = {(p.item, p.condition): p for p in read_predictions(finished / "predictions.jsonl")}
    records = {record.id: record for record in read_light(data, "test")}
    reader = ScanReader(data)
    items = [item for item in read_items(finished / "items.jsonl") if item.options][:12]
    for item in items:
        count = len(records[item.record].shapes)
        pixels = [model.processor.image_processor.preprocess(reader.read(item.record, i)) for i in range(count)]
        for option, likelihood in predictions[item.id, SCAN].likelihoods.items():
            text = predictions[item.id, SCAN].prompt
            prompt = model.processor(text=text, images_encoded=True, return_tensors="pt")["input_ids"]
            inputs = model.processor(text=f"{text} {option}</s>", images_encoded=True, return_tensors="pt")
            labels = inputs["input_ids"].clone()
            labels[:, : prompt.shape[1]] = -100
            loss = model.model(**inputs, pixel_values=pixels, labels=labels).loss
            assert likelihood.tokens == (labels != -100).sum()
            assert likelihood.sum == pytest.approx(-loss.item() * likelihood.tokens, abs=1e-3)


def test_the_likeliest_option_is_the_answer_of_the_form_likelihood(finished):
    for prediction in read_predictions(finished / "predictions.jsonl"):
        if prediction.item.endswith("#likelihood") and prediction.likelihoods:
            means = {option: likelihood.sum / likelihood.tokens for option, likelihood in prediction.likelihoods.items()}
            assert means[prediction.answer] == max(means.values())


def test_a_note_of_the_table_stays_with_the_items(finished):
    notes = {(item.bench_task, item.note) for item in read_items(finished / "items.jsonl")}
    assert {task for task, note in notes if note == NOTE} == {"rationale"} == {task for task, note in notes if note}


def test_a_validation_split_is_asked_by_name_and_the_run_says_so(model, tmp_path):
    data = build_data(tmp_path, patients=2, volumes=0, held_out="validation")
    with pytest.raises(BenchError, match=r"has no test split, .* name the validation split with --split validation"):
        ask(model, data, tmp_path / "out")
    ask(model, data, tmp_path / "out", split="validation")
    items = read_items(tmp_path / "out" / "items.jsonl")
    assert {item.record for item in items} == {record.id for record in read_light(data, "validation")}
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["settings"]["split"] == "validation" and settings["leak_check"]["leaks"] == {}
    assert any("of a validation split" in line for line in settings["warnings"])


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(data):
    records = {record.id: record for record in read_light(data, "test")}
    return make_requests(draw(records.values()).items, records, MODEL_CONDITIONS), records, ScanReader(data).position


def test_batches_hold_every_request_once_and_each_scan_in_neighbouring_batches(requests, model):
    made, records, position = requests
    batches = runner.plan_batches(made, model, records, position, 16)
    assert all(len(batch) <= 16 for batch in batches)
    assert sorted((r.item, r.condition) for batch in batches for r in batch) == sorted((r.item, r.condition) for r in made)
    for key in {key for request in made for key in request.scans}:
        holding = [number for number, batch in enumerate(batches) if any(key in request.scans for request in batch)]
        about_it = sum(key in request.scans for request in made)
        assert len(holding) <= about_it // 16 + 2 and holding == list(range(holding[0], holding[-1] + 1))


def test_a_scan_is_encoded_once_for_all_questions_of_a_batch(requests, model, data, monkeypatch):
    made, records, position = requests
    batch = max(
        runner.plan_batches(made, model, records, position, 16), key=lambda batch: len([r for r in batch if r.scans])
    )
    encoded = []
    features = model.model.get_image_features
    monkeypatch.setattr(model.model, "get_image_features", lambda scans: encoded.extend(scans) or features(scans))
    reader = ScanReader(data)
    keys = {key for request in batch for key in request.scans}
    model.answer(model.prepare(batch, {key: reader.read(key.record, key.index) for key in keys}))
    assert len(encoded) == len(keys) < sum(len(request.scans) for request in batch)


@pytest.mark.parametrize(("limit", "value"), [("MAX_PATCHES", 100), ("MAX_TOKENS", 200)])
def test_a_batch_stays_within_its_patches_and_tokens(limit, value, requests, model, monkeypatch):
    made, records, position = requests
    monkeypatch.setattr(runner, limit, value)
    batches = runner.plan_batches(made, model, records, position, 16)
    for batch in batches:
        keys = {key for request in batch for key in request.scans}
        cost = {
            "MAX_PATCHES": sum(model.scan_cost(records[key.record].shapes[key.index]) for key in keys),
            "MAX_TOKENS": len(batch) * max(model.prompt_cost(request) for request in batch),
        }[limit]
        assert cost <= value or len(batch) == 1
    assert max(map(len, batches)) > 1


# Interruptions --------------------------------------------------------------------------------------------------------


class StopRunError(Exception):
    """Stands for whatever ends a run."""


class Interrupting:
    """A model that stops before batch number `last`, and counts the batches."""

    def __init__(self, model, last: int | None = None):
        self.model, self.last, self.count = model, last, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def answer(self, prepared):
        if self.count == self.last:
            raise StopRunError
        self.count += 1
        return self.model.answer(prepared)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(finished, data, model, tmp_path):
    out = tmp_path / "out"
    whole = Interrupting(model)
    ask(whole, data, tmp_path / "whole")
    with pytest.raises(StopRunError):
        ask(Interrupting(model, last=3), data, out)
    assert not (out / "predictions.jsonl").exists()
    rest = Interrupting(model)
    ask(rest, data, out)
    assert rest.count == whole.count - 3
    assert predictions_of(out) == predictions_of(finished)


def test_a_line_of_the_journal_that_was_cut_off_is_asked_again(finished, data, model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StopRunError):
        ask(Interrupting(model, last=3), data, out)
    (journal,) = (out / ".journal").iterdir()
    journal.write_bytes(journal.read_bytes()[:-100])
    rest = Interrupting(model)
    ask(rest, data, out)
    assert predictions_of(out) == predictions_of(finished)


def test_an_interrupted_run_may_go_on_with_another_batch_size(finished, data, model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StopRunError):
        ask(Interrupting(model, last=3), data, out)
    ask(model, data, out, batch_size=5)
    found, expected = (read_predictions(folder / "predictions.jsonl") for folder in (out, finished))
    assert [(p.item, p.condition, p.answer) for p in found] == [(p.item, p.condition, p.answer) for p in expected]


def command(data: Path, out: Path, *options: str) -> list[str]:
    arguments = ["bench", "run", "--data", str(data), "--out", str(out), "--max-new-tokens", str(MAX_NEW_TOKENS)]
    return ["-m", "radfm.cli", *arguments, "--device", "cpu", *options]


@pytest.mark.slow  # starts the command twice
def test_a_run_that_was_killed_goes_on(finished, data, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, *command(data, out)], stderr=subprocess.PIPE)
    journal = out / ".journal" / "00000.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n\n") < 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "predictions.jsonl").exists()
    subprocess.run([sys.executable, *command(data, out)], check=True)
    assert predictions_of(out) == predictions_of(finished)


@pytest.mark.slow  # two processes that load the model
def test_two_processes_of_accelerate_write_the_file_of_one(finished, data, tmp_path):
    out = tmp_path / "out"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no", *command(data, out)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert predictions_of(out) == predictions_of(finished)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_folder_with_another_run_is_refused(finished, data, model):
    with pytest.raises(BenchError, match="holds a run with another items_fingerprint and settings"):
        ask(model, data, finished, seed=1)


def test_a_folder_with_other_files_is_refused(data, model, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(BenchError, match="is not empty and holds no run"):
        ask(model, data, tmp_path)


def test_items_of_another_data_set_are_refused(finished, model, tmp_path):
    other = build_data(tmp_path, patients=2, volumes=0)
    with pytest.raises(BenchError, match="is not in the test split"):
        ask(model, other, tmp_path / "out", items=finished / "items.jsonl")


def test_nothing_is_loaded_for_data_without_a_test_split(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for file in (tmp_path / "data").glob("*/test-*.parquet"):
        file.unlink()
    with pytest.raises(BenchError, match="has no test split"):
        run(RunOptions(tmp_path / "data", tmp_path / "out"), pytest.fail, Processes(), lambda done, total: None)


def test_items_that_the_model_was_trained_on_are_a_warning(data, model, tmp_path):
    leaking = tmp_path / "training"
    shutil.copytree(data, leaking)
    for config in ("2d", "3d"):
        for number, file in enumerate((data / config).glob("test-*.parquet")):
            shutil.copy(file, leaking / config / f"train-9999{number}.parquet")
    ask(model, data, tmp_path / "out", train_data=leaking)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    items = read_items(tmp_path / "out" / "items.jsonl")
    assert record["leak_check"]["leaks"]["same scan"]["items"] == len(items)
    assert any(f"{len(items)} items have the same patient as the training data" in line for line in record["warnings"])
