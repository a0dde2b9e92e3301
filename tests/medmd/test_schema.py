"""The record: light to import, one set of columns, every law checked."""

import subprocess
import sys
from dataclasses import replace

import pytest

from radfm.medmd.schema import COLUMNS, DataError, Finding, Message, Part, Record, Stored, features, validate


def record(**changes) -> Record:
    sound = Record(
        id="csv/abc/vqa/0",
        images=(Stored(b"x", "x.png"),),
        messages=(Message("user", (Part("image"), Part("text", "What?"))), Message("assistant", (Part("text", "A mass."),))),
        task="vqa",
        answer_type="open",
        source="csv",
        licence="CC0",
        access="open",
        split="train",
        split_origin="ours",
        group="ab12",
        image_sha256=("00",),
        image_hash=("ff",),
        shapes=((4, 5),),
    )
    return replace(sound, **changes)


def test_the_definition_is_imported_without_torch_and_datasets():
    heavy = ("torch", "datasets", "pyarrow", "transformers")
    code = f"import sys; import radfm.medmd.schema; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_features_and_dataclass_have_the_same_columns():
    for config in ("2d", "3d"):
        assert tuple(features(config)) == COLUMNS
    with pytest.raises(DataError, match="4d"):
        features("4d")


def test_a_record_survives_the_way_to_a_row_and_back():
    original = record(findings=(Finding("mass", 1),), extra={"a": [1]}, choices=("x",))
    assert Record.from_row(original.to_row()) == original


def text(role: str, words: str, *marks: Part) -> Message:
    return Message(role, (*marks, Part("text", words)))


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"id": "no key"}, "id"),
        ({"task": "guess"}, "task 'guess' is none of"),
        ({"answer_type": "maybe"}, "answer_type"),
        ({"access": "mine"}, "access"),
        ({"split": "val"}, "split 'val'"),
        ({"split_origin": "theirs"}, "split_origin"),
        ({"group": "Erika Muster"}, "hexadecimal"),
        ({"images": ()}, "marks|no scan"),
        ({"images": (Stored(b"", "x.png"),)}, "empty"),
        ({"shapes": ((4, 5, 6, 7),)}, "shapes"),
        ({"image_hash": ()}, "length"),
        ({"messages": (text("assistant", "A"), text("user", "B", Part("image")))}, "in turn"),
        ({"messages": (text("user", "A"), text("assistant", "B", Part("image")))}, "outside a user message"),
        ({"messages": (text("user", "A"), text("assistant", "B"))}, "0 image marks for 1"),
        ({"messages": (text("user", "", Part("image")), text("assistant", "B"))}, "not empty"),
        ({"messages": (text("user", "A", Part("image")), text("assistant", " "))}, "answer is empty"),
        ({"messages": (text("user", "A", Part("image", "words")), text("assistant", "B"))}, "mark has text"),
        ({"answer_type": "choice", "choices": ("CT", "MR")}, "none of the choices"),
        ({"answer_type": "closed"}, "neither yes nor no"),
        ({"findings": (Finding("mass", 1), Finding("mass", 0))}, "twice"),
        ({"findings": (Finding("mass", 2),)}, "value"),
    ],
)
def test_each_law_has_its_sentence(changes, law):
    validate(record())
    with pytest.raises(DataError, match=law):
        validate(record(**changes))
