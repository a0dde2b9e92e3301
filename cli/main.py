"""The command `radfm`. Each subcommand imports torch and the model when it runs, so that `radfm --help` is instant."""

import typer

from .ask import ask
from .bench import bench
from .convert import convert
from .data import data
from .demo import demo
from .inspect import inspect
from .push import push
from .serve import serve
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (ask, inspect, convert, demo, train, serve):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(push, name="push")
app.add_typer(bench, name="bench")


@app.callback()
def radfm() -> None:
    """RadFM reads 2D and 3D radiology scans and answers in words. For research, not for diagnosis."""


def main() -> None:
    """Run the command line."""
    app()
