"""The modules of the model's repository that read and describe scans, as the reader's child process imports them."""

import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass
class ModelCode:
    """Modules and the image processor of the model's repository.

    Args:
        reader: `load_scan_radfm`.
        scans: `scan_radfm`, with the class `Scan` of what `reader` returns.
        image_processing: the module of the image processor.
        image_processor: the image processor with its saved settings.
    """

    reader: ModuleType
    scans: ModuleType
    image_processing: ModuleType
    image_processor: Any


def load_model_code(setup: dict[str, Any]) -> ModelCode:
    """Import the modules that transformers has copied into its cache; `setup` holds the fields of a `ReaderModule`."""
    sys.path.insert(0, setup["folder"])
    image_processing = import_module(setup["image_processor"])
    image_processor = getattr(image_processing, setup["image_processor_class"])
    return ModelCode(
        reader=import_module(setup["reader"]),
        scans=import_module(setup["scans"]),
        image_processing=image_processing,
        image_processor=image_processor.from_dict(setup["settings"]),
    )
