"""A request is accepted as it was meant or refused by the name of the field; nothing is ignored."""

import json

import pytest

from radfm.serving.errors import ApiError
from radfm.serving.protocol import NEUTRAL, parse_chat_request

QUESTION = {"role": "user", "content": "What is this?"}


def parse(**fields):
    return parse_chat_request(json.dumps({"model": "radfm", "messages": [QUESTION], **fields}).encode())


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parse_chat_request(body)
    assert refused.value.status == 400
    return refused.value


def refused(**fields) -> str:
    return refusal(json.dumps({"model": "radfm", "messages": [QUESTION], **fields}).encode()).message


def test_a_string_is_one_text_part():
    (message,) = parse().messages
    assert [part.text for part in message.content] == ["What is this?"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"user": "somebody"}, "user"),
        ({"colour": "blue"}, "colour"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{**QUESTION, "name": "me"}]}, "messages[0].name"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "CT"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "sound", "sound": {}}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "system", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
            "messages[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f", "slice": 3}}]}]},
            "messages[0].content[0].file.slice",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "", "detail": "low"}}]}]},
            "messages[0].content[0].image_url.detail",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f", "volume": -1}}]}]},
            "messages[0].content[0].file.volume",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(fields, name):
    assert refused(**fields).startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_field_that_asks_for_what_happens_anyway_is_accepted(name):
    for value in (None, *NEUTRAL[name]):
        assert parse(**{name: value}) == parse()


def test_more_scans_than_one_request_may_have_are_refused(monkeypatch):
    monkeypatch.setattr("radfm.serving.limits.SCANS", 1)
    part = {"type": "file", "file": {"file_id": "f"}}
    assert "2 scans, more than the 1" in refused(messages=[{"role": "user", "content": [part, part]}])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "radfm"}', b"[" * 100_000])
def test_what_is_no_request_is_refused(body):
    assert refusal(body).message


def test_a_refusal_repeats_no_value_and_little_of_a_name():
    secret = "A" * 500
    for fields in ({"temperature": secret}, {"messages": [{"role": secret, "content": secret}]}, {secret: 1}):
        assert "A" * 61 not in refused(**fields)
