"""RadFM as a Python package: the public names of the root modules, each imported at first use.

>>> import radfm
>>> radfm.load_scan.__module__
'radfm.load_scan_radfm'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time __getattr__ imports them one by one
    from .configuration_radfm import RadFMConfig, RadFMVisionConfig
    from .image_processing_radfm import RadFMImageProcessor
    from .load_scan_radfm import list_series, list_volumes, load_scan
    from .modeling_radfm import RadFMForConditionalGeneration, RadFMModel, RadFMVisionModel
    from .processing_radfm import RadFMProcessor
    from .scan_radfm import Scan, ScanError

    __version__: str

_MODULE_OF = {
    "RadFMConfig": "configuration_radfm",
    "RadFMVisionConfig": "configuration_radfm",
    "RadFMImageProcessor": "image_processing_radfm",
    "list_series": "load_scan_radfm",
    "list_volumes": "load_scan_radfm",
    "load_scan": "load_scan_radfm",
    "RadFMForConditionalGeneration": "modeling_radfm",
    "RadFMModel": "modeling_radfm",
    "RadFMVisionModel": "modeling_radfm",
    "RadFMProcessor": "processing_radfm",
    "Scan": "scan_radfm",
    "ScanError": "scan_radfm",
}
__all__ = [
    "RadFMConfig",
    "RadFMForConditionalGeneration",
    "RadFMImageProcessor",
    "RadFMModel",
    "RadFMProcessor",
    "RadFMVisionConfig",
    "RadFMVisionModel",
    "Scan",
    "ScanError",
    "__version__",
    "list_series",
    "list_volumes",
    "load_scan",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    """The number in pyproject.toml, as it was installed; "0+unknown" for a clone that is imported without installing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("radfm")
    except PackageNotFoundError:
        return "0+unknown"
