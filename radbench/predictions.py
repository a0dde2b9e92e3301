"""What a model answered: one prediction an item and condition, in `predictions.jsonl`.

>>> likelihoods = {"yes": Likelihood(-0.5, 1), "no": Likelihood(-1.5, 2)}
>>> prediction = Prediction("csv/1/modality/0#yes_no", "scan", "yes", likelihoods)
>>> Prediction.from_line(prediction.to_line()) == prediction
True
>>> prediction.likelihoods["no"].mean
-0.75
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .items import BenchError

SCAN = "scan"  # the condition of the model itself; all others are baselines or changes of the scan
DECIMALS = 4  # of a log-probability; batches of another size differ behind the sixth


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of an answer after its prompt.

    Args:
        sum: over the tokens of the answer and the end token, in nats.
        tokens: how many these are.
    """

    sum: float
    tokens: int

    @property
    def mean(self) -> float:
        """Per token, so that long options are not punished for their length."""
        return self.sum / self.tokens


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Args:
        item: id of the item.
        condition: "scan", or the name of a baseline or of a changed scan (`baselines.CONDITIONS`).
        answer: the text that the model generated; for the form likelihood the option of the greatest mean
            log-probability, empty where the model gives no log-probabilities.
        likelihoods: option → log-probability; None where the item has no options or the model gives none.
        prompt: the text that the model got; empty for baselines that need no model.
        options: in the order in which the question showed them, A first; empty where it showed none.
    """

    item: str
    condition: str
    answer: str
    likelihoods: dict[str, Likelihood] | None = None
    prompt: str = ""
    options: tuple[str, ...] = ()

    def to_line(self) -> str:
        """The prediction as one line of JSON, keys in the order of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> "Prediction":
        """The prediction of a line of `predictions.jsonl`.

        Raises:
            BenchError: the line is no prediction.
        """
        try:
            row: dict[str, Any] = json.loads(line)
            if row["likelihoods"] is not None:
                row["likelihoods"] = {option: Likelihood(**value) for option, value in row["likelihoods"].items()}
            return cls(**{**row, "options": tuple(row["options"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BenchError(f"is no line of predictions.jsonl: {line[:80]!r} ({error}).") from error


def write_predictions(predictions: Iterable[Prediction], file: Path) -> None:
    """Write `predictions.jsonl`, sorted by condition ("scan" first) and item; first to `NAME.tmp`, so that it is whole."""
    ordered = sorted(
        predictions, key=lambda prediction: (prediction.condition != SCAN, prediction.condition, prediction.item)
    )
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("".join(f"{prediction.to_line()}\n" for prediction in ordered), encoding="utf-8")
    temporary.replace(file)


def read_predictions(file: Path) -> list[Prediction]:
    """The predictions of a file that `write_predictions` wrote.

    Raises:
        BenchError: there is no such file, a line is no prediction, or an item is answered twice in a condition.
    """
    if not file.is_file():
        raise BenchError(f"{file}: there is no such file; `radfm bench run` makes it.")
    predictions = []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                predictions.append(Prediction.from_line(line))
            except BenchError as error:
                raise BenchError(f"{file}, line {number}: {error}") from error
    if len({(prediction.item, prediction.condition) for prediction in predictions}) < len(predictions):
        raise BenchError(f"{file}: an item is answered twice in one condition; run `radfm bench run` again in a new folder.")
    return predictions
