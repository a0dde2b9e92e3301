"""The text of an answer: pieces joined are the answer, stop texts end it, and a seed decides it."""

import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from radfm.processing_radfm import RadFMProcessor
from radfm.serving.answers import Answer, AnswerText, Sampling

EOS = 2


@pytest.fixture(scope="module")
def tokenizer():
    return RadFMProcessor.from_pretrained(ROOT).tokenizer


def sampling(**changes) -> Sampling:
    return Sampling(**{"n": 1, "max_tokens": 100, "temperature": 0.0, "top_p": 1.0, "seed": 0, **changes})


def run(tokenizer, ids, **changes):
    """The pieces of an answer that is made of these tokens."""
    answer = Answer(tokenizer, sampling(**changes), 0, frozenset([EOS]))
    pieces = []
    for token in ids:
        piece = answer.add(token)
        if piece is not None:
            pieces.append(piece)
        if answer.finish_reason is not None:
            break
    return pieces


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


@given(parts=st.lists(st.text(alphabet=" ab\n", max_size=4)), stop=st.lists(st.text(alphabet="ab ", min_size=1), max_size=3))
def test_parts_that_are_shown_join_to_the_text_before_the_first_stop_without_outer_space(parts, stop):
    shown = AnswerText(tuple(stop))
    pieces = [shown.add(part) for part in parts]
    pieces.append("" if shown.is_stopped else shown.end())
    whole = "".join(parts)
    ends = [whole.find(each) for each in stop if each in whole]
    if shown.is_stopped:
        # A stop text ends the answer as soon as it is there: of two, the one that is complete first.
        assert any("".join(pieces) == whole[:end].strip() for end in ends)
    else:
        assert not ends and "".join(pieces) == whole.strip()


@pytest.mark.parametrize("words", ["CT", "The finding is a glioma tumor.", "naïve – 3 µm ∅ 𝛼", "  two  spaces  "])
def test_pieces_join_to_what_the_processor_decodes(words, tokenizer):
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    pieces = run(tokenizer, [*ids, EOS])
    assert text_of(pieces) == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert pieces[-1].finish_reason == "stop" and pieces[-1].num_tokens == len(ids)
    assert all("\ufffd" not in piece.text for piece in pieces)


def test_a_stop_text_over_two_tokens_is_never_shown(tokenizer):
    ids = tokenizer("no tumor is seen", add_special_tokens=False)["input_ids"]
    pieces = run(tokenizer, ids, stop=("or is",))
    assert text_of(pieces) == "no tum" and pieces[-1].finish_reason == "stop"


def test_the_longest_answer_ends_with_length(tokenizer):
    ids = tokenizer("no tumor is seen", add_special_tokens=False)["input_ids"]
    pieces = run(tokenizer, ids, max_tokens=2)
    assert pieces[-1].finish_reason == "length" and pieces[-1].num_tokens == 2


def draws(count, **changes):
    answer = Answer(None, sampling(temperature=1.0, **changes), 0, frozenset())
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    return torch.tensor([answer.choose(logits.clone()) for _ in range(count)])


def test_sampling_follows_the_probabilities():
    counts = draws(4000).bincount(minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)


def test_top_p_leaves_out_the_tail():
    assert set(draws(500, top_p=0.7).tolist()) == {0, 1}
    assert set(draws(100, top_p=0.1).tolist()) == {0}


def test_a_seed_decides_the_draws():
    assert torch.equal(draws(50, seed=7), draws(50, seed=7))
    assert not torch.equal(draws(50, seed=7), draws(50, seed=8))


def test_logprobs_are_those_of_the_model_before_temperature(tokenizer):
    logits = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    answer = Answer(tokenizer, sampling(temperature=2.0, top_logprobs=3), 0, frozenset([EOS]))
    token = answer.choose(logits.clone())
    (entry,) = answer.add(token).logprobs
    expected = logits.log_softmax(-1)
    assert entry["logprob"] == pytest.approx(float(expected[token]))
    assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(expected.topk(3).values.tolist())
    assert bytes(entry["bytes"]).decode() == entry["token"]
