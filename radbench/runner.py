"""Ask a model: requests → batches → predictions, resumable, on one process or several.

Batches follow from the requests and the batch size alone, and each one is answered by itself. So it does not matter which
process answers a batch, or whether a run was interrupted: the predictions are the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from radfm.medmd.schema import Record

from .conditions import Request, apply_change
from .models.base import Answer, Model
from .predictions import Prediction
from .processes import Processes
from .records import ScanReader

Batch = list[Request]
Progress = Callable[[int, int], None]
# What a batch holds at most, besides the number of requests: patches of its scans, and tokens with padding.
MAX_PATCHES, MAX_TOKENS = 32_768, 32_768


def plan_batches(
    requests: Sequence[Request], model: Model, records: Mapping[str, Record], position: Mapping[str, int], batch_size: int
) -> list[Batch]:
    """Requests about the same scans stand together, so that a scan is encoded once for all its questions.

    Args:
        records: id → record, for the shapes of its scans.
        position: id → place in the files, so that scans are read in the order in which they are stored.
        batch_size: the most requests of a batch.
    """

    def place(request: Request) -> tuple[Any, ...]:
        scans = tuple((position[key.record], key.index, key.change) for key in request.scans)
        return scans, request.item, request.condition

    def fits(batch: Batch) -> bool:
        scans = {key for request in batch for key in request.scans}
        patches = sum(model.scan_cost(records[key.record].shapes[key.index]) for key in scans)
        longest = max(tokens[request.item, request.condition] for request in batch)
        return len(batch) <= batch_size and patches <= MAX_PATCHES and len(batch) * longest <= MAX_TOKENS

    tokens = {(request.item, request.condition): model.prompt_cost(request) for request in requests}
    batches: list[Batch] = []
    for request in sorted(requests, key=place):
        if batches and fits([*batches[-1], request]):
            batches[-1].append(request)
        else:
            batches.append([request])
    return batches


def run_batches(
    batches: Sequence[Batch], model: Model, reader: ScanReader, journal: Path, processes: Processes, progress: Progress
) -> None:
    """Answer this process's share of the batches that no journal has yet, and write each to the journal when it is done.

    Args:
        journal: folder of the journals of all processes.
        progress: called with the requests that are done and the requests there are, of this process.
    """
    done = read_journal(journal).keys()
    mine = batches[processes.rank :: processes.count]
    left = [batch for batch in mine if any((request.item, request.condition) not in done for request in batch)]
    total = sum(map(len, mine))
    answered = total - sum(map(len, left))
    progress(answered, total)
    with open(journal / f"{processes.rank:05d}.jsonl", "a", encoding="utf-8") as file:
        for batch, answers in _answer_in_order(left, model, reader):
            predictions = [_prediction(request, answer) for request, answer in zip(batch, answers, strict=True)]
            # The newline in front ends a line that a killed process left unfinished.
            file.write("\n" + json.dumps([prediction.to_line() for prediction in predictions]) + "\n")
            file.flush()
            answered += len(batch)
            progress(answered, total)


def read_journal(folder: Path) -> dict[tuple[str, str], Prediction]:
    """(item, condition) → prediction, from the journals of all processes. A line that was cut off does not count."""
    done: dict[tuple[str, str], Prediction] = {}
    for file in sorted(folder.glob("*.jsonl")):
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    batch = json.loads(line)
                except ValueError:
                    continue
                for prediction in map(Prediction.from_line, batch):
                    done[prediction.item, prediction.condition] = prediction
    return done


def _answer_in_order(batches: Sequence[Batch], model: Model, reader: ScanReader) -> Iterator[tuple[Batch, list[Answer]]]:
    """Batches and their answers; the scans of the next batch are read while the model works on one."""

    def prepare(batch: Batch) -> Any:
        keys = dict.fromkeys(key for request in batch for key in request.scans)
        return model.prepare(batch, {key: apply_change(reader.read(key.record, key.index), key.change) for key in keys})

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(prepare, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            assert following is not None
            prepared = following.result()
            following = pool.submit(prepare, batches[number + 1]) if number + 1 < len(batches) else None
            yield batch, model.answer(prepared)


def _prediction(request: Request, answer: Answer) -> Prediction:
    text = answer.text
    if not request.generates and answer.likelihoods is not None:
        likelihoods = answer.likelihoods
        text = max(likelihoods, key=lambda option: likelihoods[option].mean)
    return Prediction(request.item, request.condition, text, answer.likelihoods, answer.prompt, request.shown)
