"""`radfm bench`: draw the items of RadBench from a data set, ask a model, and what `bench_reports` makes of the answers."""

from pathlib import Path
from typing import Annotated

import typer

from .bench_reports import compare, publish, rate, score
from .common import find_model, refuse

bench = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})

DataOption = Annotated[Path, typer.Option(help="A data set that `radfm data build` finished.")]
SplitOption = Annotated[str, typer.Option(help="Split whose records become questions: test or validation.")]
SeedOption = Annotated[
    int, typer.Option(help="Decides which records, wordings, values, the order of options, other patients.")
]


@bench.callback()
def describe() -> None:
    """RadBench: modality, diagnosis, VQA, report and rationale, with baselines and intervals, for any model."""


@bench.command("draw")
def draw_items(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The file of items, as in radbench.jsonl.")],
    split: SplitOption = "test",
    per_task: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most so many records of each of the five tasks, half of them volumes where possible. By default all.",
        ),
    ] = None,
    seed: SeedOption = 0,
    form: Annotated[list[str] | None, typer.Option(help="Only this form; repeat for several. By default all.")] = None,
) -> None:
    """Freeze the questions: open, yes/no, choice and likelihood. `radfm bench run` without --items draws the same.

    Examples:

      radfm bench draw --data radmd/ --out radbench.jsonl

      radfm bench draw --data radmd/ --out yes-no.jsonl --form yes_no

      radfm bench draw --data radmd/ --split validation --per-task 100 --out small.jsonl
    """
    from radfm.medmd.schema import DataError
    from radfm.radbench.draw import draw
    from radfm.radbench.items import FORMS, BenchError, fingerprint, write_items
    from radfm.radbench.records import read_held_out

    try:
        drawn = draw(read_held_out(data, split), seed, form or FORMS, per_task)
        if not drawn.items:
            raise BenchError(f"{data}: its {split} split has no item of this form.")
        write_items(drawn.items, out)
    except (BenchError, DataError, OSError) as error:
        refuse(str(error))
    print(f"{len(drawn.items):,} items in {out}, fingerprint {fingerprint(drawn.items)}")
    for reason, count in drawn.left_out.items():
        print(f"left out: {count:,} records ({reason})")


@bench.command("run")
def run_benchmark(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the results, new or interrupted.")],
    model: Annotated[str, typer.Option(help="A folder or a Hub id; by default the demo checkpoint.")] = "",
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server; --model is its name there.")] = "",
    items: Annotated[
        Path | None, typer.Option(help="Items that `radfm bench draw` froze; by default all are drawn.")
    ] = None,
    split: SplitOption = "test",
    train_data: Annotated[
        Path | None, typer.Option(help="What the model was trained on, for the leak check; by default --data's train split.")
    ] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Also ask about flipped, resliced, rewindowed scans.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once. The answers do not depend on it.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    slices: Annotated[
        int, typer.Option(min=1, help="Images of a volume for models other than RadFM: so many, evenly spaced.")
    ] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto: a GPU where there is one.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on a CPU, else as stored), float32, bfloat16, float16.")
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that another model's repository brings.")
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Ask a model everything, and score it. Interrupted, the same command goes on.

    OUT gets items.jsonl, predictions.jsonl, run.json, scores.json, report.html and summary.md. Each question is also asked
    without the scan, with a black one and with another patient's: the baselines of the report.

    Examples:

      radfm bench run --data radmd/ --out results/demo

      radfm bench run --model owner/medgemma --data radmd/ --out results/medgemma --slices 16 --batch-size 4

      radfm bench run --model owner/radfm --data radmd/ --out results/radfm --device cuda --dtype bfloat16

      radfm bench run --endpoint http://localhost:8000/v1 --model gpt-x --data radmd/ --out results/api

      radfm bench run --items radbench.jsonl --data radmd/ --train-data medmd/ --stability --out results/mine

      accelerate launch --num_processes 8 -m radfm.cli bench run --data radmd/ --out results/demo
    """
    from torch import OutOfMemoryError

    from radfm.medmd.schema import DataError
    from radfm.radbench.items import BenchError
    from radfm.radbench.models.base import Model
    from radfm.radbench.models.endpoint import Endpoint
    from radfm.radbench.models.load import LoadOptions, load_model
    from radfm.radbench.processes import join_processes
    from radfm.radbench.report import write_report
    from radfm.radbench.run import RunOptions, run
    from radfm.radbench.scores import score_run

    if endpoint and not model:
        refuse("--endpoint needs --model: the name of a model on that server.")
    options = RunOptions(data, out, items, split, seed, batch_size, stability, train_data)
    name = model if endpoint else find_model(model)
    if Path(name).name in ("", ".."):  # `.` is no name in a table
        name = str(Path(name).resolve())

    def load() -> Model:
        if endpoint:
            return Endpoint(endpoint, name, max_new_tokens, slices)
        register_radfm()
        loading = LoadOptions(device, dtype, max_new_tokens, slices, trust_remote_code, processes.local_rank)
        return load_model(name, loading)

    processes = join_processes()
    try:
        with _progress_bar(processes.is_main) as progress:
            run(options, load, processes, progress)
        if processes.is_main:
            score_run(out)
            write_report(out, str(data))
            print(f"results in {out}; open {out / 'report.html'}")
    except (BenchError, DataError, OSError) as error:
        refuse(str(error))
    except OutOfMemoryError:
        refuse(f"{name}: does not fit into the memory of the GPU; run the same command with a smaller --batch-size.")


for command in (compare, rate, publish, score):
    bench.command()(command)


def register_radfm() -> None:
    """Let the Auto classes find RadFM in this installation, so that no code of a model's repository has to run."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from radfm.configuration_radfm import RadFMConfig
    from radfm.modeling_radfm import RadFMForConditionalGeneration
    from radfm.processing_radfm import RadFMProcessor

    AutoConfig.register(RadFMConfig.model_type, RadFMConfig, exist_ok=True)
    AutoModelForImageTextToText.register(RadFMConfig, RadFMForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(RadFMConfig, RadFMProcessor, exist_ok=True)


class _progress_bar:  # noqa: N801 - used as a context manager, like a function
    """A line with the questions that are answered and the time that remains, on a terminal."""

    def __init__(self, visible: bool) -> None:
        self.visible = visible

    def __enter__(self):  # type: ignore[no-untyped-def]
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("questions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.visible and console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=not shown)
        self.bar.start()
        task = self.bar.add_task("questions", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
