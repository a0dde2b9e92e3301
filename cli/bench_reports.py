"""`radfm bench score | compare | rate | publish`: what is made of the answers that `radfm bench run` collected."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import refuse

if TYPE_CHECKING:
    from radfm.radbench.metrics.medical_terms import Extractor
    from radfm.radbench.metrics.similarity import TextModel

ResultsArgument = Annotated[list[Path], typer.Argument(help="Folders that `radfm bench run` filled.")]
TermsOption = Annotated[
    str, typer.Option(help="A file of medical terms, one a line, or scispacy:MODEL; by default the list that ships.")
]
TextModelOption = Annotated[
    Path | None, typer.Option(help="Folder of a language model, for BERTScore and cosine; by default neither is computed.")
]


def score(
    results: Annotated[Path, typer.Argument(help="A results folder, or a CSV of the published form.")],
    data: Annotated[Path | None, typer.Option(help="The data set, for pictures in the report.")] = None,
    terms: TermsOption = "",
    text_model: TextModelOption = None,
    layer: Annotated[int | None, typer.Option(min=1, help="Layer of --text-model that BERTScore reads; the last.")] = None,
    external: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CSV: scores of radgraph, ratescore, green or chexbert, computed elsewhere."),
    ] = None,
    export_texts: Annotated[
        Path | None, typer.Option(help="Write hyps.txt, refs.txt and ids.txt there, for metrics that need weights.")
    ] = None,
    export_logs: Annotated[
        list[str] | None, typer.Option(help="FORMAT=FOLDER: answers as logs of inspect or lmms-eval, for their viewers.")
    ] = None,
) -> None:
    """Score answers again: a results folder, or the result CSV of the authors' test script.

    Examples:

      radfm bench score results/demo --data radmd/ --text-model models/minilm

      radfm bench score results/demo --export-texts texts/

      radfm bench score results/demo --external radgraph=texts/radgraph.csv

      radfm bench score results/demo --export-logs inspect=logs/

      radfm bench score caption_example.csv
    """
    from radfm.radbench.exports import export
    from radfm.radbench.items import BenchError
    from radfm.radbench.metrics import external as external_metrics
    from radfm.radbench.metrics.errors import MetricError
    from radfm.radbench.rescore import published_text, rescore, score_published

    try:
        files = dict(_split_pair("--external", entry, "radgraph=radgraph.csv") for entry in external or ())
        logs = dict(_split_pair("--export-logs", entry, "inspect=logs/") for entry in export_logs or ())
        for name in files:
            external_metrics.check_name(name)
        extractor, model = _extractor(terms), _text_model(text_model, layer)
        if results.is_file() or results.suffix == ".csv":
            print(published_text(score_published(results, extractor, model)), end="")
            return
        if logs:
            for name, folder in logs.items():
                print(f"{len(export(results, name, folder))} files in {folder}")
            return
        count = rescore(results, data, extractor, model, files, export_texts)
    except (BenchError, MetricError, OSError) as error:
        refuse(str(error))
    if export_texts is not None:
        print(f"{count:,} texts in {export_texts}")
    else:
        print(f"{count:,} scores in {results / 'scores.json'}, the page in {results / 'report.html'}")


def compare(
    results: ResultsArgument,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    ratings: Annotated[Path | None, typer.Option(help="A folder that `radfm bench rate` filled.")] = None,
    terms: TermsOption = "",
    text_model: TextModelOption = None,
) -> None:
    """Compare models on the questions that all were asked: intervals, paired tests, a radar.

    Examples:

      radfm bench compare results/demo results/other

      radfm bench compare results/a results/b results/c --ratings ratings/ --out three.html
    """
    from radfm.radbench.compare import compare as compare_runs
    from radfm.radbench.compare import comparison_text, write_comparison
    from radfm.radbench.items import BenchError
    from radfm.radbench.metrics.errors import MetricError
    from radfm.radbench.rating.agreement import summarise
    from radfm.radbench.readings import Tools

    try:
        extractor, model = _extractor(terms), _text_model(text_model, None)
        tools = Tools(extractor, model) if extractor or model else None
        comparison = compare_runs(results, tools)
        write_comparison(comparison, out, summarise(ratings) if ratings is not None else None)
    except (BenchError, MetricError, OSError) as error:
        refuse(str(error))
    print(comparison_text(comparison))
    print(f"the page in {out}")


def rate(
    results: ResultsArgument,
    data: Annotated[Path, typer.Option(help="The data set with the scans.")],
    out: Annotated[Path, typer.Option(help="Folder of the ratings, new or continued.")] = Path("ratings"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeat for several.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Questions to rate, drawn once.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides which questions, and the order of answers.")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7861,
) -> None:
    """Rate answers of several models in the browser: blind, in random order, saved at every click.

    Examples:

      radfm bench rate results/demo results/other --data radmd/

      radfm bench rate results/demo results/other --data radmd/ --task report --count 100 --out ratings/
    """
    from radfm.radbench.items import BenchError

    try:
        from radfm.radbench.rating.page import serve
    except ImportError as error:
        refuse(f"The rating page needs gradio ({error}): pip install 'radfm[space]'.")
    from radfm.radbench.rating.questions import prepare

    try:
        questions = prepare(results, out, tuple(task or ()), count, seed)
    except (BenchError, OSError) as error:
        refuse(str(error))
    serve(questions, out, data, port)


def publish(
    results: Annotated[Path, typer.Argument(help="A results folder that has scores.json.")],
    repo: Annotated[str, typer.Option(help="owner/name of the model repository; by default the run's model.")] = "",
    dataset: Annotated[str, typer.Option(help="owner/name of the data set that holds the benchmark's items.")] = "",
    items: Annotated[
        bool, typer.Option("--items", help="Push the items as the data set --dataset, with a card, in place of scores.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
) -> None:
    """Put scores onto a model card (model-index, .eval_results/), or the benchmark's items into a data set.

    Examples:

      radfm bench publish results/demo --repo owner/radfm-demo --dataset owner/radbench --dry-run

      radfm bench publish results/demo --items --dataset owner/radbench
    """
    from radfm.radbench import publish as publishing
    from radfm.radbench.items import BenchError

    try:
        plan = publishing.plan_items(results, dataset) if items else publishing.plan_scores(results, repo, dataset)
        print(plan.text())
        if not dry_run:
            print(publishing.push(plan))
    except (BenchError, OSError) as error:
        refuse(str(error))


def _split_pair(option: str, entry: str, example: str) -> tuple[str, Path]:
    name, equals, path = entry.partition("=")
    if not equals or not path:
        refuse(f"{option} {entry}: write NAME=PATH, as in {example}.")
    return name, Path(path)


def _extractor(terms: str) -> "Extractor | None":
    from radfm.radbench.metrics.medical_terms import ScispacyExtractor, read_term_list

    if not terms:
        return None
    if terms.startswith("scispacy:"):
        return ScispacyExtractor(terms.removeprefix("scispacy:"))
    return read_term_list([Path(terms)])


def _text_model(folder: Path | None, layer: int | None) -> "TextModel | None":
    from radfm.radbench.metrics.similarity import TextModel

    return None if folder is None else TextModel(folder, layer)
