"""`radfm data`: list the sources of MedMD, build a dataset of downloads or of one's own scans, filter it, check it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import BAD_INPUT, refuse

if TYPE_CHECKING:
    from radfm.medmd.scans import StorageOptions

data = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@data.callback()
def describe() -> None:
    """Radiology datasets of one form: MedMD and RadMD from the downloads that you have, or your own scans."""


@data.command()
def build(
    source: Annotated[list[str], typer.Option(help="NAME=FOLDER: a source and its download. Repeat for several.")],
    out: Annotated[Path, typer.Option(help="Folder of the dataset, new or interrupted.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes. The files do not depend on it.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides wordings and the order of rows.")] = 0,
    salt: Annotated[
        str, typer.Option(help="Enters the hashes of patients and studies. Keep it if you build again.")
    ] = "medmd",
    volume_size: Annotated[str, typer.Option(help="Largest volume: IN_PLANE,SLICES in voxels, or full.")] = "256,64",
    image_size: Annotated[int, typer.Option(min=16, help="Longest side of images that are not JPEG or 8-bit PNG.")] = 1024,
    max_broken: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable scans at which to stop.")] = 0.05,
    runner: Annotated[str, typer.Option(help="local, or ray: a Ray cluster that sees the same folders.")] = "local",
) -> None:
    """Build a dataset. Interrupted, the same command goes on; scans that cannot be read are named in report.json.

    Examples:

      radfm data build --source csv=my_scans.csv --out mine/ --workers 8

      radfm data build --source pmc-vqa=DIR --source mimic-cxr=DIR --out medmd/
    """
    from radfm.medmd.build import BuildOptions
    from radfm.medmd.build import build as build_dataset
    from radfm.medmd.plan import PlanOptions
    from radfm.medmd.schema import DataError

    if runner not in ("local", "ray"):
        refuse(f"--runner {runner} is neither local nor ray.")
    options = BuildOptions(PlanOptions(seed, salt), _storage(volume_size, image_size), workers, max_broken, runner)
    try:
        inputs = dict(_split_source(entry) for entry in source)
        with _progress_bar() as progress:
            report = build_dataset(inputs, out, options, progress)
    except (DataError, OSError) as error:
        refuse(str(error))
    print(f"{report['records']:,} records in {out}")
    _print_dropped(report)
    if unreadable := report["unreadable"]["count"]:
        print(f"left out: {unreadable:,} whose scan cannot be read; {out / 'report.json'} names each")


@data.command("list")
def list_sources(
    access: Annotated[str | None, typer.Option(help="Only these: open, nc, form, credentialed.")] = None,
    name: Annotated[str | None, typer.Option(help="Everything about one source.")] = None,
) -> None:
    """The sources that can be built: what each is, its size, licence, where to get it, its tasks.

    Examples:

      radfm data list --access open

      radfm data list --name ct-rate
    """
    from radfm.medmd.schema import ACCESS, DataError
    from radfm.medmd.sources import all_sources, find_source

    if access is not None and access not in ACCESS:
        refuse(f"--access {access} is none of {', '.join(ACCESS)}.")
    if name is not None:
        try:
            source = find_source(name)
        except DataError as error:
            refuse(str(error))
        for title in ("name", "title", "size", "dimensions", "licence", "access", "url", "layout"):
            print(f"{title:11} {getattr(source, title)}")
        print(f"{'tasks':11} {', '.join(source.tasks)}")
        return
    for source in all_sources().values():
        if access in (None, source.access):
            print(f"{source.name:16} {source.dimensions:4} {source.access:12} {source.title} ({source.size})")
            print(f"{'':34} {source.licence}; {source.url}")


@data.command("filter")
def filter_command(
    folder: Annotated[Path, typer.Argument(help="A dataset that `radfm data build` finished.")],
    out: Annotated[Path, typer.Option(help="Folder of the filtered dataset, new.")],
    min_side: Annotated[int, typer.Option(min=1, help="Leave out scans with a shorter side in plane.")] = 28,
    papers: Annotated[bool, typer.Option("--papers", help="Keep sources in the style of papers.")] = False,
) -> None:
    """MedMD → RadMD: leave out what is no radiology, too small, broken or there twice.

    Examples:

      radfm data filter medmd/ --out radmd/
    """
    from radfm.medmd.filter import FilterOptions, filter_dataset
    from radfm.medmd.schema import DataError

    try:
        report = filter_dataset(folder, out, FilterOptions(min_side, papers))
    except (DataError, OSError) as error:
        refuse(str(error))
    print(f"{report['records']:,} records in {out}")
    _print_dropped(report)


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A dataset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Look at every record: leaks between splits, duplicates, broken scans, what may name a patient. Status 2 for a problem.

    Examples:

      radfm data check medmd/
    """
    import json

    from radfm.medmd.check import check as check_dataset
    from radfm.medmd.schema import DataError

    try:
        report = check_dataset(folder)
    except (DataError, OSError) as error:
        refuse(str(error))
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        print(f"{report['records']:,} records in {folder}")
        for title in ("problems", "suspected"):
            for kind, found in report[title].items():
                print(f"{title[:-1] if title == 'problems' else title}: {kind}: {found['count']:,}")
                for example in found["examples"]:
                    print(f"  {example}")
        for column in ("config", "split", "source", "task", "modality", "yes or no"):
            counts = report["statistics"].get(column, {})
            print(f"{column}: " + ", ".join(f"{value} {count:,}" for value, count in counts.items()))
        if not report["problems"]:
            print("no problem found")
    if report["problems"]:
        raise typer.Exit(BAD_INPUT)


def _print_dropped(report: dict[str, Any]) -> None:
    for name, reasons in report["dropped"].items():
        for reason, count in reasons.items():
            print(f"left out: {count:,} of {name} ({reason})")


def _split_source(entry: str) -> tuple[str, Path]:
    name, equals, folder = entry.partition("=")
    if not equals or not folder:
        refuse(f"--source {entry}: write NAME=FOLDER, as in --source csv=my_scans.csv.")
    return name, Path(folder)


def _storage(volume_size: str, image_size: int) -> "StorageOptions":
    from radfm.medmd.scans import StorageOptions

    if volume_size == "full":
        return StorageOptions(image_size, None)
    try:
        in_plane, slices = map(int, volume_size.split(","))
        if min(in_plane, slices) < 1:
            raise ValueError
    except ValueError:
        refuse(f"--volume-size {volume_size}: write IN_PLANE,SLICES, as in 256,64, or full.")
    return StorageOptions(image_size, (in_plane, slices))


class _progress_bar:  # noqa: N801 - used as a context manager, like a function
    """A line with the rows that are done and the time that remains, on a terminal."""

    def __enter__(self):  # type: ignore[no-untyped-def]
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.start()
        task = self.bar.add_task("reading the tables", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total, description="records")

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
