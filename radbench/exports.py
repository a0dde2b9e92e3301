"""Predictions for the viewers of other harnesses: Inspect's `.eval` log, and lmms-eval's JSONL of samples.

Scores stay ours: the logs hold each question, its reference, the answer, and how the main metric reads it.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .items import BENCHMARK, VERSION, BenchError, read_items
from .predictions import SCAN, read_predictions
from .readings import Pair, Tools, labels_of, main_measurement, main_metric
from .scores import model_name, pair_up, read_run, sort_keys

FORMATS = ("inspect", "lmms-eval")


def export(out: Path, name: str, folder: Path) -> list[Path]:
    """Write the answers to the scans of a results folder, a file for each kind of question.

    Args:
        out: the results folder.
        name: one of `FORMATS`.
        folder: where the files go.

    Raises:
        BenchError: the format is unknown, its package is missing, or `out` is no results folder.
    """
    if name not in FORMATS:
        raise BenchError(f"format {name!r} is none of {', '.join(FORMATS)}.")
    items = read_items(out / "items.jsonl")
    pairs = pair_up(items, read_predictions(out / "predictions.jsonl"))
    run, tools = read_run(out), Tools(labels=labels_of(items))
    folder.mkdir(parents=True, exist_ok=True)
    write = _write_inspect if name == "inspect" else _write_lmms_eval
    files = []
    for key in sort_keys({key for key, condition in pairs if condition == SCAN}):
        found = pairs[key, SCAN]
        values = [float(row[0]) if row[1] else None for row in main_measurement(found, tools).rows]
        files.append(write(folder, f"radbench_{key[0]}_{key[1]}", main_metric(*key), found, values, run))
    return files


def _write_lmms_eval(
    folder: Path, task: str, metric: str, pairs: Sequence[Pair], values: Sequence[float | None], run: dict[str, Any]
) -> Path:
    """A line a sample, with the keys of lmms-eval's `--log_samples`."""
    file = folder / f"samples_{task}.jsonl"
    with open(file, "w", encoding="utf-8") as lines:
        for number, (pair, value) in enumerate(zip(pairs, values, strict=True)):
            item, prediction = pair.item, pair.prediction
            row = {
                "doc_id": number,
                "doc": {"id": item.id, "question": item.question, "options": list(item.options), "record": item.record},
                "target": item.reference,
                "arguments": [[prediction.prompt]],
                "resps": [[prediction.answer]],
                "filtered_resps": [prediction.answer],
                "input": prediction.prompt,
                metric: value,
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


def _write_inspect(
    folder: Path, task: str, metric: str, pairs: Sequence[Pair], values: Sequence[float | None], run: dict[str, Any]
) -> Path:
    """An `.eval` file that `inspect view` opens."""
    try:
        # By name: Inspect is 47 packages, which only its viewer's users want.
        log_module, model_module, scorer = map(import_module, ("inspect_ai.log", "inspect_ai.model", "inspect_ai.scorer"))
    except ImportError as error:
        raise BenchError(f"the format inspect needs Inspect ({error}): pip install inspect-ai.") from error
    samples = []
    for pair, value in zip(pairs, values, strict=True):
        item, prediction = pair.item, pair.prediction
        scored = {} if value is None else {metric: scorer.Score(value=value, answer=prediction.answer)}
        samples.append(
            log_module.EvalSample(
                id=item.id,
                epoch=1,
                input=prediction.prompt or item.question,
                choices=list(item.options) or None,
                target=item.reference,
                output=model_module.ModelOutput.from_content(model_name(run), prediction.answer),
                scores=scored,
                metadata={"record": item.record, "group": item.group, "source": item.source},
            )
        )
    known = [value for value in values if value is not None]
    mean = {"mean": log_module.EvalMetric(name="mean", value=sum(known) / len(known))} if known else {}
    log = log_module.EvalLog(
        status="success",
        eval=log_module.EvalSpec(
            # The fingerprint stands for the time: two exports of one run are equal.
            created="1970-01-01T00:00:00+00:00",
            task=task,
            dataset=log_module.EvalDataset(
                name=f"{BENCHMARK} {VERSION}", samples=len(samples), sample_ids=[s.id for s in samples]
            ),
            model=model_name(run),
            config=log_module.EvalConfig(),
            metadata={"items_fingerprint": run.get("items_fingerprint", "")},
        ),
        results=log_module.EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[log_module.EvalScore(name=metric, scorer=metric, metrics=mean)],
        ),
        samples=samples,
    )
    file = folder / f"{task}.eval"
    log_module.write_eval_log(log, str(file))
    return file
