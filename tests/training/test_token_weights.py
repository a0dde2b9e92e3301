"""Medical terms weigh 3: the longest term, at word edges, in any case, whatever the tokenizer."""

import numpy as np
import pytest

from radfm.training.recipe import Loss, RecipeError
from radfm.training.token_weights import TermMatcher, shipped_terms, token_weights

TEXT = "There is a small left pleural effusion with midline shift."


def words(text):
    """Offsets of words with their leading space, as a byte-level tokenizer cuts them."""
    offsets, start = [], 0
    for word in text.split(" "):
        offsets.append((max(start - 1, 0), start + len(word)))
        start += len(word) + 1
    return offsets


def test_the_terms_that_ship_hold_what_reports_say():
    terms = set(shipped_terms())
    wanted = {"pleural effusion", "atelectasis", "consolidation", "ground-glass opacity", "lytic lesion", "midline shift"}
    assert wanted <= terms
    assert not {"time", "back", "light", "paper", "women"} & terms, "headings of MeSH that are ordinary words"


def test_terms_weigh_three_and_the_rest_one():
    weights = token_weights(TEXT, words(TEXT), Loss())
    heavy = [word for word, weight in zip(TEXT.split(" "), weights, strict=True) if weight == 3]
    assert heavy == ["pleural", "effusion", "midline", "shift."]


def test_the_published_plain_mean_is_a_switch():
    assert (token_weights(TEXT, words(TEXT), Loss(plain_mean=True)) == 1).all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("PLEURAL EFFUSION", ["PLEURAL EFFUSION"]),
        ("effusions and masses", ["effusion"] * 0),
        ("İ effusion", ["effusion"]),  # lower case of İ is two characters
        ("effusionlike; effusion", ["effusion"]),
        ("pleural effusionlike", []),
    ],
)
def test_the_longest_term_at_word_edges(text, found):
    matcher = TermMatcher(["effusion", "pleural effusion", "mass"])
    assert [text[start:end] for start, end in matcher.spans(text)] == found


def test_a_longer_term_that_ends_inside_a_word_hides_no_shorter_one():
    matcher = TermMatcher(["rib", "rib frac"])
    assert matcher.spans("rib fracture") == [(0, 3)]


def test_terms_of_the_users_own(tmp_path):
    file = tmp_path / "terms.txt"
    file.write_text("left\n")
    weights = token_weights(TEXT, words(TEXT), Loss(terms=str(file), term_weight=5))
    assert np.flatnonzero(weights == 5).tolist() == [TEXT.split(" ").index("left")]
    with pytest.raises(RecipeError, match=r"loss\.terms=.*no\.txt: cannot be read"):
        token_weights(TEXT, words(TEXT), Loss(terms=str(tmp_path / "no.txt")))
