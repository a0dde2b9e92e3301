"""Texts and scans become model inputs: one mark a scan, and what is saved comes back the same."""

import numpy as np
import pytest
import torch
from helpers import MARKS, small_model
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast, pipeline

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.training.demo.qa_templates import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def processor(tokenizer):
    return RadFMProcessor(RadFMImageProcessor(image_size=32, max_slices=32, keep_aspect=True), tokenizer, num_image_tokens=4)


@pytest.fixture
def model_for(processor):
    names = {"image_start_token_id": "<image>", "image_end_token_id": "</image>", "image_token_id": "<image_token>"}
    ids = {name: processor.tokenizer.convert_tokens_to_ids(mark) for name, mark in names.items()}
    assert set(ids) == set(MARKS)
    text = {"model_type": "llama", "vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 96}
    return small_model(text_config={**text, "num_hidden_layers": 1, "num_attention_heads": 4}, **ids)


def array(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_mark_becomes_a_scans_tokens(processor):
    inputs = processor(text="Here <image> is it.", images=array(20, 20), return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    at = tokens.index("<image>")
    assert tokens[0] == "<s>" and tokens[at : at + 6] == ["<image>", *["<image_token>"] * 4, "</image>"]
    assert [tuple(p.shape) for p in inputs["pixel_values"]] == [(1, 32, 32, 1)]


def test_texts_with_different_numbers_of_scans(processor):
    texts = ["<image> and <image>", "no scan", "<image>"]
    scans = [array(20, 20), array(20, 20, 12), array(30, 20)]
    flat = processor(text=texts, images=scans, padding=True, return_tensors="pt")
    nested = processor(text=texts, images=[scans[:2], [], scans[2:]], padding=True, return_tensors="pt")
    assert torch.equal(flat["input_ids"], nested["input_ids"]) and flat["input_ids"].shape[0] == 3
    assert [p.shape[-1] for p in flat["pixel_values"]] == [1, 12, 1]
    assert flat["attention_mask"][1, 0] == 0, "padded on the left, as generation needs it"


@pytest.mark.parametrize(
    ("text", "count", "sentence"),
    [
        ("<image>", 0, "1 <image> marks and 0 scans"),
        ("no mark", 1, "0 <image> marks and 1 scans"),
        (["<image>", "<image>"], 3, "2 <image> marks in 2 texts and 3 scans"),
    ],
)
def test_marks_and_scans_must_agree(processor, text, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        processor(text=text, images=[array(8, 8)] * count)


def test_every_kind_of_scan_is_taken(processor, tmp_path, dicom_files, nifti_files):
    import nibabel
    import pydicom

    from radfm.load_scan_radfm import load_scan

    sources = [
        dicom_files / "CT_small.dcm",
        str(dicom_files / "CT_small.dcm"),
        pydicom.dcmread(dicom_files / "CT_small.dcm"),
        load_scan(dicom_files / "CT_small.dcm"),
        nifti_files / "example4d.nii.gz",
        nibabel.load(nifti_files / "example4d.nii.gz"),
        array(20, 20),
        torch.zeros(20, 20, 8),
        Image.new("L", (20, 20), 7),
    ]
    pixels = processor(text="<image>" * len(sources), images=sources)["pixel_values"]
    for i in (1, 2, 3):
        torch.testing.assert_close(pixels[i], pixels[0])
    torch.testing.assert_close(pixels[5], pixels[4])


def test_truncation_never_cuts_an_image_in_two(processor, caplog):
    text, scans = "one <image> two <image> three", [array(8, 8), array(8, 8, 4)]
    full = processor(text=text, images=scans)["input_ids"]
    start, end = (processor.tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "</image>"))
    for side in ("right", "left"):
        processor.tokenizer.truncation_side = side
        for length in range(1, len(full) + 1):
            inputs = processor(text=text, images=scans, truncation=True, max_length=length)
            ids = inputs["input_ids"]
            whole = sum(ids[i : i + 6] == [start, *[processor.image_token_id] * 4, end] for i in range(len(ids)))
            assert len(ids) <= length and ids.count(processor.image_token_id) == 4 * whole
            assert len(inputs.get("pixel_values", [])) == whole
            if whole == 1:
                assert inputs["pixel_values"][0].shape[-1] == (1 if side == "right" else 4)
    assert "leaves no room for 1 of 2 scans" in caplog.text
    processor.tokenizer.truncation_side = "right"


def test_a_conversation_is_question_space_answer(processor):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": array(8, 8)}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "CT"}]},
        {"role": "user", "content": "Is it normal?"},
    ]
    assert processor.apply_chat_template(messages) == "<s><image>What is this? CT</s>Is it normal?"
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist().count(1) == 1, "one start of text"
    assert len(inputs["pixel_values"]) == 1


def test_scans_that_were_encoded_before_need_a_text_alone(processor, model_for):
    with torch.no_grad():
        features = model_for.get_image_features(processor.image_processor(array(20, 20))["pixel_values"]).pooler_output
        text = processor(text=processor.full_image_sequence + "What?", return_tensors="pt")
        with_scan = processor(text="<image>What?", images=array(20, 20), return_tensors="pt")
        torch.testing.assert_close(model_for(**text, image_features=features).logits, model_for(**with_scan).logits)


def test_a_tokenizer_without_marks_is_refused(tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer().backend_tokenizer, pad_token="<unk>")
    assert RadFMProcessor(RadFMImageProcessor(), plain)
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="lacks <image>, </image>, <image_token>: tokenizer"):
        RadFMProcessor(RadFMImageProcessor(), bare)


def test_saved_and_loaded_it_does_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = RadFMProcessor.from_pretrained(tmp_path)
    one, other = (p(text="<image>Is this a CT scan?", images=array(20, 24, 8)) for p in (processor, again))
    assert one["input_ids"] == other["input_ids"] and again.chat_template == processor.chat_template
    torch.testing.assert_close(one["pixel_values"], other["pixel_values"])


@pytest.fixture
def repository(processor, model_for, tmp_path, monkeypatch):
    """A folder as it lies on the Hub: weights, settings and the remote code itself."""
    monkeypatch.setattr(RadFMProcessor, "_auto_class", "AutoProcessor")
    monkeypatch.setattr(RadFMImageProcessor, "_auto_class", "AutoImageProcessor")
    monkeypatch.setattr(RadFMForConditionalGeneration, "_auto_class", "AutoModelForImageTextToText")
    monkeypatch.setattr(type(model_for.config), "_auto_class", "AutoConfig")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model_for.save_pretrained(tmp_path / "radfm")
    processor.save_pretrained(tmp_path / "radfm")
    return tmp_path / "radfm"


def test_remote_code_loads_through_the_auto_classes(repository, processor):
    again = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    assert "transformers_modules" in type(again).__module__
    one, other = (p(text="<image>What?", images=array(20, 24)) for p in (processor, again))
    torch.testing.assert_close(one["pixel_values"], other["pixel_values"])
    images = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
    torch.testing.assert_close(images(array(20, 24))["pixel_values"], one["pixel_values"])


def test_transformers_pipeline_asks_about_an_array_in_a_conversation(repository, model_for):
    ask = pipeline("image-text-to-text", model=str(repository), trust_remote_code=True, device="cpu")
    messages = [{"role": "user", "content": [{"type": "image", "image": array(20, 20)}, {"type": "text", "text": "What?"}]}]
    said = ask(text=messages, max_new_tokens=3, return_full_text=False)
    assert isinstance(said[0]["generated_text"], str)
