"""`radfm push`: a model, the kernels, a data set or the Space on the Hugging Face Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import refuse

if TYPE_CHECKING:
    from radfm.hub.upload import Push, Target

push = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})

RepoArgument = Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if it is missing.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List every file with its size, and upload nothing.")]
RevisionOption = Annotated[str, typer.Option(help="The branch; created if it is missing.")]
TokenOption = Annotated[str | None, typer.Option(help="Token of the Hub; by default the one that `hf auth login` stored.")]


@push.callback()
def describe() -> None:
    """Push to the Hugging Face Hub. Interrupted, the same command goes on."""


@push.command()
def model(
    source: Annotated[Path, typer.Argument(help="Folder of a model or an adapter.")],
    repo_id: RepoArgument,
    base: Annotated[str | None, typer.Option(help="For an adapter: its base model, OWNER/NAME@COMMIT.")] = None,
    kernels: Annotated[str | None, typer.Option(help="Kernel repository that the config names, OWNER/NAME.")] = None,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    revision: RevisionOption = "main",
    token: TokenOption = None,
) -> None:
    """Push a model: weights, configs, tokenizer, the code that they name, LICENSE and a card.

    Examples:

      radfm push model ./my-radfm me/radfm-liver --dry-run

      radfm push model ./my-radfm me/radfm-liver --private

      radfm push model ./my-lora me/radfm-liver-lora --base me/radfm-liver@COMMIT
    """
    from radfm.hub.push_model import plan_model

    _push(repo_id, "model", revision, private, token, dry_run, lambda target: plan_model(source, target, base, kernels))


@push.command()
def kernels(
    source: Annotated[Path, typer.Argument(help="The kernel project: kernels/ of the repository.")],
    repo_id: RepoArgument,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    revision: Annotated[str, typer.Option(help="The branch; main stands for v<version> of build.toml.")] = "main",
    token: TokenOption = None,
) -> None:
    """Build the kernels and push them as a kernel repository, which `kernels.get_kernel(REPO_ID, version=1)` loads.

    Examples:

      radfm push kernels kernels/ me/radfm-kernels
    """
    from radfm.hub.push_kernels import plan_kernels

    _push(repo_id, "kernel", revision, private, token, dry_run, lambda target: plan_kernels(source, target))


@push.command()
def dataset(
    source: Annotated[Path, typer.Argument(help="A data set that `radfm data build` wrote.")],
    repo_id: RepoArgument,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    revision: RevisionOption = "main",
    token: TokenOption = None,
) -> None:
    """Push a data set: shards, card and metadata. Sources that may not be passed on need --private.

    Examples:

      radfm push dataset mine/ me/my-scans --private
    """
    from radfm.hub.push_dataset import plan_dataset

    _push(repo_id, "dataset", revision, private, token, dry_run, lambda target: plan_dataset(source, target))


@push.command()
def space(
    source: Annotated[Path, typer.Argument(help="The Space: space/ of the repository.")],
    repo_id: RepoArgument,
    model: Annotated[str, typer.Option(help="The model that it shows, OWNER/NAME or OWNER/NAME@REVISION.")],
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    revision: RevisionOption = "main",
    token: TokenOption = None,
) -> None:
    """Push the Space for a model: on ZeroGPU, with the model pinned to a commit.

    Examples:

      radfm push space space/ me/radfm-space --model me/radfm-liver
    """
    from radfm.hub.push_space import plan_space

    _push(repo_id, "space", revision, private, token, dry_run, lambda target: plan_space(source, target, model))


def _push(
    repo_id: str,
    repo_type: str,
    revision: str,
    private: bool,
    token: str | None,
    dry_run: bool,
    plan: "Callable[[Target], Push]",
) -> None:
    from radfm.hub.errors import PushError
    from radfm.hub.upload import Target

    try:
        planned = plan(Target(repo_id, repo_type, revision, private, token))
        if dry_run:
            for path, size in planned.sizes().items():
                print(f"{size:>15,}  {path}")
            total, branch = sum(planned.sizes().values()), planned.target.revision
            print(f"{total:>15,}  {len(planned.files)} files for {repo_id}, branch {branch}")
            return
        commit = planned.upload(print)
    except PushError as error:
        refuse(str(error))
    print(f"{planned.url} at {commit}")
