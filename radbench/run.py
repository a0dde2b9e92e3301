"""One run: items and data → predictions in a folder. Interrupted, the same call goes on."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from radfm.medmd.schema import Record

from .baselines import answer_without_model
from .conditions import MODEL_CONDITIONS, STABILITY, make_requests
from .draw import draw
from .items import BENCHMARK, VERSION, BenchError, Item, fingerprint, read_items, write_items
from .leaks import find_leaks
from .models.base import Model
from .predictions import Prediction, write_predictions
from .processes import Processes
from .records import ScanReader, data_fingerprint, read_held_out, read_light
from .runner import Progress, plan_batches, read_journal, run_batches

ITEMS_FILE, PREDICTIONS_FILE, RUN_FILE, JOURNAL = "items.jsonl", "predictions.jsonl", "run.json", ".journal"
PACKAGES = ("radfm", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class RunOptions:
    """What is run.

    Args:
        data: a data set that `radfm data build` finished.
        out: the folder of the results, new or with the same run unfinished.
        items: a file of `radfm bench draw`; None draws the items of the split.
        split: test, or validation where a data set has no other held-out records.
        seed: of the draw, of other patients and of shuffled options.
        batch_size: the most questions that the model is asked at once; an interrupted run may go on with another one.
        stability: also ask about flipped, resliced and rewindowed scans.
        train_data: the data set that the model was trained on, for the leak check; None takes `data`.
    """

    data: Path
    out: Path
    items: Path | None = None
    split: str = "test"
    seed: int = 0
    batch_size: int = 16
    stability: bool = False
    train_data: Path | None = None


def load_items(data: Path, items: Path | None, split: str, seed: int) -> tuple[list[Item], dict[str, Record], list[str]]:
    """The items of a run, all records of the split by id (without scans), and warnings.

    Raises:
        BenchError: no data set, no such split, or items of another data set.
    """
    records = {record.id: record for record in read_held_out(data, split)}
    if items is None:
        drawn = draw(records.values(), seed)
        left_out = [f"{count:,} records are no items ({reason})." for reason, count in drawn.left_out.items()]
        if not drawn.items:
            raise BenchError(f"{data}: no record of its {split} split asks a question.")
        return drawn.items, records, left_out
    frozen = read_items(items)
    for item in frozen:
        record = records.get(item.record)
        if record is None:
            raise BenchError(f"{items}: the record of {item.id} is not in the {split} split of {data}.")
        if record.image_sha256 != item.image_sha256:
            raise BenchError(f"{items}: the scans of {item.id} are others in {data}; draw the items of this data set.")
    return frozen, records, []


def run(options: RunOptions, load_model: Callable[[], Model], processes: Processes, progress: Progress) -> None:
    """Ask a model all items in all conditions; write `items.jsonl`, `predictions.jsonl` and `run.json`.

    Args:
        load_model: called when data and items are found to be in order, because weights take long to load.
        processes: this process among those that share the run.
        progress: called with the questions that are answered and the questions there are.

    Raises:
        BenchError: the data, the items, the model or the folder do not fit.
        DataError: the data set is damaged.
    """
    out, journal = options.out, options.out / JOURNAL
    items, records, warnings = load_items(options.data, options.items, options.split, options.seed)
    if options.split == "validation":
        warnings.append("The items are of a validation split: settings of the model may have been chosen by them.")
    training = ("train",) if options.split == "validation" else ("train", "validation")
    leaks = find_leaks(items, options.train_data or options.data, training) if processes.is_main else {}
    model = load_model()
    supported_items = [item for item in items if model.scores_options or item.form != "likelihood"]
    if len(supported_items) < len(items):
        count = len(items) - len(supported_items)
        warnings.append(f"{count:,} items of the form likelihood were not asked: the model scores no options.")
    conditions = (*MODEL_CONDITIONS, *(STABILITY if options.stability else ()))
    requests = make_requests(supported_items, records, conditions, options.seed)
    reader = ScanReader(options.data)
    batches = plan_batches(requests, model, records, reader.position, options.batch_size)
    settings = _settings(options, items, model, conditions)
    if processes.is_main:
        _open_folder(out, settings)
        write_items(items, out / ITEMS_FILE)
    processes.wait()
    if not (out / PREDICTIONS_FILE).exists():
        run_batches(batches, model, reader, journal, processes, progress)
        processes.wait()
        if processes.is_main:
            predictions = list(read_journal(journal).values())
            predictions += _answers_without_model(options, items, warnings)
            for kind, leak in leaks["leaks"].items():
                warnings.append(f"{leak['items']:,} items have the {kind} as the training data {leaks['data']}.")
            notes = {"batch_size": options.batch_size, "leak_check": leaks, "warnings": [*warnings, *model.warnings]}
            _write_json({**settings, **notes}, out / RUN_FILE)
            write_predictions(predictions, out / PREDICTIONS_FILE)
    if processes.is_main:
        shutil.rmtree(journal, ignore_errors=True)


def _settings(options: RunOptions, items: Sequence[Item], model: Model, conditions: Sequence[str]) -> dict[str, Any]:
    """What decides the predictions: a run goes on only with equal settings."""
    return {
        "benchmark": BENCHMARK,
        "version": VERSION,
        "model": model.describe(),
        "items_fingerprint": fingerprint(items),
        "data_fingerprint": data_fingerprint(options.data),
        "settings": {"split": options.split, "seed": options.seed, "conditions": list(conditions)},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _open_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a new folder; refuse one that holds something else."""
    file = out / RUN_FILE
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name, value in settings.items() if earlier.get(name) != json.loads(json.dumps(value))]
        if different:
            raise BenchError(f"{out}: holds a run with another {' and '.join(different)}; choose another --out.")
    elif out.exists() and any(out.iterdir()):
        raise BenchError(f"{out}: is not empty and holds no run; choose a new folder with --out.")
    (out / JOURNAL).mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _write_json(settings, file)


def _answers_without_model(options: RunOptions, items: Sequence[Item], warnings: list[str]) -> list[Prediction]:
    """The baselines that the training split gives; a warning where there is none."""
    training = draw(read_light(options.data, "train"), options.seed).items
    if not training:
        warnings.append(f"{options.data} has no train split: there are no baselines of frequent and nearest answers.")
    return answer_without_model(items, training, options.seed)


def _write_json(value: dict[str, Any], file: Path) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
