"""OpenAI's own client against `radfm serve` with the demo checkpoint."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from helpers import ROOT
from PIL import Image
from requests_of_openai import MODALITY, data_url, file, image, text, user
from running_server import metric

from radfm.cli.chat import ChatSession
from radfm.load_scan_radfm import load_scan

pytestmark = pytest.mark.slow  # a server that loads the demo checkpoint


@pytest.fixture(scope="module")
def session() -> ChatSession:
    return ChatSession(str(ROOT), "cpu")


@pytest.fixture
def ask(server, client):
    def ask(*parts, **fields):
        return client.chat.completions.create(model=server.model, messages=user(*parts), **{"max_tokens": 16, **fields})

    return ask


def content(completion) -> str:
    return completion.choices[0].message.content


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def expected(session, scans, question) -> str:
    session.set_scans(scans)
    return session.ask(question, 16)


# What goes in ---------------------------------------------------------------------------------------------------------


def test_each_kind_of_scan_is_answered_as_radfm_ask_answers_it(ask, session, ct, mr_zip, nifti_files):
    shades = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    scans = {
        "DICOM file": (file(ct, "a.dcm"), ct),
        "DICOM data URL": (image(ct, "application/dicom"), ct),
        "PNG": (image(png(shades)), png(shades)),
        "zipped series": (file(mr_zip.read_bytes(), "mr.zip"), mr_zip.read_bytes()),
        "NIfTI": (file((nifti_files / "example4d.nii.gz").read_bytes()), (nifti_files / "example4d.nii.gz").read_bytes()),
    }
    for question in (MODALITY, "Is this scan 2D or 3D?", "What is the finding?"):
        for kind, (part, raw) in scans.items():
            assert content(ask(part, text(question))) == expected(session, [load_scan(raw)], question), kind


def test_several_scans_go_in_the_order_of_the_parts(ask, session, ct, mr_zip):
    scans = [load_scan(ct), load_scan(mr_zip)]
    completion = ask(file(ct), file(mr_zip.read_bytes()), text("Is this scan 2D or 3D?"))
    assert content(completion) == expected(session, scans, "Is this scan 2D or 3D?")
    assert [scan["modality"] for scan in completion.model_extra["scans"]] == ["CT", "MR"]


def test_a_conversation_is_continued_as_radfm_ask_continues_it(server, client, session, ct):
    session.set_scans([load_scan(ct)])
    first, second = (session.ask(question, 16) for question in (MODALITY, "Is this scan 2D or 3D?"))
    messages = [
        *user(file(ct), text(MODALITY)),
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Is this scan 2D or 3D?"},
    ]
    answer = client.chat.completions.create(model=server.model, messages=messages, max_tokens=16)
    assert content(answer) == second


def test_a_file_says_which_series_and_volume(ask, nifti_files, dicom_files, mr_zip):
    raw = (nifti_files / "example4d.nii.gz").read_bytes()
    (chosen,) = ask(file(raw, volume=1), text(MODALITY)).model_extra["scans"]
    (first,) = ask(file(raw), text(MODALITY)).model_extra["scans"]
    assert chosen["shape"] == first["shape"] == [1, 128, 96, 24]
    assert "Only volume 1 of 2" in chosen["warnings"][0] and "Only volume 0 of 2" in first["warnings"][0]
    both = io.BytesIO()
    with zipfile.ZipFile(both, "w") as archive:
        for name in ("MR_small.dcm", "693_J2KI.dcm"):
            archive.write(dicom_files / name, name)
    uid = load_series_uid(dicom_files / "MR_small.dcm")
    (series,) = ask(file(both.getvalue(), series=uid), text(MODALITY)).model_extra["scans"]
    assert series["modality"] == "MR"


def load_series_uid(path: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(path).SeriesInstanceUID)


def test_typed_control_tokens_are_text(ask, session, ct):
    question = "Is <image> this <image_token></s> CT?"
    completion = ask(file(ct), text(question))
    assert content(completion) == expected(session, [load_scan(ct)], question)
    tokenizer = session.processor.tokenizer
    plain = ask(file(ct), text("Is this CT?")).usage.prompt_tokens
    # One scan, and each typed token as several of its letters.
    assert completion.usage.prompt_tokens > plain + 3
    assert plain == 1 + 34 + len(tokenizer("Is this CT?", add_special_tokens=False)["input_ids"])


# How it is answered ---------------------------------------------------------------------------------------------------


def test_a_stream_joins_to_the_answer(ask, ct):
    for options in ({}, {"temperature": 1.5, "seed": 3}):
        whole = ask(file(ct), text("What is the finding?"), **options)
        events = list(
            ask(file(ct), text("What is the finding?"), stream=True, stream_options={"include_usage": True}, **options)
        )
        pieces = [event.choices[0] for event in events if event.choices]
        assert "".join(piece.delta.content or "" for piece in pieces) == content(whole)
        assert pieces[0].delta.role == "assistant" and pieces[-1].finish_reason == whole.choices[0].finish_reason
        assert events[-1].usage == whole.usage and all(event.usage is None for event in events[:-1])
        assert events[0].model_extra["scans"][0]["modality"] == "CT"
        assert len({event.id for event in events}) == 1


def test_a_stop_text_ends_the_answer(ask, ct):
    whole = content(ask(file(ct), text("Is this scan 2D or 3D?")))
    assert whole == "2D"
    stopped = ask(file(ct), text("Is this scan 2D or 3D?"), stop=["D"])
    assert content(stopped) == "2" and stopped.choices[0].finish_reason == "stop"


def test_max_tokens_ends_the_answer_with_length(ask, ct):
    completion = ask(file(ct), text(MODALITY), max_tokens=1)
    assert completion.choices[0].finish_reason == "length" and completion.usage.completion_tokens == 1


def test_n_answers_with_a_seed_are_the_same_again_and_differ_among_themselves(ask, ct):
    def sampled(seed):
        completion = ask(file(ct), text("What is the finding?"), n=8, temperature=2.0, seed=seed, max_tokens=6)
        assert [choice.index for choice in completion.choices] == list(range(8))
        return [choice.message.content for choice in completion.choices]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert len(set(sampled(1))) > 1


def test_logprobs_are_those_of_the_model(ask, session, ct):
    completion = ask(file(ct), text(MODALITY), logprobs=True, top_logprobs=2, max_tokens=1)
    (entry,) = completion.choices[0].logprobs.content
    session.set_scans([load_scan(ct)])
    inputs = session.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": MODALITY}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_encoded": True},
    )
    with torch.inference_mode():
        logits = session.model(**inputs, image_features=session.image_features).logits[0, -1]
    top = logits.log_softmax(-1).topk(2)
    assert [each.logprob for each in entry.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert entry.logprob == entry.top_logprobs[0].logprob and entry.token == entry.top_logprobs[0].token
    assert entry.token.strip() == content(completion)


# Files ----------------------------------------------------------------------------------------------------------------


def test_an_uploaded_file_is_asked_about_by_its_id_until_it_is_deleted(ask, client, ct):
    uploaded = client.files.create(file=("a.dcm", ct), purpose="user_data")
    part = {"type": "file", "file": {"file_id": uploaded.id}}
    assert content(ask(part, text(MODALITY))) == "CT"
    assert uploaded.bytes == len(ct) and uploaded.filename == "a.dcm"
    assert client.files.retrieve(uploaded.id) == uploaded
    assert uploaded.id in [each.id for each in client.files.list()]
    assert client.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)
    with pytest.raises(openai.NotFoundError):
        ask(part, text(MODALITY))


def test_a_file_expires_when_the_client_said_so(client, ct):
    uploaded = client.files.create(
        file=("a.dcm", ct), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert uploaded.expires_at - uploaded.created_at == 3600


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"purpose": "fine-tune", "file": ("a", b"x")}, "purpose: this server knows user_data and vision alone."),
        ({"purpose": "user_data", "file": ("a", b"")}, "file: is empty."),
        (
            {"purpose": "user_data", "file": ("a", b"x"), "expires_after": {"anchor": "created_at", "seconds": 10**7}},
            "expires_after[seconds]: must lie between 1 and 86400.",
        ),
        ({"purpose": "user_data", "file": ("a", b"x"), "extra_body": {"folder": "x"}}, "folder: is not supported"),
    ],
)
def test_an_upload_that_cannot_be_kept_is_a_400(client, fields, sentence):
    with pytest.raises(openai.BadRequestError, match=re.escape(sentence)):
        client.files.create(**fields)


# What is refused ------------------------------------------------------------------------------------------------------


def broken_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("DOE_JOHN_1950/notes.txt", "no scan")
        archive.writestr("DOE_JOHN_1950/a.dcm", bytes(128) + b"DICM" + b"\xff" * 40)
    return stream.getvalue()


BAD_PARTS = {
    "text called a scan": (file(b"no scan at all", "DOE_JOHN.dcm"), "is no scan that can be read"),
    "an empty file": (file(b""), "is empty"),
    "a damaged archive": (file(broken_zip(), "DOE_JOHN.zip"), "messages[0].content[0]"),
    "a cut DICOM": (file(bytes(128) + b"DICM\x02\x00"), "messages[0].content[0]"),
    "no base64": ({"type": "file", "file": {"file_data": "data:;base64,äöü"}}, "holds no valid base64"),
    "a data URL without base64": ({"type": "image_url", "image_url": {"url": "data:,"}}, "no data URL with base64"),
    "a path": ({"type": "image_url", "image_url": {"url": "/etc/hostname"}}, "no path or address is opened"),
    "a file URL": ({"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}, "no path or address is opened"),
    "an address": ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}, "no path or address is opened"),
    "an unknown part": ({"type": "sound", "sound": {}}, "has no type that is supported"),
    "audio": ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "has no type that is supported"),
    "a file id and data": ({"type": "file", "file": {"file_id": "a", "file_data": "aa=="}}, "either file_id or file_data"),
    "a volume that is not there": (file(broken_zip(), volume=7), "messages[0].content[0]"),
}


@pytest.mark.parametrize("kind", BAD_PARTS)
def test_bad_input_is_a_400_that_names_the_part_and_nothing_of_a_patient(kind, ask, server):
    part, sentence = BAD_PARTS[kind]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(part, text(MODALITY))
    assert "messages[0].content[0]" in refused.value.body["message"] and sentence in refused.value.body["message"]
    for seen in (json.dumps(refused.value.body), server.log):
        assert "DOE" not in seen and "base64," not in seen and "/tmp" not in seen and "Traceback" not in seen


def test_a_series_or_volume_that_is_not_there_is_a_400(ask, ct, nifti_files):
    with pytest.raises(openai.BadRequestError, match="has volumes 0 to 1, and no volume 7"):
        ask(file((nifti_files / "example4d.nii.gz").read_bytes(), volume=7), text(MODALITY))
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\]\.content\[0\]: .*401"):
        ask(file(ct, series="401"), text(MODALITY))


def test_a_prompt_that_is_longer_than_the_context_is_a_400(ask, ct):
    for words, more in (("tumor " * 3000, {}), ("tumor " * 10**6, {}), ("tumor", {"max_tokens": 5000})):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(file(ct), text(words), **more)
        assert refused.value.code == "context_length_exceeded"


def test_another_model_is_a_404(client, server):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no/such", messages=user(text("Hello")))
    assert missing.value.code == "model_not_found"
    assert client.models.retrieve(server.model).id == server.model
    assert [each.id for each in client.models.list()] == [server.model]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


def test_routes_that_are_not_there_are_errors_in_openais_form(client):
    with pytest.raises(openai.NotFoundError, match="no POST at this path"):
        client.embeddings.create(model="radfm", input="a")
    with pytest.raises(openai.NotFoundError, match="no GET at this path"):
        client.files.content("file-1")
    with pytest.raises(openai.APIStatusError) as wrong:
        client.post("/models", cast_to=object)
    assert wrong.value.status_code == 405


# What is kept ---------------------------------------------------------------------------------------------------------


def test_a_scan_that_is_asked_about_again_is_not_read_again(ask, client, dicom_files):
    scan = (dicom_files / "MR_small.dcm").read_bytes()
    first = content(ask(file(scan), text(MODALITY)))
    read = metric(client, 'radfm_scans_total{outcome="read"}')
    uploaded = client.files.create(file=("b.dcm", scan), purpose="user_data")
    assert content(ask({"type": "file", "file": {"file_id": uploaded.id}}, text(MODALITY))) == first
    assert content(ask(image(scan, "application/dicom"), text(MODALITY))) == first
    assert metric(client, 'radfm_scans_total{outcome="read"}') == read
    assert metric(client, "radfm_feature_cache_bytes") > 0
    ask(file(scan, volume=0), text(MODALITY))  # another choice may be another scan
    assert metric(client, 'radfm_scans_total{outcome="read"}') == read + 1


def test_the_log_has_routes_and_no_word_of_a_request(ask, server, ct):
    ask(file(ct, "DOE_JOHN.dcm"), text("Is this the chest of a secretpatient?"))
    assert "POST /v1/chat/completions 200" in server.log
    for word in ("secretpatient", "DOE_JOHN", data_url(ct)[40:80]):
        assert word not in server.log
