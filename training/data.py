"""The rows of a data set: a folder that `radfm data build` wrote, or its id on the Hub."""

from pathlib import Path
from typing import Any

from radfm.medmd.schema import CONFIGS, DataError, features


def load_rows(data: str, split: str) -> Any:
    """All rows of a split, of images and volumes together, with the scans as {"bytes", "path"}, not decoded.

    Args:
        data: a folder or a Hub id.
        split: train, validation or test.

    Returns:
        A `datasets.Dataset` with the columns of `medmd.schema`, memory-mapped, so that memory does not grow with it.

    Raises:
        DataError: nothing there, or no such split.
    """
    from datasets import concatenate_datasets

    folder = Path(data)
    parts = _folder_parts(folder, split) if folder.exists() else _hub_parts(data, split)
    if not parts:
        raise DataError(f"{data}: has no rows in the split {split}.")
    return concatenate_datasets(parts)


def _undecoded_features(config: str) -> Any:
    """The columns with scans as files: images and volumes concatenate, and nothing is decoded before a worker needs it."""
    from datasets import Features, List, Value

    return Features({**features(config), "images": List({"bytes": Value("binary"), "path": Value("string")})})


def _folder_parts(folder: Path, split: str) -> list[Any]:
    """The configs of a folder. `load_dataset(folder)` caches by the folder's name, so of two folders called `data` it would
    return the rows of the first for both; with a list of files it caches by their paths and times.
    """
    from datasets import load_dataset

    if not (folder / "README.md").exists():
        raise DataError(f"{folder}: is no data set (no README.md); radfm data build makes one.")
    parts = []
    for config in CONFIGS:
        files = [str(file.resolve()) for file in sorted((folder / config).glob(f"{split}-*.parquet"))]
        if files:
            columns = _undecoded_features(config)
            parts.append(load_dataset("parquet", data_files=files, split="train", features=columns))
    return parts


def _hub_parts(data: str, split: str) -> list[Any]:
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return [
            load_dataset(data, config, split=split, features=_undecoded_features(config))
            for config in get_dataset_config_names(data)
            if config in CONFIGS and split in get_dataset_split_names(data, config)
        ]
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(f"{data}: is neither a folder with a data set nor a data set on the Hub.") from error
