"""A small model repository and a small data set of real scans for the tests of training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import demo_texts
from PIL import Image
from torch import nn

from radfm.load_scan_radfm import load_scan
from radfm.medmd.build import build
from radfm.medmd.schema import Message, Part
from radfm.medmd.shards import ShardWriter, read_records
from radfm.processing_radfm import RadFMProcessor
from radfm.training.demo.checkpoint import image_processor, new_model
from radfm.training.demo.tokenizer import train_tokenizer

SCANS = {"CT_small.dcm": "CT", "MR_small.dcm": "MRI", "examples_overlay.dcm": "MRI", "693_J2KI.dcm": "CT"}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A model repository with fresh weights of the demo checkpoint's sizes, two layers a part."""
    folder = tmp_path_factory.mktemp("base")
    processor = RadFMProcessor(image_processor(), train_tokenizer(demo_texts()))
    model = new_model(processor.tokenizer)
    for layers in (model.model.vision_tower.layers, model.model.language_model.layers):
        del layers[2:]
    model.config.vision_config.num_hidden_layers = model.config.text_config.num_hidden_layers = 2
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.vision_config.hidden_dropout = 0.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory, dicom_files) -> Path:
    """A data set of images, a volume, and a question without a scan's neighbour, from pydicom's files."""
    own = tmp_path_factory.mktemp("own")
    lines = ["image,question,answer,group,split"]
    for number, (name, modality) in enumerate(SCANS.items()):
        voxels = load_scan(dicom_files / name).voxels[0, :, :, 0]
        grey = np.interp(voxels, np.percentile(voxels, (1, 99)), (0, 255)).astype(np.uint8)
        Image.fromarray(grey).save(own / f"{number}.png")
        lines += [f"{number}.png,Which imaging modality is this?,{modality},p{number},train"]
        lines += [f"{number}.png,Is this scan 2D or 3D?,2D,p{number},train"]
    folder = own / "series"
    folder.mkdir()
    for number in range(8):
        header = pydicom.dcmread(dicom_files / "CT_small.dcm")
        header.ImagePositionPatient = [0, 0, 5 * number]
        header.SOPInstanceUID = f"1.2.3.{number}"
        header.InstanceNumber = number
        header.save_as(folder / f"{number}.dcm")
    lines += ["series,Is this scan 2D or 3D?,3D,p9,train", "0.png,Which body part is shown?,chest,p0,validation"]
    (own / "rows.csv").write_text("\n".join(lines) + "\n")
    build({"csv": own / "rows.csv"}, own / "built")
    return own / "built"


@pytest.fixture(scope="session")
def mixed_data(tmp_path_factory, data) -> Path:
    """The rows of `data` and four questions without a scan."""
    folder = tmp_path_factory.mktemp("mixed") / "built"
    shutil.copytree(data, folder)
    shard = next((folder / "2d").glob("train-*.parquet"))
    records = list(read_records(shard))
    writer = ShardWriter(shard.with_name("train-text-only.parquet"), "2d")
    for number, record in enumerate(records[:4]):
        messages = (Message("user", (Part("text", "Which imaging modality is this?"),)), record.messages[1])
        writer.add(
            replace(
                record, id=f"csv/text/vqa/{number}", images=(), shapes=(), image_sha256=(), image_hash=(), messages=messages
            )
        )
    writer.close()
    return folder
