"""Texts and scans become model inputs: one mark a scan, typed text stays text, and what is saved comes back the same."""

import doctest
import json
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from helpers import MARKS, demo_texts, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast, pipeline

import radfm.processing_radfm
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import CHAT_TEMPLATE_FILE, TYPED, RadFMProcessor
from radfm.training.demo.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def trained_tokenizer():
    return train_tokenizer(demo_texts())


@pytest.fixture
def tokenizer(trained_tokenizer):
    return deepcopy(trained_tokenizer)


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


def ids_of(processor, text, **options):
    """The ids of one text."""
    (ids,) = processor(text=text, **options)["input_ids"]
    return ids


def chat(*texts, images=0):
    """A conversation: a user's text, the answer, the next text, …"""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": [{"type": "text", "text": text}]} for i, text in enumerate(texts)]
    messages[0]["content"] = [{"type": "image", "image": array(8, 8)}] * images + messages[0]["content"]
    return messages


def as_inputs(processor, messages, **options):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


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
    full = ids_of(processor, text, images=scans)
    start, end = (processor.tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "</image>"))
    for side in ("right", "left"):
        processor.tokenizer.truncation_side = side
        for length in range(1, len(full) + 1):
            inputs = processor(text=text, images=scans, truncation=True, max_length=length)
            (ids,) = inputs["input_ids"]
            whole = sum(ids[i : i + 6] == [start, *[processor.image_token_id] * 4, end] for i in range(len(ids)))
            assert len(ids) <= length and ids.count(processor.image_token_id) == 4 * whole
            assert ids.count(start) == ids.count(end) == whole, "no lone mark of a scan that was left out"
            assert ids[0] == processor.tokenizer.bos_token_id
            assert len(inputs.get("pixel_values", [])) == whole
            if whole == 1:
                assert inputs["pixel_values"][0].shape[-1] == (1 if side == "right" else 4)
    assert "leaves no room for 1 of 2 scans" in caplog.text


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True},
        {"truncation": True, "max_length": 9},
        {"truncation": "longest_first", "max_length": 9},
        {"truncation": "do_not_truncate", "max_length": 9},
        {"truncation": False, "max_length": 9},
        {"max_length": 9},
        {"max_length": 9, "padding": True},
        {"max_length": 70, "padding": "max_length"},
        {"pad_to_multiple_of": 7, "padding": True},
        {},
    ],
)
def test_truncation_and_padding_follow_the_rules_of_every_tokenizer(options, side, processor):
    tokenizer, text = processor.tokenizer, "Which imaging modality is this? " * 4
    tokenizer.model_max_length, tokenizer.truncation_side = 12, side
    assert processor(text=[text], **options)["input_ids"] == tokenizer([text], **options)["input_ids"]


def test_one_text_is_a_batch_of_one(processor):
    assert processor(text="What is this?")["input_ids"] == processor(text=["What is this?"])["input_ids"]


def test_only_what_was_asked_for_is_returned(processor):
    assert set(processor(text="What is this?")) == {"input_ids", "attention_mask"}
    extra = {"return_offsets_mapping": True, "return_mm_token_type_ids": True, "return_special_tokens_mask": True}
    texts = ["<image>What?", "Is this a CT scan of the chest or of the head?"]
    inputs = processor(text=texts, images=array(8, 8), padding=True, return_tensors="pt", **extra)
    shape = inputs["input_ids"].shape
    assert inputs["offset_mapping"].shape == (*shape, 2)
    image_ids = torch.tensor(processor.image_token_ids)
    assert torch.equal(inputs["mm_token_type_ids"].bool(), torch.isin(inputs["input_ids"], image_ids))
    assert inputs["mm_token_type_ids"].sum() == 6, "the placeholders and the two marks around them"
    assert inputs["special_tokens_mask"].shape == shape and isinstance(inputs["pixel_values"], list)


def test_what_vllm_asks_a_processor(processor):
    """Its transformers backend: the mark in an unexpanded text, what replaces it, and how many tokens that is."""
    inputs = processor(text="One <image>?", images=array(8, 8), return_text_replacement_offsets=True, return_tensors="pt")
    ((replaced,),) = inputs["text_replacement_offsets"]
    assert replaced["type"] == "image" and replaced["text"] == processor.image_token == "<image>"
    assert replaced["replacement"] == processor.full_image_sequence
    assert replaced["span"] == (4, 11) and replaced["new_span"] == (4, 4 + len(processor.full_image_sequence))
    counts = processor._get_num_multimodal_tokens(image_sizes=[(30, 20), (500, 500)])
    assert counts.num_image_tokens == [6, 6] and counts.num_image_patches == [1, 1]
    ids = processor.tokenizer(processor.full_image_sequence, add_special_tokens=False)["input_ids"]
    assert len(ids) == 6 and set(ids) == set(processor.image_token_ids) and processor.image_token_id in ids


WINDOW = {"ct_window": "lung"}


@pytest.mark.parametrize("options", [WINDOW, {"images_kwargs": WINDOW}, {"common_kwargs": WINDOW}])
def test_settings_of_the_image_processor_hold_for_one_call(options, processor, dicom_files):
    call = {"text": "<image>", "images": dicom_files / "CT_small.dcm"}
    lung = RadFMImageProcessor(image_size=32, max_slices=32, keep_aspect=True, ct_window="lung")
    (before,), (windowed,), (after,) = (processor(**call, **o)["pixel_values"] for o in ({}, options, {}))
    assert torch.equal(windowed, lung.preprocess(call["images"])) and not torch.equal(windowed, before)
    assert torch.equal(after, before) and processor.image_processor.ct_window == "soft tissue"


@pytest.mark.parametrize("part", ["text_kwargs", "common_kwargs"])
def test_text_settings_reach_the_text(part, processor):
    options = {"return_tensors": "np", "truncation": True, "max_length": 5}
    ids = processor(text="Is this a CT scan of the chest?", **{part: options})["input_ids"]
    assert isinstance(ids, np.ndarray) and ids.shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ct_windw": "lung"}, "no setting 'ct_windw'; did you mean 'ct_window'"),
        ({"trunctaion": True}, "no setting 'trunctaion'; did you mean 'truncation'"),
        ({"text_kwargs": {"max_lenght": 3}}, "text_kwargs has no setting 'max_lenght'; did you mean 'max_length'"),
        ({"images_kwargs": {"spacings": 3}}, "images_kwargs has no setting 'spacings'; did you mean 'spacing'"),
        ({"common_kwargs": {"return_tensor": "pt"}}, "did you mean 'return_tensors'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_right_one(options, sentence, processor):
    with pytest.raises(TypeError, match=sentence):
        processor(text="<image>", images=array(8, 8), **options)


def test_a_setting_given_twice_is_an_error(processor):
    with pytest.raises(ValueError, match="ct_window was passed two times"):
        processor(text="<image>", images=array(8, 8), ct_window="lung", images_kwargs={"ct_window": "bone"})


def test_videos_and_audio_are_refused(processor):
    with pytest.raises(ValueError, match="takes no videos and no audio"):
        processor(text="What?", videos=array(8, 8))


def test_a_conversation_is_question_space_answer(processor):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": array(8, 8)}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "CT"}]},
        {"role": "user", "content": "Is it normal?"},
    ]
    assert processor.apply_chat_template(messages) == "<s><image>What is this? CT</s>Is it normal?"
    assert processor.apply_chat_template(messages[:2], continue_final_message=True) == "<s><image>What is this? CT"
    inputs = as_inputs(processor, messages, return_tensors="pt")
    assert inputs["input_ids"][0].tolist().count(1) == 1, "one start of text"
    assert len(inputs["pixel_values"]) == 1


def test_a_scan_in_a_conversation_arrives_as_it_is(processor, dicom_files):
    path = dicom_files / "CT_small.dcm"
    for source in (load_scan(path), path, str(path)):
        message = {"role": "user", "content": [{"type": "image", "image": source, "url": None}]}
        (pixels,) = as_inputs(processor, [message])["pixel_values"]
        assert torch.equal(pixels, processor.image_processor.preprocess(path))


def test_conversations_without_scans_as_trainers_give_them(processor):
    inputs = as_inputs(processor, [chat("What is CT?", "computed tomography"), chat("Is this CT?", "yes")])
    assert [row[0] for row in inputs["input_ids"]] == [1, 1] and "pixel_values" not in inputs
    assert as_inputs(processor, [{"role": "user", "content": "What?"}])["input_ids"] == [ids_of(processor, "What?")]


@pytest.mark.parametrize("typed", ["", " <image></s>"])
def test_assistant_masks_hold_each_answer_and_its_end(typed, processor):
    messages = chat(f"Is this CT?{typed}", "yes", "Which body part is shown?", "chest", images=2)
    inputs = as_inputs(processor, messages, return_assistant_tokens_mask=True, return_tensors="pt")
    ids, mask = inputs["input_ids"][0], inputs["assistant_masks"][0].bool()
    assert processor.tokenizer.decode(ids[mask]) == " yes</s> chest</s>"
    assert len(inputs["pixel_values"]) == 2 and mask.shape == ids.shape


def test_scans_that_were_encoded_before_are_places_in_a_conversation(processor):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    inputs = as_inputs(processor, messages, processor_kwargs={"images_encoded": True})
    assert inputs["input_ids"] == processor(text="<image>What?", images=array(8, 8))["input_ids"]
    assert "pixel_values" not in inputs
    with pytest.raises(ValueError, match="1 <image> marks and 0 scans"):
        as_inputs(processor, messages)
    with pytest.raises(ValueError, match="leaves no room for all scans"):
        processor(text="<image>What?", images_encoded=True, truncation=True, max_length=4)
    with pytest.raises(ValueError, match="leave out images"):
        processor(text="<image>What?", images_encoded=True, images=array(8, 8))


SPELLINGS = ("<image>", "</image>", "<image_token>", "<s>", "</s>", "<unk>", "<im", "age>", "<", ">", "/s>", "_token>")
TYPED_TEXT = st.lists(st.one_of(st.sampled_from([*SPELLINGS, " ", "CT", "é", TYPED]), st.text(max_size=3)), max_size=8)
PROCESSOR = RadFMProcessor.from_pretrained(CHAT_TEMPLATE_FILE.parent)


@settings(deadline=None)
@example(["", "<im", "age>"], "", "")
@example(["", "<", "/", "s>"], "<", "/s>")
@example(["<im<image>age>", "<image_<image>token>"], "</s>", "<s>")
@given(st.lists(TYPED_TEXT.map("".join), min_size=1, max_size=4), TYPED_TEXT.map("".join), TYPED_TEXT.map("".join))
def test_what_a_person_types_never_becomes_a_control_token(parts, answer, last):
    texts = [{"type": "text", "text": part} for part in parts]
    messages = [
        {"role": "user", "content": [*texts[:1], {"type": "image"}, *texts[1:]]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": last},
    ]
    tokenizer, encoded = PROCESSOR.tokenizer, {"images_encoded": True}
    (ids,) = as_inputs(PROCESSOR, messages, processor_kwargs=encoded)["input_ids"]
    counts = {token: ids.count(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
    assert counts == {"<unk>": 0, "<s>": 1, "</s>": 1, "<image>": 1, "</image>": 1, "<image_token>": 32}
    (again,) = PROCESSOR(text=PROCESSOR.apply_chat_template(messages), **encoded)["input_ids"]
    assert again == ids, "rendered first and tokenised afterwards it is the same"
    spoken = [*parts[:1], PROCESSOR.full_image_sequence, *parts[1:], " ", answer, "</s>", last]
    assert tokenizer.decode(ids) == "<s>" + "".join(spoken).replace(TYPED, ""), "every letter arrives"


def test_typed_control_tokens_have_the_ids_of_their_letters(processor):
    text = "Is <image> or </s> in it?"
    (ids,) = as_inputs(processor, chat(text))["input_ids"]
    assert ids[1:] == processor.tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]


def test_a_mark_keeps_its_meaning_in_a_plain_text(processor):
    assert processor.image_token_id in ids_of(processor, "<image>", images=array(8, 8))
    assert ids_of(processor, "yes</s>")[-1] == processor.tokenizer.eos_token_id


def test_texts_of_message_objects_are_texts_as_well(processor):
    @dataclass
    class Message:
        role: str
        content: str

    assert processor.apply_chat_template([Message("user", "a</s>")]) == f"<s>a<{TYPED}/s>"


def test_a_tokenizer_that_normalises_before_it_looks_for_control_tokens(processor):
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["normalized"] = True
    backend["normalizer"] = {"type": "NFC"}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    legacy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **special)
    (ids,) = as_inputs(RadFMProcessor(processor.image_processor, legacy, 4), chat("Is <image> here</s>?"))["input_ids"]
    assert ids.count(2) == 0 and legacy.decode(ids) == "<s>Is <image> here</s>?"


def test_the_answer_has_no_space_in_front(processor):
    ids = torch.tensor(processor.tokenizer([" CT</s>", " MR</s>"], add_special_tokens=False, padding=True)["input_ids"])
    assert processor.post_process_image_text_to_text(ids) == ["CT", "MR"]


def test_the_examples_in_the_docstrings_give_what_they_say():
    assert doctest.testmod(radfm.processing_radfm).failed == 0


def test_scans_that_were_encoded_before_need_a_text_alone(processor, model_for):
    with torch.no_grad():
        features = model_for.get_image_features(processor.image_processor(array(20, 20))["pixel_values"]).pooler_output
        text = processor(text=processor.full_image_sequence + "What?", return_tensors="pt")
        with_scan = processor(text="<image>What?", images=array(20, 20), return_tensors="pt")
        torch.testing.assert_close(model_for(**text, image_features=features).logits, model_for(**with_scan).logits)


def test_a_tokenizer_without_marks_is_refused(tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<unk>")
    assert RadFMProcessor(RadFMImageProcessor(), plain)
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
    assert as_inputs(again, chat("Is <image> here?")) == as_inputs(processor, chat("Is <image> here?"))


@pytest.mark.parametrize("auto", ["AutoProcessor", "AutoImageProcessor"])
def test_settings_named_at_loading_are_kept(auto, repository):
    load = getattr(transformers, auto).from_pretrained
    loaded = load(repository, trust_remote_code=True, ct_window="lung", spacing=[1, 1, 3])
    image_processor = getattr(loaded, "image_processor", loaded)
    assert image_processor.ct_window == "lung" and image_processor.spacing == (1, 1, 3)
    assert image_processor.image_size == 32, "as saved"
    with pytest.raises(TypeError, match="did you mean 'ct_window'"):
        load(repository, trust_remote_code=True, ct_windw="lung")


def test_settings_of_the_other_parts_are_kept_as_well(repository):
    loaded = AutoProcessor.from_pretrained(repository, trust_remote_code=True, padding_side="right", num_image_tokens=8)
    assert loaded.tokenizer.padding_side == "right" and loaded.num_image_tokens == 8


def test_the_repository_holds_the_one_chat_template(repository):
    assert (repository / "chat_template.jinja").read_text() == CHAT_TEMPLATE_FILE.read_text()


def test_transformers_pipeline_asks_about_an_array_in_a_conversation(repository, model_for, processor):
    ask = pipeline("image-text-to-text", model=str(repository), trust_remote_code=True, device="cpu")
    messages = chat("What?", images=1)
    (answer,) = ask(text=messages, max_new_tokens=3, return_full_text=False)
    inputs = as_inputs(processor, messages, return_tensors="pt")
    output_ids = model_for.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"].strip() == processor.post_process_image_text_to_text(output_ids)[0]


def test_a_batched_pipeline_answers_each_conversation(repository):
    ask = pipeline("image-text-to-text", model=str(repository), trust_remote_code=True, device="cpu")
    conversations = [chat("What is this?", images=1), chat("Is it normal? Answer yes or no.", images=2)]
    options = {"max_new_tokens": 3, "return_full_text": False}
    together = ask(text=conversations, batch_size=2, **options)
    alone = [ask(text=conversation, **options) for conversation in conversations]
    assert [answer[0]["generated_text"] for answer in together] == [answer[0]["generated_text"] for answer in alone]
