"""How fast volumes come out of a data set that `radfm data build` has written, in seconds of a core.

    python benchmarks/streaming.py --volumes 8

Each volume is CT-like, 512×512×125 of int16 (65 MB), gzipped at level 1 as `radfm data build` stores it.
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import nibabel
import numpy as np
import pyarrow.parquet as pq

from radfm.load_scan_radfm import load_scan
from radfm.medmd.schema import Message, Part, Record, Stored
from radfm.medmd.shards import ShardWriter

SHAPE = (512, 512, 125)


def make_record(number: int) -> Record:
    """A record about one volume: noise of 20 HU on a smooth background, so that it compresses as a CT does."""
    rng = np.random.default_rng(number)
    background = np.linspace(-1000, 1000, SHAPE[0])[:, None, None]
    voxels = (background + rng.normal(0, 20, SHAPE)).astype(np.int16)
    content = gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes(), compresslevel=1, mtime=0)
    return Record(
        id=f"benchmark/{number}/vqa/0",
        images=(Stored(content, "scan.nii.gz"),),
        messages=(
            Message("user", (Part("image"), Part("text", "Which imaging modality is this?"))),
            Message("assistant", (Part("text", "CT"),)),
        ),
        task="modality",
        answer_type="open",
        source="benchmark",
        licence="CC0-1.0",
        access="open",
        split="train",
        split_origin="ours",
        group=f"{number:08x}",
        image_sha256=("00" * 32,),
        image_hash=("00" * 32,),
        shapes=(SHAPE,),
    )


def stream(path: Path) -> Iterator[bytes]:
    """The volumes as training streams them: shuffled without a buffer."""
    rows = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True)
    for row in rows.shuffle(seed=0, buffer_size=1):
        yield row["images"][0]["bytes"]


def read_row_groups(path: Path) -> Iterator[bytes]:
    """The volumes as pyarrow reads them, without `datasets`."""
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group).to_pylist():
            yield row["images"][0]["bytes"]


def seconds_a_volume(read: Callable[[], Iterator[bytes]]) -> tuple[float, list[bytes]]:
    """Seconds of a core for each volume, and the volumes."""
    start = time.process_time()
    contents = list(read())
    return (time.process_time() - start) / len(contents), contents


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder) / "train-00000.parquet", "3d")
        for number in range(options.volumes):
            writer.add(make_record(number))
        writer.close()
        list(stream(writer.path))  # imports and caches are paid once
        by_pyarrow, _ = seconds_a_volume(lambda: read_row_groups(writer.path))
        by_stream, contents = seconds_a_volume(lambda: stream(writer.path))
        start = time.process_time()
        for content in contents:
            load_scan(content)
        by_reader = (time.process_time() - start) / len(contents)
    print(f"{SHAPE[0]}×{SHAPE[1]}×{SHAPE[2]}, {len(contents[0]) / 1e6:.0f} MB stored; seconds of a core for each volume:")
    print(f"streamed by datasets {by_stream:.3f}, row groups by pyarrow {by_pyarrow:.3f}, load_scan of one {by_reader:.2f}")


if __name__ == "__main__":
    main()
