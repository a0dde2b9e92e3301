"""Rows streamed from the shards of a data set: shuffled without a buffer, dealt to ranks and workers, resumable.

The unit is a row group of a Parquet shard: a hundred images or one volume, which is what a reader holds at once. `radfm data
build` writes rows in a random order already, so an epoch is the row groups in a random order, a function of (seed, epoch).
Worker w of rank r takes every (ranks · workers)-th of them: no row comes twice in an epoch, and none is left out.

Each micro-batch carries the place in its worker's stream that follows it. A checkpoint keeps the places of the micro-batches
that were trained on, whatever the workers had read ahead, so a resumed training reads on at the next row.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import IterableDataset, get_worker_info

from radfm.medmd.schema import CONFIGS, DataError, Record

from .batches import Cost
from .collator import Collator
from .examples import ExampleDataset, row_cost
from .recipe import Batches, RecipeError

HUB = "datasets/"  # how Hugging Face's file system names the repositories of data sets


@dataclass(frozen=True)
class Place:
    """Where a worker goes on: `row` of the `group`-th of its row groups in an epoch."""

    worker: int
    epoch: int = 0
    group: int = 0
    row: int = 0


class Shards:
    """The row groups of a data set's split, in a folder or on the Hub.

    Args:
        data: a folder or a Hub id.
        split: train, validation or test.

    Raises:
        DataError: no shard of the split.
    """

    def __init__(self, data: str, split: str):
        from fsspec.implementations.local import LocalFileSystem
        from huggingface_hub import HfFileSystem

        local = LocalFileSystem()
        self.files, root = (local, data) if local.exists(data) else (HfFileSystem(), HUB + data)
        paths = [path for config in CONFIGS for path in sorted(self.files.glob(f"{root}/{config}/{split}-*.parquet"))]
        if not paths:
            raise DataError(f"{data}: has no shards {split}-*.parquet in the folders {' and '.join(CONFIGS)}.")
        self.groups: list[tuple[str, int]] = []
        self.rows = 0
        for path in paths:
            with self.files.open(path) as file:
                metadata = pq.read_metadata(file)
            self.groups += [(path, group) for group in range(metadata.num_row_groups)]
            self.rows += metadata.num_rows

    def licences(self) -> Counter[tuple[str, str, str]]:
        """How many rows there are of each (source, licence, access)."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for path in dict.fromkeys(path for path, _ in self.groups):
            with self.files.open(path) as file:
                columns = pq.ParquetFile(file).read(columns=["source", "licence", "access"]).to_pydict()
            counts.update(zip(columns["source"], columns["licence"], columns["access"], strict=True))
        return counts

    def read(self, number: int) -> list[dict[str, Any]]:
        """The rows of a row group."""
        path, group = self.groups[number]
        with self.files.open(path) as file:
            rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(group).to_pylist()
        return rows


class StreamedBatches(IterableDataset[Any]):
    """Micro-batches of one rank, without end, within the bounds of `batches`; training ends at `training.max_steps`.

    Args:
        shards: the row groups.
        examples: makes an example of a row; its own rows are not read.
        collator: makes a batch of examples.
        batches, max_rows: bounds of a micro-batch.
        rank, ranks: which share of the row groups.
        workers: number of processes that read; 0 where the training reads itself.
        seed: of the order.

    Raises:
        RecipeError: fewer row groups than workers of all ranks.
    """

    def __init__(
        self,
        shards: Shards,
        examples: ExampleDataset,
        collator: Collator,
        batches: Batches,
        *,
        max_rows: int,
        rank: int,
        ranks: int,
        workers: int,
        seed: int,
    ):
        self.shards, self.examples, self.collator, self.batches = shards, examples, collator, batches
        self.max_rows, self.rank, self.ranks, self.workers, self.seed = max_rows, rank, ranks, max(workers, 1), seed
        if len(shards.groups) < self.ranks * self.workers:
            raise RecipeError(
                f"streaming=true: the data set has {len(shards.groups)} row groups for {self.ranks * self.workers} readers; "
                "lower training.dataloader_num_workers, or set streaming=false."
            )
        self.places = [Place(worker) for worker in range(self.workers)]
        self.micro_batches = 0

    def resume(self, places: Sequence[Place], micro_batches: int) -> None:
        """Go on after `micro_batches` micro-batches, from the place of each worker.

        Raises:
            RecipeError: the training was begun with another number of workers.
        """
        if len(places) != self.workers:
            raise RecipeError(
                f"training.dataloader_num_workers: the training was begun with {len(places)} readers; "
                "a stream goes on with the same number."
            )
        self.places, self.micro_batches = list(places), micro_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        # The DataLoader asks its workers in turn, from the first one: after a resume that is the next one in turn.
        worker = (self.micro_batches + (info.id if info is not None else 0)) % self.workers
        batch: list[dict[str, Any]] = []
        patches = longest = 0
        after = place = self.places[worker]
        for row, place in self._rows(self.places[worker]):
            cost = self._cost(row)
            tokens = max(longest, cost.tokens)
            fits = len(batch) < self.max_rows and patches + cost.patches <= self.batches.max_patches
            if batch and not (fits and (len(batch) + 1) * tokens <= self.batches.max_tokens):
                yield self._collate(batch, after)
                batch, patches, tokens = [], 0, cost.tokens
            batch.append(row | {"epoch": place.epoch})
            patches, longest, after = patches + cost.patches, tokens, replace(place, row=place.row + 1)

    def _rows(self, start: Place) -> Iterator[tuple[dict[str, Any], Place]]:
        """Rows from a place on, each with its place."""
        place = start
        while True:
            order = np.random.default_rng([self.seed, place.epoch]).permutation(len(self.shards.groups))
            mine = order[self.rank * self.workers + place.worker :: self.ranks * self.workers].tolist()
            for group in range(place.group, len(mine)):
                for number, row in enumerate(self.shards.read(mine[group])):
                    if group > place.group or number >= place.row:
                        yield row, Place(place.worker, place.epoch, group, number)
            place = Place(place.worker, place.epoch + 1)

    def _cost(self, row: dict[str, Any]) -> Cost:
        processor = self.examples.processor
        cost = row_cost(row, processor, self.collator.config.vision_config.patch_size)
        for key in ("patches", "tokens"):
            if (size := getattr(cost, key)) > (bound := getattr(self.batches, f"max_{key}")):
                raise RecipeError(
                    f"batches.max_{key}={bound}: record {row['id']} alone has {size} {key}; "
                    f"raise batches.max_{key}, or leave the record out."
                )
        return cost

    def _collate(self, rows: list[dict[str, Any]], after: Place) -> dict[str, Any]:
        examples = [self.examples.make_example(Record.from_row(row), row["epoch"]) for row in rows]
        return {**self.collator(examples), "place": after}


def stream_file(rank: int) -> str:
    """The file of a checkpoint that holds the places of a rank."""
    return f"stream-{rank}.json"


def save_places(file: Path, places: Sequence[Place], micro_batches: int) -> None:
    """Write where the workers of a rank go on."""
    state = {"micro_batches": micro_batches, "places": [asdict(place) for place in places]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(state), encoding="utf-8")


def load_places(file: Path) -> tuple[list[Place], int]:
    """What `save_places` wrote.

    Raises:
        RecipeError: the file is not there.
    """
    if not file.exists():
        raise RecipeError(f"{file.parent}: holds no {file.name}; a stream goes on with the same number of ranks.")
    state = json.loads(file.read_text(encoding="utf-8"))
    return [Place(**place) for place in state["places"]], state["micro_batches"]
