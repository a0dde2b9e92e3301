"""Scores in the Hub's formats, and RadBench's items as a data set: first a plan that can be read, then the push.

A model card's `model-index` takes several metrics with intervals. A file in `.eval_results/` takes one number per task of a
data set that is registered as a benchmark, so only the main metric of each kind of question goes there, with the interval in
its notes. huggingface_hub writes whatever it gets (None, NaN, an empty task): every value is checked here.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radfm.medmd.schema import DataError
from radfm.medmd.sources import find_source

from .items import BENCHMARK, VERSION, BenchError, Item, fingerprint, read_items
from .predictions import SCAN
from .readings import main_metric
from .report import FORM_TITLES, TASK_TITLES
from .scores import read_scores
from .summary import table

CARD = "README.md"
RESULTS_FILE = ".eval_results/radbench.yaml"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The Hub's names of metrics (its documentation, "Model Cards"); others are written under their own names.
HUB_METRICS = {
    "accuracy": "accuracy",
    "F1": "f1",
    "BLEU-4": "bleu",
    "ROUGE-1": "rouge",
    "ROUGE-L": "rouge",
    "BERTScore": "bertscore",
}
PIPELINE = "image-text-to-text"
SHOWN_LINES, SHOWN_WIDTH = 400, 160  # of a file in a printed plan
RESTRICTED = ("form", "credentialed")


@dataclass(frozen=True)
class Plan:
    """What would be written.

    Args:
        repo: owner/name on the Hub, or a local folder.
        repo_type: model or dataset.
        files: path in the repository → content; of a model card the front matter alone, which is merged into the card.
        private: whether a new repository must not be public.
        notes: what the one who pushes must know.
        results: model-index entries, for a model card.
    """

    repo: str
    repo_type: str
    files: Mapping[str, str]
    private: bool = False
    notes: Sequence[str] = ()
    results: Sequence[Any] = field(default=(), repr=False)

    def text(self) -> str:
        """The plan as it is printed: each file, then the notes."""
        parts = [f"{self.repo_type} {self.repo}{' (private)' if self.private else ''}"]
        parts += [f"--- {path}\n{_shorten(content)}" for path, content in self.files.items()]
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def _shorten(content: str) -> str:
    """The first lines of a long file, cut to a readable width, and how many follow."""
    lines = content.rstrip().split("\n")
    if len(lines) <= SHOWN_LINES:
        return "\n".join(lines)
    shown = [f"{line[:SHOWN_WIDTH]} …" if len(line) > SHOWN_WIDTH else line for line in lines[: SHOWN_LINES // 10]]
    return "\n".join([*shown, f"… and {len(lines) - len(shown):,} lines more"])


def plan_scores(out: Path, repo: str, dataset: str) -> Plan:
    """Scores of a results folder as model-index metadata, and as `.eval_results/` where a data set is named.

    Args:
        out: a folder that has `scores.json`.
        repo: of the model: owner/name, or a local folder; empty for the model of the run.
        dataset: owner/name of the data set with the items; empty for none.

    Raises:
        BenchError: a name or a value is not valid.
    """
    from huggingface_hub.repocard_data import eval_results_to_model_index
    from yaml import safe_dump

    scores = read_scores(out)
    repo = repo or scores["model"]
    if not Path(repo).is_dir():
        _check_repo(repo, "--repo")
    if dataset:
        _check_repo(dataset, "--dataset")
    rows = [row for row in scores["scores"] if row["condition"] == SCAN and row["value"] is not None]
    for row in rows:
        check_row(row)
    if not rows:
        raise BenchError(f"{out}: has no value that could be published.")
    name = Path(repo).resolve().name if Path(repo).is_dir() else repo.split("/")[1]
    results = [_result(row, scores, dataset) for row in rows]
    index = safe_dump({"model-index": eval_results_to_model_index(name, results)}, sort_keys=False, allow_unicode=True)
    files, notes = {CARD: index}, [f"warning of the report: {warning}" for warning in scores["warnings"]]
    if dataset:
        files[RESULTS_FILE] = _eval_results(rows, scores, dataset)
        notes.append("the Hub shows .eval_results/ only for data sets that are registered as benchmarks.")
    return Plan(repo, "model", files, notes=notes, results=results)


def check_row(row: Mapping[str, Any]) -> None:
    """Raise where a row of `scores.json` cannot be published as it stands.

    Raises:
        BenchError: a value that is no share, no answers behind it, or an interval that does not hold it.

    Example:
        >>> check_row({"bench_task": "vqa", "metric": "F1", "value": 0.5, "n": 9, "interval": [0.4, 0.6]})
    """
    value, title = row["value"], f"{row['bench_task']}, {row['metric']}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise BenchError(f"{title}: the value {value!r} is no share from 0 to 1; score the results again.")
    if not isinstance(row["n"], int) or row["n"] < 1:
        raise BenchError(f"{title}: no answers stand behind the value.")
    ends = row["interval"]
    if ends is not None and not (len(ends) == 2 and all(map(math.isfinite, ends)) and 0 <= ends[0] <= ends[1] <= 1):
        raise BenchError(f"{title}: the interval {ends!r} is none; score the results again.")


def _check_repo(name: str, option: str) -> None:
    if not _REPO.fullmatch(name):
        raise BenchError(f"{option} {name!r} is not owner/name, as on the Hub.")


def _result(row: Mapping[str, Any], scores: Mapping[str, Any], dataset: str) -> Any:
    from huggingface_hub import EvalResult

    metric = HUB_METRICS.get(row["metric"].split(" (")[0], row["metric"])
    arguments: dict[str, Any] = {"n": row["n"], "groups": row["groups"], "signature": row["signature"]}
    if row["interval"]:
        arguments |= {"ci": row["interval"], "ci_kind": row["interval_kind"]}
    return EvalResult(
        task_type=PIPELINE,
        task_name=f"{TASK_TITLES[row['bench_task']]}, {FORM_TITLES[row['form']]}",
        dataset_type=dataset or "radbench",
        dataset_name=f"{scores['benchmark']} {scores['version']}, {row['bench_task']}, {row['form']}",
        dataset_config=f"{row['bench_task']}_{row['form']}",
        dataset_split="test",
        dataset_args={"items_fingerprint": scores["items_fingerprint"]},
        metric_type=metric,
        metric_name=row["metric"],
        metric_value=row["value"],
        metric_args=arguments,
    )


def _eval_results(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], dataset: str) -> str:
    """The main metric of each kind of question, in percent."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, parse_eval_result_entries
    from yaml import safe_dump

    entries = []
    for row in rows:
        if row["metric"] == main_metric(row["bench_task"], row["form"]):
            ends = f", 95 % interval {row['interval'][0]:.3f} to {row['interval'][1]:.3f}" if row["interval"] else ""
            notes = f"{row['metric']}{ends}, n = {row['n']}; {scores['benchmark']} {scores['version']}, "
            notes += f"items {scores['items_fingerprint'][:12]}"
            entries.append(EvalResultEntry(dataset, f"{row['bench_task']}_{row['form']}", row["value"], notes=notes))
    counts = Counter(entry.task_id for entry in entries)
    if any(count > 1 for count in counts.values()):
        raise BenchError(f"two numbers for {counts.most_common(1)[0][0]}: .eval_results/ takes one a task.")
    content = eval_result_entries_to_yaml(entries)
    parse_eval_result_entries(content)
    return str(safe_dump(content, sort_keys=False, allow_unicode=True))


def plan_items(out: Path, dataset: str) -> Plan:
    """The items of a results folder as a data set with its card.

    Items hold questions and answers of their sources, and no scans. Where the terms of a source forbid to pass it on, the
    data set is private.

    Raises:
        BenchError: the name is not valid, or there is no item.
    """
    _check_repo(dataset, "--dataset")
    items = read_items(out / "items.jsonl")
    if not items:
        raise BenchError(f"{out}: has no item.")
    sources = {name: _terms(name) for name in sorted({item.source for item in items})}
    private = any(access in RESTRICTED for _, access in sources.values())
    notes = ["some sources forbid to pass their texts on: the data set must stay private."] if private else []
    lines = "".join(f"{item.to_line()}\n" for item in items)
    return Plan(dataset, "dataset", {CARD: items_card(items, sources), "items.jsonl": lines}, private, notes)


def _terms(source: str) -> tuple[str, str]:
    """Licence and access of a source; the strictest for one that is not known."""
    try:
        known = find_source(source)
    except DataError:
        return "unknown", "form"
    return known.licence, known.access


def items_card(items: Sequence[Item], sources: Mapping[str, tuple[str, str]]) -> str:
    """The card of the data set: what an item is, counts, sources and their terms."""
    kinds = Counter((item.bench_task, item.form) for item in items)
    lines = [
        "---",
        "license: other",
        "language: [en]",
        "task_categories: [visual-question-answering, image-text-to-text]",
        "tags: [medical, radiology, benchmark, radfm]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: test",
        "    path: items.jsonl",
        "---",
        "",
        f"# {BENCHMARK} {VERSION}: {len(items):,} questions about radiology scans",
        "",
        f"Fingerprint `{fingerprint(items)}`: two runs with the same fingerprint asked the same questions.",
        "For research, not for diagnosis. This is not the RadBench of the RadFM paper, whose prompts were drawn while "
        "loading and kept nowhere.",
        "",
        "The scans are not here: `record` and `image_sha256` name them in the data set that `radfm data build` makes.",
        "",
        "    radfm bench run --items items.jsonl --data radmd/ --model owner/model --out results/",
        "",
        "## Questions",
        "",
        *table(
            ["Task", "Form", "Questions"],
            ([TASK_TITLES[task], FORM_TITLES[form], f"{count:,}"] for (task, form), count in sorted(kinds.items())),
        ),
        "",
        "## Sources",
        "",
        *table(
            ["Source", "Questions", "Licence", "Access", "RadFM saw it in training"],
            (
                [
                    name,
                    f"{sum(item.source == name for item in items):,}",
                    *terms,
                    "yes, for comparison only" if any(i.comparison_only for i in items if i.source == name) else "no",
                ]
                for name, terms in sources.items()
            ),
        ),
        "",
        "## An item",
        "",
        "`messages` is the conversation up to the question, `options` the answers to choose from, `reference` the right "
        "one, `group` a salted hash of the patient (resample by it), `form` how the answer is read: open, yes_no, choice or "
        "likelihood.",
    ]
    return "\n".join([*lines, ""])


def push(plan: Plan) -> str:
    """Write a plan: into a local folder, or as one commit on the Hub. Returns where it is.

    The card of a model keeps its text and its other metadata; scores of the same benchmark that stand there are replaced.
    """
    if Path(plan.repo).is_dir():
        folder = Path(plan.repo)
        card = folder / CARD
        files = {**plan.files, CARD: merge_card(card.read_text(encoding="utf-8") if card.is_file() else "", plan)}
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        return f"written into {folder}"
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(plan.repo, repo_type=plan.repo_type, private=plan.private or None, exist_ok=True)
        files = dict(plan.files)
        if plan.repo_type == "model":
            try:
                text = Path(api.hf_hub_download(plan.repo, CARD)).read_text(encoding="utf-8")
            except EntryNotFoundError:
                text = ""
            files[CARD] = merge_card(text, plan)
        operations = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
        commit = api.create_commit(plan.repo, operations, commit_message=f"{BENCHMARK} {VERSION}", repo_type=plan.repo_type)
    except HfHubHTTPError as error:
        raise BenchError(f"{plan.repo}: the Hub refused ({error}); log in with `hf auth login`.") from error
    return str(commit.commit_url)


def merge_card(text: str, plan: Plan) -> str:
    """A model card with the plan's scores in its front matter; the text of any other plan's card as it is."""
    if plan.repo_type != "model":
        return plan.files[CARD]
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(text or "---\n---\n")
    data: ModelCardData = card.data  # type: ignore[assignment]  # huggingface_hub declares its base class
    mine = {result.dataset_name.split(",")[0] for result in plan.results}
    others = [result for result in data.eval_results or () if result.dataset_name.split(",")[0] not in mine]
    repo = Path(plan.repo)
    data.model_name = data.model_name or (repo.resolve().name if repo.is_dir() else plan.repo.split("/")[1])
    data.eval_results = [*others, *plan.results]
    return str(card)
