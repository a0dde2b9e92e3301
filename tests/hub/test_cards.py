"""Cards: licence, limits, data, training, scores with intervals, citation; each from the facts in the folder."""

import json

import pytest
from helpers import ROOT
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import zeros

from radfm.hub.cards import find_licence, model_card, split_front_matter

TRAINING = {
    "base": "me/radfm",
    "revision": "0" * 40,
    "data": [
        {"source": "csv", "rows": 1200, "licence": "CC0", "access": "open"},
        {"source": "mimic-cxr", "rows": 5, "licence": "PhysioNet", "access": "credentialed"},
    ],
    "steps": 1500,
    "seconds": 61.5,
    "curve": [{"step": 10, "loss": 2.5, "learning_rate": 1e-4}],
    "recipe": {"model": "me/radfm", "lora": {"r": 8}},
}
SCORES = {
    "benchmark": "RadBench",
    "version": "1.0",
    "model": "me/radfm",
    "items_fingerprint": "abcdef0123456789",
    "scores": [
        {
            "bench_task": "modality", "form": "choice", "metric": "accuracy", "condition": "scan", "value": 0.912, "n": 1350,
            "groups": 400, "interval": [0.89, 0.93], "interval_kind": "Wilson", "signature": "x",
        },
    ],
    "breakdowns": [],
    "significance": [],
    "warnings": ["Items of mednist were in the training data."],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    save_file({"a": zeros(500_000)}, tmp_path / "model.safetensors")
    return tmp_path


def test_every_card_has_what_a_reader_looks_for(folder):
    card = model_card(folder, "me/liver")
    metadata = ModelCard(card).data.to_dict()
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-text-to-text"
    for section in ("How to use", "Intended use and limits", "Data", "Training", "Scores", "Licence", "Citation"):
        assert f"\n## {section}\n" in card
    assert "not for diagnosis" in card and "2.0 MB, mostly F32" in card and "arXiv:2308.02463" in card
    assert "Not evaluated" in card and "does not say what the weights were trained on" in card


def test_a_trained_model_says_on_what_and_how(folder):
    (folder / "training.json").write_text(json.dumps(TRAINING))
    card = model_card(folder, "me/liver")
    metadata = split_front_matter(card)[0]
    assert metadata["base_model"] == "me/radfm" and metadata["license"] == "other"
    assert "| csv | 1,200 | CC0 | open |" in card and "| 10 | 2.5000 | 1.00e-04 |" in card and "  r: 8\n" in card
    assert "The data of mimic-cxr are not open (PhysioNet, access: credentialed)." in card


def test_scores_have_their_intervals(folder):
    (folder / "scores.json").write_text(json.dumps(SCORES))
    card = model_card(folder, "me/liver")
    assert "| modality | choice | accuracy | scan | 0.912 (0.890 to 0.930) | 1,350 |" in card
    assert "Items of mednist were in the training data." in card and "Not evaluated" not in card


def test_an_adapter_of_a_folder_shows_no_path(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    card = model_card(folder, "me/lora")
    assert str(folder.parent) not in card and f'"OWNER/{folder.name}"' in card
    assert "base_model" not in split_front_matter(card)[0]


@pytest.mark.parametrize(
    ("conversion", "training", "licence"),
    [
        (None, None, "apache-2.0"),
        ({"source": "pytorch_model.bin", "dtype": "float32"}, None, "other"),
        ({"vision_tower": "a.bin", "decoder": "qwen", "dtype": "float32", "fresh": []}, None, "other"),
        (None, {**TRAINING, "base": "radfm", "data": TRAINING["data"][:1]}, "apache-2.0"),
        (None, {**TRAINING, "base": "radfm"}, "other"),
    ],
)
def test_weights_are_free_only_if_everything_they_came_from_is(conversion, training, licence):
    assert find_licence(conversion, training, None)[0] == licence
