"""Which questions are rated, and in which order a rater sees their answers: decided once, kept in `questions.json`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..compare import read_results
from ..items import BENCH_TASKS, BenchError
from ..readings import has_labels
from ..scores import write_json

QUESTIONS = "questions.json"


@dataclass(frozen=True)
class Question:
    """A question with its answers, sorted by model.

    Args:
        item: id of the item.
        record: id of the record, whose scans are shown.
        task: one of `BENCH_TASKS`.
        text: the question, with the history before it.
        reference: the right answer.
        answers: model → what it answered.
    """

    item: str
    record: str
    task: str
    text: str
    reference: str
    answers: dict[str, str]

    def blind_order(self, rater: str, seed: int) -> list[str]:
        """The models in the order in which a rater sees their answers: random over questions, the same at each visit.

        Example:
            >>> question = Question("a#open", "a", "vqa", "?", "yes", {"one": "yes", "two": "no"})
            >>> sorted(question.blind_order("r", 0))
            ['one', 'two']
        """
        return sorted(self.answers, key=lambda model: _hash("order", seed, rater, self.item, model))


@dataclass(frozen=True)
class Rating:
    """What is rated: `questions.json` as it is read."""

    seed: int
    models: tuple[str, ...]
    questions: tuple[Question, ...]


def prepare(folders: Sequence[Path], out: Path, tasks: Sequence[str], count: int, seed: int) -> Rating:
    """Draw questions of which all models answered the same words, or read those that an earlier call drew.

    Only questions whose answer is a text are drawn, because of closed ones a machine knows whether they are right; closed
    ones are drawn where `tasks` names tasks, or where there are no others.

    Args:
        folders: two and more results folders.
        out: the folder of the ratings.
        tasks: of `BENCH_TASKS`; empty for all.
        count: how many questions at most.
        seed: decides which, and the order of answers.

    Raises:
        BenchError: fewer than two folders, other models than at the first call, an unknown task, or no question in common.
    """
    unknown = [task for task in tasks if task not in BENCH_TASKS]
    if unknown:
        raise BenchError(f"task {unknown[0]!r} is none of {', '.join(BENCH_TASKS)}.")
    if len(folders) < 2:
        raise BenchError("answers are rated against each other: name two results folders and more.")
    runs = [read_results(folder) for folder in folders]
    models = tuple(run.name for run in runs)
    if len(set(models)) < len(models):
        raise BenchError(f"two of these results are of one model ({models[0]}): ratings could not be told apart.")
    if (out / QUESTIONS).is_file():
        rating = read_questions(out)
        if sorted(rating.models) != sorted(models):
            raise BenchError(f"{out}: holds ratings of {', '.join(rating.models)}; name another folder with --out.")
        return rating
    answers = [{pair.item.id: pair for found in run.pairs.values() for pair in found} for run in runs]
    shared = [
        pair.item
        for id_, pair in answers[0].items()
        if all(id_ in other and other[id_].item == pair.item for other in answers[1:])
        and pair.item.form != "likelihood"
        and (not tasks or pair.item.bench_task in tasks)
    ]
    texts = [item for item in shared if not has_labels(item.bench_task, item.form)]
    chosen = sorted(texts if texts and not tasks else shared, key=lambda item: _hash("draw", seed, item.id))[:count]
    if not chosen:
        raise BenchError("these results have no question in common that could be rated.")
    questions = tuple(
        Question(
            item.id,
            item.record,
            item.bench_task,
            _conversation(item),
            item.reference,
            {run.name: found[item.id].prediction.answer for run, found in zip(runs, answers, strict=True)},
        )
        for item in chosen
    )
    rating = Rating(seed, models, questions)
    out.mkdir(parents=True, exist_ok=True)
    write_json(asdict(rating), out / QUESTIONS)
    return rating


def read_questions(out: Path) -> Rating:
    """`questions.json` of a folder.

    Raises:
        BenchError: it is not there, or is no such file.
    """
    file = out / QUESTIONS
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        questions = tuple(Question(**question) for question in content["questions"])
        return Rating(content["seed"], tuple(content["models"]), questions)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{file}: cannot be read ({error}); `radfm bench rate` makes it.") from error


def _conversation(item: Any) -> str:
    parts = []
    for message in item.messages:
        text = "".join(part.text or "" for part in message.content)
        parts.append(text if message.role == "user" else f"→ {text}")
    return "\n".join(parts)


def _hash(*values: object) -> str:
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()
