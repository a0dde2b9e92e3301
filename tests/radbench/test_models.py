"""Models of other families: a LLaVA and a Gemma 3 through the same command, and what is refused before a run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_data import build_data
from helpers import ROOT
from tiny_models import save_tiny_gemma3, save_tiny_llava, tokenizer_with
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.medmd.schema import Message, Part
from radfm.radbench.conditions import SCAN, Request, ScanKey
from radfm.radbench.items import BenchError
from radfm.radbench.models.load import LoadOptions, load_model
from radfm.radbench.models.local import Row
from radfm.radbench.models.slices import slice_images
from radfm.radbench.predictions import read_predictions
from radfm.scan_radfm import Scan

SAVE = {"llava": save_tiny_llava, "gemma3": save_tiny_gemma3}
QUESTION = Message("user", (Part("image"), Part("text", "Is this CT?")))


@pytest.fixture(scope="module", params=SAVE)
def folder(request, tmp_path_factory) -> Path:
    return SAVE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), LoadOptions(device="cpu", max_new_tokens=6, slices=3))


@pytest.fixture(scope="module")
def scans() -> dict[ScanKey, Scan]:
    random = np.random.default_rng(0)
    shapes = {"a": (1, 40, 48, 1), "b": (1, 40, 40, 10), "c": (3, 30, 30, 1)}
    return {ScanKey(name, 0): Scan(random.normal(0, 90, shape).astype(np.float32)) for name, shape in shapes.items()}


def make_requests(scans) -> list[Request]:
    """A request about each scan, with and without options, and one without a scan."""
    requests = []
    for number, options in enumerate([(), ("yes", "no"), ("a long answer", "no")]):
        requests += [Request(f"{key.record}{number}", SCAN, (QUESTION,), (key,), options, (), number < 2) for key in scans]
        text = replace(QUESTION, content=(Part("text", "Is it?"),))
        requests.append(Request(f"none{number}", "no image", (text,), (), options, (), number < 2))
    return requests


def ask(model, requests, scans):
    needed = {key: scans[key] for request in requests for key in request.scans}
    return model.answer(model.prepare(requests, needed))


@pytest.mark.slow  # builds a data set, and asks two models
def test_the_command_asks_models_of_other_families(folder, tmp_path):
    data = build_data(tmp_path, patients=2, volumes=1)
    arguments = ["bench", "run", "--model", folder, "--data", data, "--out", tmp_path / "out", "--max-new-tokens", 4]
    result = CliRunner().invoke(app, list(map(str, [*arguments, "--slices", 2, "--device", "cpu"])))
    assert result.exit_code == 0, result.output
    predictions = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert {"scan", "no image", "black image", "most frequent answer"} <= {p.condition for p in predictions}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["slices"] == 2 and "middles of equal parts" in run["model"]["choice_of_slices"]
    assert (tmp_path / "out" / "report.html").exists()


def test_a_batch_gives_what_its_requests_give_alone(model, scans):
    requests = make_requests(scans)
    for request, answer in zip(requests, ask(model, requests, scans), strict=True):
        (alone,) = ask(model, [request], scans)
        assert (alone.text, alone.prompt) == (answer.text, answer.prompt)
        assert (alone.likelihoods is None) == (not request.options)
        for option, likelihood in (answer.likelihoods or {}).items():
            assert likelihood.tokens == alone.likelihoods[option].tokens
            assert likelihood.sum == pytest.approx(alone.likelihoods[option].sum, abs=2e-3)


def test_an_answer_depends_on_the_scan(model, scans):
    request = make_requests(scans)[4]
    black = {key: replace(scan, voxels=np.zeros_like(scan.voxels)) for key, scan in scans.items()}
    (seen,), (unseen,) = ask(model, [request], scans), ask(model, [request], black)
    assert seen.likelihoods != unseen.likelihoods


def test_likelihoods_are_those_of_one_text_alone(model, scans):
    request = Request("b", SCAN, (QUESTION,), (ScanKey("b", 0),), ("yes", "no"), (), False)
    (answer,) = ask(model, [request], scans)
    images = slice_images(scans[ScanKey("b", 0)], 3)
    for option, likelihood in answer.likelihoods.items():
        text = f"{answer.prompt}{option}</s>"
        inputs = model.processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            logits = model.model(**inputs).logits[0]
        ids, tokens = inputs["input_ids"][0], len(option) + 1  # a byte a token, and the end token
        log_probabilities = logits.log_softmax(-1)[-tokens - 1 : -1].gather(1, ids[-tokens:, None])
        assert likelihood.tokens == tokens
        assert likelihood.sum == pytest.approx(float(log_probabilities.sum()), abs=2e-3)


def test_a_volume_is_as_many_images_as_wished_and_the_prompt_starts_once(model, scans):
    prepared = model.prepare(make_requests(scans)[1:2], {ScanKey("b", 0): scans[ScanKey("b", 0)]})
    assert len(prepared.pixels[ScanKey("b", 0)]) == 3
    inputs = model._inputs([Row(prepared.prompts[0], prepared.requests[0].scans)], prepared.pixels, "left")
    assert (inputs["input_ids"] == model.processor.tokenizer.bos_token_id).sum() == 1
    assert len(inputs["pixel_values"]) == 3


def test_slices_are_the_middles_of_equal_parts_as_8_bit_rgb():
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32), (1, 8, 8, 12))
    images = slice_images(Scan(ramp, windows=((0.0, 11.0),)), 3)
    assert [image.mode for image in images] == ["RGB"] * 3
    assert [image.getpixel((0, 0))[0] for image in images] == [round(slice_ / 11 * 255) for slice_ in (2, 6, 10)]
    assert len(slice_images(Scan(ramp[..., :2]), 3)) == 2 and len(slice_images(Scan(ramp[..., :1]), 3)) == 1


def test_16_bit_grey_values_are_windowed_and_not_clipped():
    grey = np.linspace(0, 4000, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    values = np.asarray(slice_images(Scan(grey), 1)[0])[..., 0]
    assert len(np.unique(values)) > 60


def test_colour_stays_colour():
    colour = np.zeros((3, 8, 8, 1), np.float32)
    colour[0] = 255
    (image,) = slice_images(Scan(colour, windows=((0.0, 255.0),)), 1)
    assert image.getpixel((3, 3)) == (255, 0, 0)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_processor_that_needs_torchvision_is_refused_in_a_sentence(tmp_path):
    tokenizer_with(image_token="<|image_pad|>").save_pretrained(tmp_path)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(BenchError, match=r"its processor needs torchvision, which is not installed; .* --endpoint\."):
        load_model(str(tmp_path), LoadOptions(device="cpu"))


def test_a_processor_without_a_chat_template_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(BenchError, match="has no chat template"):
        load_model(str(tmp_path / "model"), LoadOptions(device="cpu"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (LoadOptions(dtype="int3"), "--dtype int3 is none of auto, float32"),
        (LoadOptions(device="tpu9"), "--device tpu9"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(options, sentence):
    with pytest.raises(BenchError, match=sentence):
        load_model(str(ROOT), options)


def test_a_text_model_is_no_image_model(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    tokenizer_with().save_pretrained(tmp_path)
    with pytest.raises(BenchError, match="cannot be loaded"):
        load_model(str(tmp_path), LoadOptions(device="cpu"))
