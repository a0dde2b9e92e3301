"""RadFM as a package: the names of the root modules, each imported when it is first asked for."""

from importlib import import_module

_HOMES = {
    "RadFMConfig": "configuration_radfm",
    "RadFMVisionConfig": "configuration_radfm",
    "RadFMForConditionalGeneration": "modeling_radfm",
    "RadFMModel": "modeling_radfm",
    "RadFMVisionModel": "modeling_radfm",
    "RadFMImageProcessor": "image_processing_radfm",
    "RadFMProcessor": "processing_radfm",
    "Scan": "load_scan_radfm",
    "ScanError": "load_scan_radfm",
    "load_scan": "load_scan_radfm",
    "list_series": "load_scan_radfm",
    "list_volumes": "load_scan_radfm",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return __all__
