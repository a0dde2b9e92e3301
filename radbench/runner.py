"""Ask a model: requests → batches → predictions, resumable, on one process or several.

Batches follow from the requests and the batch size alone, and each one is answered by itself. So it does not matter which
process answers a batch, or whether a run was interrupted: the predictions are the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
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
    done = read_journal(journal)
    mine = range(processes.rank, len(batches), processes.count)
    left = [number for number in mine if number not in done]
    total = sum(len(batches[number]) for number in mine)
    answered = total - sum(len(batches[number]) for number in left)
    progress(answered, total)
    with open(journal / f"{processes.rank:05d}.jsonl", "a", encoding="utf-8") as file:
        for number, answers in _answer_in_order(left, batches, model, reader):
            predictions = [_prediction(request, answer) for request, answer in zip(batches[number], answers, strict=True)]
            # The newline in front ends a line that a killed process left unfinished.
            line = json.dumps({"batch": number, "predictions": [asdict(each) for each in predictions]}, ensure_ascii=False)
            file.write(f"\n{line}\n")
            file.flush()
            answered += len(predictions)
            progress(answered, total)


def read_journal(folder: Path) -> dict[int, list[Prediction]]:
    """Batch number → predictions, from the journals of all processes. A line that was cut off does not count."""
    done: dict[int, list[Prediction]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                done[row["batch"]] = [Prediction.from_line(json.dumps(each)) for each in row["predictions"]]
    return done


def _answer_in_order(
    numbers: Sequence[int], batches: Sequence[Batch], model: Model, reader: ScanReader
) -> Iterator[tuple[int, list[Answer]]]:
    """Batches and their answers; the scans of the next batch are read while the model works on one."""

    def prepare(number: int) -> Any:
        keys = dict.fromkeys(key for request in batches[number] for key in request.scans)
        scans = {key: apply_change(reader.read(key.record, key.index), key.change) for key in keys}
        return model.prepare(batches[number], scans)

    remaining = iter(numbers)
    with ThreadPoolExecutor(1) as pool:
        waiting = [(number, pool.submit(prepare, number)) for number in islice(remaining, 1)]
        while waiting:
            number, prepared = waiting.pop()
            ready = prepared.result()
            waiting = [(following, pool.submit(prepare, following)) for following in islice(remaining, 1)]
            yield number, model.answer(ready)


def _prediction(request: Request, answer: Answer) -> Prediction:
    text = answer.text
    if not request.generates and answer.likelihoods is not None:
        likelihoods = answer.likelihoods
        text = max(likelihoods, key=lambda option: likelihoods[option].mean)
    return Prediction(request.item, request.condition, text, answer.likelihoods, answer.prompt, request.shown)
