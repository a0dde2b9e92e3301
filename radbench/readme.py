"""The table of RadBench scores in README.md, and the small file that it is made from.

radfm bench draw --data radmd/ --split validation --per-task 100 --out items.jsonl
radfm bench run --data radmd/ --split validation --items items.jsonl --out results/demo
python -m radfm.radbench.readme results/demo
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .items import BenchError
from .predictions import SCAN
from .readings import main_metric
from .report import FORM_TITLES, TASK_TITLES, keys_of, values_of
from .scores import best_baseline, read_scores, verdict, write_json
from .summary import table

ROOT = Path(__file__).parents[1]
SCORES = Path("training", "demo", "radbench.json")
BEGIN, END = "<!-- scores: python -m radfm.radbench.readme -->", "<!-- end of scores -->"


def excerpt(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What the table needs of `scores.json`, in its form: of each kind of question the model and its best baseline."""
    values, rows, tests = values_of(scores), [], []
    for key in keys_of(scores):
        baseline = best_baseline(scores, key)
        shown = [SCAN, *([baseline["condition"]] if baseline else [])]
        rows += [values[key, condition, main_metric(*key)] for condition in shown]
        tests += [
            row for row in scores["significance"] if (row["bench_task"], row["form"]) == key and row["condition"] in shown
        ]
    head = {name: scores[name] for name in ("benchmark", "version", "model", "items_fingerprint")}
    return {**head, "scores": rows, "significance": tests}


def score_table(scores: Mapping[str, Any]) -> str:
    """The Markdown table: of each kind of question n, the model's score with its interval, and the best baseline."""
    values, lines = values_of(scores), []
    verdicts = {(row["bench_task"], row["form"], row["condition"]): verdict(row) for row in scores["significance"]}
    for key in keys_of(scores):
        model, baseline = values[key, SCAN, main_metric(*key)], best_baseline(scores, key)
        ends = "–".join(f"{100 * end:.0f}" for end in model["interval"]) if model["interval"] else model["interval_kind"]
        rival = "–"
        if baseline:
            rival = f"{100 * baseline['value']:.0f}, {baseline['condition']}"
            outcome = verdicts[*key, baseline["condition"]]
            rival += "" if outcome == "beaten" else f" ({outcome})"
        metric = model["metric"].partition(" (")[0]
        score = "–" if model["value"] is None else f"{100 * model['value']:.0f} ({ends})"
        lines.append([f"{TASK_TITLES[key[0]]}, {FORM_TITLES[key[1]]}", str(model["n"]), metric, score, rival])
    return "\n".join(table(["", "n", "metric", "demo checkpoint", "best baseline"], lines))


def replace_table(text: str, scores: Mapping[str, Any]) -> str:
    """The text of a README with the table between its two marks.

    Raises:
        BenchError: it lacks a mark.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise BenchError(f"README.md: lacks the lines {BEGIN} and {END}, between which the table stands.")
    return pattern.sub(lambda match: f"{BEGIN}\n\n{score_table(scores)}\n\n{END}", text, count=1)


def main(results: Annotated[Path, typer.Argument(help="A results folder of `radfm bench run`.")]) -> None:
    """Write the scores of the demo checkpoint into training/demo/radbench.json and README.md."""
    scores = excerpt(read_scores(results))
    readme = ROOT / "README.md"
    text = replace_table(readme.read_text(encoding="utf-8"), scores)
    write_json(scores, ROOT / SCORES)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
