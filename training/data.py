"""The rows of a data set: a folder that `radfm data build` wrote, or its id on the Hub."""

from pathlib import Path
from typing import Any

from radfm.medmd.schema import CONFIGS, DataError


def load_rows(data: str, split: str) -> Any:
    """All rows of a split, of images and volumes together, with the scans as {"bytes", "path"}, not decoded.

    Returns:
        A `datasets.Dataset` with the columns of `medmd.schema`; memory-mapped, so that memory does not grow with it.

    Raises:
        DataError: nothing there, or no such split.
    """
    from datasets import List, Value, concatenate_datasets, get_dataset_config_names, get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if Path(data).exists() and not (Path(data) / "README.md").exists():
        raise DataError(f"{data}: is no data set (no README.md); radfm data build makes one.")
    try:
        parts = []
        for config in get_dataset_config_names(data):
            if config in CONFIGS and split in get_dataset_split_names(data, config):
                rows = load_dataset(data, config, split=split)
                # A column of images and one of volumes do not concatenate; their undecoded form does.
                parts.append(rows.cast_column("images", List({"bytes": Value("binary"), "path": Value("string")})))
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(f"{data}: is neither a folder with a data set nor a data set on the Hub.") from error
    if not parts:
        raise DataError(f"{data}: has no rows in the split {split}.")
    return concatenate_datasets(parts)
