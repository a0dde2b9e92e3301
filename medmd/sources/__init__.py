"""The sources: one module for a portal, or for several of one kind; each declares `SOURCES`."""

from importlib import import_module

from ..schema import DataError
from ..source import Source

MODULES = (
    *("pmc", "vqa", "medpix", "radiopaedia", "mimic", "vindr", "nih", "chexpert", "chest_sets", "chest_ct"),
    *("radfm_tables", "demo_packs", "demo", "scan_table"),
)


def all_sources() -> dict[str, Source]:
    """Every source by name, in the order of `MODULES`."""
    return {source.name: source for module in MODULES for source in import_module(f".{module}", __name__).SOURCES}


def find_source(name: str) -> Source:
    """The source of a name.

    Raises:
        DataError: there is none; the message lists those that look like it.
    """
    from difflib import get_close_matches

    sources = all_sources()
    if name not in sources:
        near = get_close_matches(name, sources, n=3, cutoff=0.4)
        raise DataError(
            f"there is no source {name!r}{', but ' + ', '.join(near) if near else ''}: `radfm data list` names all."
        )
    return sources[name]
