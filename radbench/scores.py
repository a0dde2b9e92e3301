"""Predictions → `scores.json`: every task, form, metric and condition with its interval, and what may be concluded."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from . import statistics
from .conditions import MODEL_CONDITIONS, SAME_LABEL, STABILITY, TEXT_BASELINES
from .items import BENCH_TASKS, BENCHMARK, FORMS, VERSION, BenchError, Item, read_items
from .metrics import blind_spots, calibration, closed
from .metrics.medical_terms import read_term_list
from .predictions import SCAN, Prediction, read_predictions
from .readings import Pair, Tools, has_labels, labels_of, main_measurement, main_metric, measure, yes_probabilities
from .statistics import Measurement

SCORES = "scores.json"
BREAKDOWNS = ("modality", "body_part", "source", "config", "task")
# Conditions that a good model need not beat: another patient's scan with the same answer, the options in another order.
NOT_TO_BEAT = (SAME_LABEL, "shuffled options")
ALPHA = 0.05
FEW_GROUPS = 30
ORACLE = "the nearest training answer is looked up by the title of the right answer, which no model is told"
# The terms that ship with the training code: files of words and no code, so that the benchmark needs none of it.
VOCABULARY = Path(__file__).parent.parent / "training" / "vocabulary"
Key = tuple[str, str]  # (bench_task, form)


def default_tools(items: Sequence[Item]) -> Tools:
    """The term list that ships, the labels of the items, no language model."""
    files = [VOCABULARY / name for name in ("mesh.txt", "chest_findings.txt", "report_words.txt")]
    extractor = None
    if all(file.is_file() for file in files):
        extractor = read_term_list(files, leave_out=VOCABULARY / "ordinary_words.txt")
    return Tools(extractor, None, labels_of(items))


def score_run(out: Path, tools: Tools | None = None) -> None:
    """Score a folder that `radfm bench run` filled, and write `scores.json` there.

    Args:
        out: the folder with items.jsonl, predictions.jsonl and run.json.
        tools: term extractor and language model; `default_tools` where None.

    Raises:
        BenchError: a file is missing or broken, or a prediction is about an item that is not there.
    """
    items = read_items(out / "items.jsonl")
    run = read_run(out)
    scores = score(items, read_predictions(out / "predictions.jsonl"), tools or default_tools(items))
    head = {
        "benchmark": BENCHMARK,
        "version": VERSION,
        "model": model_name(run),
        "items_fingerprint": run.get("items_fingerprint", ""),
    }
    scores["warnings"] = [*map(str, run.get("warnings", ())), *scores["warnings"]]
    write_json({**head, **scores}, out / SCORES)


def read_run(out: Path) -> dict[str, Any]:
    """`run.json` of a folder.

    Raises:
        BenchError: it is not there.
    """
    return _read_json(out / "run.json", "`radfm bench run` makes it")


def model_name(run: Mapping[str, Any]) -> str:
    """The model of a `run.json`: its Hub id, its name on an endpoint, or the last part of its folder's path.

    Example:
        >>> model_name({"model": {"name": "/home/me/models/demo"}}), model_name({"model": "owner/demo"})
        ('demo', 'owner/demo')
    """
    model = run.get("model", "unknown")
    name = str(model.get("name", "unknown")) if isinstance(model, Mapping) else str(model)
    return Path(name).name if Path(name).is_absolute() else name


def read_scores(out: Path) -> dict[str, Any]:
    """`scores.json` of a folder.

    Raises:
        BenchError: it is not there.
    """
    return _read_json(out / SCORES, "`radfm bench score` makes it")


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise BenchError(f"{file}: cannot be read ({error.strerror}); {remedy}.") from error
    except ValueError as error:
        raise BenchError(f"{file}: is no JSON object ({error}).") from error


def write_json(content: Mapping[str, Any], file: Path) -> None:
    """Write JSON that has no NaN, first to a file beside it, so that it is whole."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(file)


def score(items: Sequence[Item], predictions: Iterable[Prediction], tools: Tools) -> dict[str, Any]:
    """The lists of `scores.json`: scores, breakdowns, significance, calibration, blind_spots, warnings.

    Raises:
        BenchError: there is nothing to score, or a condition is unknown.
    """
    pairs = pair_up(items, predictions)
    order = (*MODEL_CONDITIONS, *TEXT_BASELINES, *STABILITY)
    present = {condition for _, condition in pairs}
    conditions = [condition for condition in order if condition in present]
    if unknown := present - set(order):
        raise BenchError(f"condition {min(unknown)!r} is none of {', '.join(order)}.")
    keys = sort_keys({key for key, _ in pairs})
    if SCAN not in conditions:
        raise BenchError('no prediction has the condition "scan": there is nothing to score.')
    scores, breakdowns, significance, diagrams = [], [], [], {}
    for key in keys:
        scan = pairs.get((key, SCAN), [])
        for condition in conditions:
            if found := pairs.get((key, condition)):
                groups = groups_of(found)
                scores += [score_entry(key, condition, m, groups) for m in measure(found, tools)]
                if condition in STABILITY and scan:
                    scores.append(score_entry(key, condition, *_stability(scan, found)))
                elif condition != SCAN and scan:
                    significance.append(_compare(key, condition, scan, found, tools))
        breakdowns += _breakdowns(key, scan, tools)
        if key[1] == "yes_no" and (known := yes_probabilities(scan))[0]:
            diagrams[key[0]] = [vars(bin_) for bin_ in calibration.reliability(*known)]
    correct_p_values(significance)
    for row in significance:
        row["beats"] = row["p_holm"] is not None and row["p_holm"] < ALPHA and row["difference"] > 0
    open_texts = [item.reference for item in items if item.form == "open" and not has_labels(item.bench_task, item.form)]
    return {
        "scores": scores,
        "breakdowns": breakdowns,
        "significance": significance,
        "calibration": diagrams,
        "blind_spots": blind_spots.measure(open_texts, tools.extractor, tools.text_model),
        "warnings": _warnings(keys, pairs, significance),
    }


def pair_up(items: Sequence[Item], predictions: Iterable[Prediction]) -> dict[tuple[Key, str], list[Pair]]:
    """((bench_task, form), condition) → its pairs, in the order of the item ids.

    Raises:
        BenchError: a prediction is about an item that is not there.
    """
    by_id = {item.id: item for item in items}
    found: defaultdict[tuple[Key, str], list[Pair]] = defaultdict(list)
    for prediction in sorted(predictions, key=lambda prediction: prediction.item):
        item = by_id.get(prediction.item)
        if item is None:
            raise BenchError(f"{prediction.item}: is predicted and no item; predictions and items are of different runs.")
        found[(item.bench_task, item.form), prediction.condition].append(Pair(item, prediction))
    return dict(found)


def sort_keys(keys: Iterable[Key]) -> list[Key]:
    """Kinds of question in the order of the paper's tasks."""
    return sorted(keys, key=lambda key: (BENCH_TASKS.index(key[0]), FORMS.index(key[1])))


def part_title(key: Key) -> str:
    """How warnings begin that are about one kind of question.

    >>> part_title(("modality", "yes_no"))
    'modality, yes/no'
    """
    return f"{key[0]}, {key[1].replace('_', '/')}"


def groups_of(pairs: Sequence[Pair]) -> list[str]:
    """The patient of each pair."""
    return [pair.item.group for pair in pairs]


def score_entry(key: Key, condition: str, measurement: Measurement, groups: Sequence[str]) -> dict[str, Any]:
    """A row of `scores.json`."""
    value = measurement.score
    return {
        "bench_task": key[0],
        "form": key[1],
        "metric": measurement.name,
        "condition": condition,
        "value": None if value != value else round(value, 6),
        "n": measurement.used,
        "groups": len({group for group, row in zip(groups, measurement.rows, strict=True) if row.any()}),
        **statistics.to_json(statistics.cluster_interval(measurement, groups)),
        "signature": measurement.signature,
    }


def _stability(scan: Sequence[Pair], changed: Sequence[Pair]) -> tuple[Measurement, list[str]]:
    """How often the answer stays as it was when the scan is changed so that nothing in it changes."""
    answers = {pair.item.id: closed.normalise(pair.prediction.answer) for pair in scan}
    both = [pair for pair in changed if pair.item.id in answers]
    same = [float(closed.normalise(pair.prediction.answer) == answers[pair.item.id]) for pair in both]
    return statistics.mean_of("unchanged answers", same, "share of answers equal to those of the scan"), groups_of(both)


def _compare(key: Key, condition: str, scan: Sequence[Pair], baseline: Sequence[Pair], tools: Tools) -> dict[str, Any]:
    """The main metric of the model against a baseline, on the items that both answered."""
    shared = {pair.item.id for pair in scan} & {pair.item.id for pair in baseline}
    first, second = ([pair for pair in pairs if pair.item.id in shared] for pairs in (scan, baseline))
    test = statistics.Difference(float("nan"), float("nan"), 0, 0)
    if shared:
        measured = main_measurement(first, tools), main_measurement(second, tools)
        test = statistics.sign_flip_test(*measured, groups_of(first))
    return {
        "bench_task": key[0],
        "form": key[1],
        "condition": condition,
        "metric": main_metric(*key),
        "difference": None if test.n == 0 else round(test.difference, 6),
        "n": test.n,
        "groups": test.groups,
        "p": None if isnan(test.p) else test.p,
    }


def correct_p_values(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row of a table `p_holm`, its `p` corrected for all of them; None where `p` is None."""
    corrected = statistics.holm([float("nan") if row["p"] is None else row["p"] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = None if isnan(p) else p


def _breakdowns(key: Key, pairs: Sequence[Pair], tools: Tools) -> list[dict[str, Any]]:
    rows = []
    for by in BREAKDOWNS:
        parts: defaultdict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            parts[getattr(pair.item, by) or "unknown"].append(pair)
        if len(parts) > 1:
            for name, part in sorted(parts.items()):
                entry = score_entry(key, SCAN, main_measurement(part, tools), groups_of(part))
                rows.append({"by": by, "part": name, **entry})
    return rows


def verdict(test: Mapping[str, Any]) -> str:
    """What a row of `significance` says of its baseline: beaten, better (than the model), or not beaten (neither).

    >>> verdict({"beats": False, "p_holm": 0.01, "difference": -0.3}), verdict({"beats": False, "p_holm": None})
    ('better', 'not beaten')
    """
    if test["beats"]:
        return "beaten"
    significant = test["p_holm"] is not None and test["p_holm"] < ALPHA
    return "better" if significant and test["difference"] < 0 else "not beaten"


def best_baseline(scores: Mapping[str, Any], key: Key) -> dict[str, Any] | None:
    """The row of `scores.json` with the highest main metric among the baselines of a kind of question; None without one."""
    tested = {row["condition"] for row in scores["significance"] if (row["bench_task"], row["form"]) == key}
    rows = [
        row
        for row in scores["scores"]
        if (row["bench_task"], row["form"], row["metric"]) == (*key, main_metric(*key))
        and row["condition"] in tested.difference(NOT_TO_BEAT)
        and row["value"] is not None
    ]
    return max(rows, key=lambda row: row["value"], default=None)


def _warnings(
    keys: Sequence[Key], pairs: Mapping[tuple[Key, str], list[Pair]], significance: Sequence[Mapping[str, Any]]
) -> list[str]:
    found = []
    for key in keys:
        scan = pairs.get((key, SCAN), [])
        title = part_title(key)
        rows = [row for row in significance if (row["bench_task"], row["form"]) == key and row["p"] is not None]
        lost = [row["condition"] for row in rows if not row["beats"] and row["condition"] not in NOT_TO_BEAT]
        if lost:
            found.append(f"{title}: the model does not beat these baselines significantly: {', '.join(lost)}.")
        better = [row["condition"] for row in rows if row["condition"] in lost and verdict(row) == "better"]
        if better:
            found.append(f"{title}: these baselines are significantly better than the model: {', '.join(better)}.")
        if any(row["beats"] for row in rows if row["condition"] == "shuffled options"):
            found.append(
                f"{title}: the model loses when the options stand in another order, so it does not choose by content alone."
            )
        if key[0] == "rationale" and any(row["condition"] == "nearest training answer" for row in rows):
            found.append(f"{title}: {ORACLE}.")
        groups = len({pair.item.group for pair in scan})
        if scan and groups < FEW_GROUPS:
            s = "" if groups == 1 else "s"
            found.append(f"{title}: only {groups} patient{s} or image{s}; the interval is wide and itself uncertain.")
        seen = sum(pair.item.comparison_only for pair in scan)
        if seen:
            found.append(f"{title}: {seen} of {len(scan)} items are of sets that RadFM was trained on; for comparison only.")
        for note in sorted({pair.item.note for pair in scan if pair.item.note}):
            count = sum(pair.item.note == note for pair in scan)
            found.append(f"{title}: {count} of {len(scan)} items: {note}.")
        if key[1] in ("yes_no", "choice", "likelihood") and scan and not any(pair.prediction.likelihoods for pair in scan):
            found.append(f"{title}: the model gave no log-probabilities: no reading by likelihood, no calibration.")
    return found
