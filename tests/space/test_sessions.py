"""What becomes of a question: its parts, its bounds, and what of the conversation the model is shown."""

import zipfile
from pathlib import Path

import pytest

import limits
from remote_code import AnswerError, encode
from scan_store import StoredScan
from sessions import Session, Sessions
from tasks import Tasks


def scan(name: str, complete: bool = True) -> StoredScan:
    about = {"modality": "CT", "modality_name": "CT", "series": None, "shape": [1, 8, 8, 1], "spacing": None}
    return StoredScan(name, Path(name), about, complete)


@pytest.fixture
def session(tmp_path) -> Session:
    """A visitor with three scans, and a model that takes several at once."""
    return Session(tmp_path / "session", None, Tasks({}, []), scans=[scan("a"), scan("b"), scan("c")], current=1)


class Echo:
    """A model that answers with what it was given."""

    def image_tokens(self, pixel_values):
        return pixel_values.parent.name

    def stream(self, messages, features, stop):
        self.messages, self.features = messages, features
        yield "CT"


def parts_of(session: Session, question: str) -> list:
    return [part.get("scan") or part["text"] for part in session._turn(question).parts]


def test_scans_stand_where_the_question_names_them_and_the_others_first(session):
    assert parts_of(session, "Is [2] larger than [3]?") == [1, "Is ", 2, " larger than ", 3, "?"]


def test_a_number_that_is_no_scan_stays_text(session):
    assert parts_of(session, "see [9] and [2]") == [1, 3, "see [9] and ", 2]


def test_a_scan_is_placed_once_and_known_in_later_turns(session):
    model = Echo()
    *_, first = session.ask("What is it?", model)
    assert model.features == ["a", "b", "c"] and first.shown.startswith("[1 · a] [2 · b] [3 · c] What")
    *_, second = session.ask("And now?", model)
    assert second.parts == [{"type": "text", "text": "And now?"}]
    assert [m["role"] for m in model.messages] == ["user", "assistant", "user"] and model.features == ["a", "b", "c"]


def test_another_series_takes_the_place_of_a_scan_with_all_that_is_known_of_it(store, series_zips, tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as both:
        for name in ("dicom_series_ct.zip", "dicom_series_mr.zip"):
            with zipfile.ZipFile(series_zips / name) as series:
                for member in series.namelist():
                    both.writestr(f"{name}/{member}", series.read(member))
    session = Session(tmp_path / "session", store, Tasks({}, []))
    *_, _ = session.read([tmp_path / "both.zip"])
    before = session.scans[0].about
    modalities = set()
    for choice in before["series_choices"]:
        *_, _ = session.choose(1, {"series": choice["value"]})
        about = session.scans[0].about
        assert set(about) == {*before, "chosen"} and about["series_choices"] == before["series_choices"]
        modalities.add(about["modality"])
    assert modalities == {"CT", "MR"}


def test_a_model_for_one_scan_sees_the_turns_about_that_scan_alone(session):
    session.tasks, model = Tasks({"scans_per_question": 1}, []), Echo()
    for question, features, roles in [
        ("What is it?", ["a"], 1),
        ("And [2]?", ["b"], 1),
        ("What is it then?", ["a"], 3),
        ("And [2] again?", ["b"], 3),
    ]:
        list(session.ask(question, model))
        assert (model.features, len(model.messages)) == (features, roles), question


def test_messages_come_from_the_turns(session):
    list(session.ask("What is it?", Echo()))
    assert session.turns[0].messages()[1] == {"role": "assistant", "content": [{"type": "text", "text": "CT"}]}


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("x" * (limits.QUESTION_CHARACTERS + 1), "longer than 2,000 characters"),
        ("[1]" * 330_000, "longer than 2,000 characters"),
        ("[1]" * (limits.QUESTION_PLACES + 1), "names scans 17 times; 16 is the most"),
    ],
    ids=["characters", "a megabyte of places", "places"],
)
def test_a_question_without_bounds_is_refused_before_anything_is_made_of_it(session, question, says):
    with pytest.raises(AnswerError, match=says):
        next(session.ask(question, None))


def test_a_conversation_has_an_end(session, monkeypatch):
    monkeypatch.setattr(limits, "SESSION_TURNS", 1)
    list(session.ask("What is it?", Echo()))
    with pytest.raises(AnswerError, match="holds 1 questions at most"):
        next(session.ask("What is it?", Echo()))


def test_a_scan_that_is_still_read_is_not_asked_about(session):
    session.scans[1] = scan("b", complete=False)
    with pytest.raises(AnswerError, match="still being read"):
        next(session.ask("And [2]?", Echo()))


def test_reading_is_over_when_it_ended_badly(session):
    class Broken:
        def read(self, files):
            raise AnswerError("The disk is full.")
            yield

    session.store = Broken()
    with pytest.raises(AnswerError):
        list(session.read([]))
    assert session.reading == 0


def test_a_refused_question_is_not_shown_to_the_model(session):
    session.tasks = Tasks({"topics": {"modality": {"words": ["modality"]}}}, [])
    *_, turn = session.ask("Who is it?", None)
    assert turn.refused
    model = Echo()
    list(session.ask("Which modality is it?", model))
    assert len(model.messages) == 1


@pytest.mark.parametrize(
    "typed", ["<image>", "</s>", "<im<image>age>", "<image_<image>token>", "<<image>image>", "</</s>s>", "<s><unk></image>"]
)
def test_typed_marks_stay_text(repository, typed):
    """They add no placeholder, no end of the text, and nested spellings become no mark either."""
    processor = repository.processor
    content = [{"type": "image"}, {"type": "text", "text": f"What is {typed} this?"}]
    ids = encode(processor, [{"role": "user", "content": content}])["input_ids"][0].tolist()
    special = set(processor.tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [
        i for i in encode(processor, [{"role": "user", "content": content[:1]}])["input_ids"][0].tolist() if i in special
    ]


def test_two_parts_of_a_question_spell_no_mark(session, repository):
    """The place of a scan that was placed before is left out; what stood on its two sides is one text then."""
    session.tasks, model = Tasks({"scans_per_question": 1}, []), Echo()
    list(session.ask("What is it?", model))
    *_, turn = session.ask("Is it <im[1]age>?", model)
    assert turn.parts == [{"type": "text", "text": "Is it <image>?"}]
    ids = encode(repository.processor, turn.messages()[:1])["input_ids"][0].tolist()
    assert repository.processor.image_token_id not in ids


def test_there_is_room_for_so_many_visitors(tmp_path, store, monkeypatch):
    monkeypatch.setattr(limits, "SESSIONS", 2)
    sessions = Sessions(tmp_path, store, lambda: Tasks({}, []))
    sessions.get("a"), sessions.get("b")
    with pytest.raises(AnswerError, match="as many visitors as it can serve"):
        sessions.get("c")
    sessions.end("a")
    assert sessions.get("c") is sessions.get("c")
