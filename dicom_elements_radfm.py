"""Values of DICOM elements as plain Python numbers and strings; None where an element is missing, empty or malformed.

pydicom converts an element when it is read, with a Python warning for each value that breaks the standard, which only a
global filter could silence. Numbers are therefore read here from the raw bytes (PS3.5 6.2), and a value that is no number
is None: what to do without it is the caller's decision.
"""

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

try:
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag
except ImportError:
    pass
if TYPE_CHECKING:
    import pydicom

BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "AT": "H"}
SIZES = {"H": 2, "h": 2, "L": 4, "l": 4, "f": 4, "d": 8, "Q": 8, "q": 8}
Element = str | int
"""An element's keyword, or the tag of a private element."""


def get_numbers(dataset: "pydicom.Dataset", element: Element) -> tuple[float, ...] | None:
    """All values of an element as finite numbers.

    >>> import pydicom
    >>> dataset = pydicom.Dataset()
    >>> dataset.PixelSpacing = [0.5, 0.25]
    >>> get_numbers(dataset, "PixelSpacing"), get_numbers(dataset, "WindowCenter")
    ((0.5, 0.25), None)
    """
    found = _raw(dataset, element)
    if found is None:
        return None
    numbers = []
    for value in found:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(number):
            return None
        numbers.append(number)
    return tuple(numbers) or None


def get_number(dataset: "pydicom.Dataset", element: Element) -> float | None:
    """The first value of an element as a finite number."""
    numbers = get_numbers(dataset, element)
    return numbers[0] if numbers else None


def get_integer(dataset: "pydicom.Dataset", element: Element, default: int = 0) -> int:
    """The first value of an element as an integer."""
    number = get_number(dataset, element)
    return default if number is None else int(number)


def get_vector(dataset: "pydicom.Dataset", element: Element, length: int) -> tuple[float, ...] | None:
    """The values of an element that has to have so many."""
    numbers = get_numbers(dataset, element)
    return numbers if numbers is not None and len(numbers) == length else None


def get_texts(dataset: "pydicom.Dataset", element: Element) -> tuple[str, ...]:
    """All values of an element as stripped strings."""
    found = _raw(dataset, element)
    return tuple(str(value).strip(" \0") for value in found) if found else ()


def get_text(dataset: "pydicom.Dataset", element: Element) -> str:
    """The first value of an element as a stripped string, "" where there is none."""
    return (get_texts(dataset, element) or ("",))[0]


def get_items(dataset: "pydicom.Dataset", element: Element) -> Sequence["pydicom.Dataset"]:
    """The items of a sequence; none where it is missing or something else than a sequence."""
    tag = _tag(element)
    if tag is None or tag not in dataset:
        return ()
    value = dataset[tag].value
    return value if hasattr(value, "is_undefined_length") or isinstance(value, list) else ()


def _tag(element: Element) -> int | None:
    return element if isinstance(element, int) else tag_for_keyword(element)


def _raw(dataset: "pydicom.Dataset", element: Element) -> Sequence[object] | None:
    tag = _tag(element)
    if tag is None or tag not in dataset:
        return None
    found = dataset.get_item(Tag(tag))
    if not isinstance(found, RawDataElement):
        value = None if found is None else found.value
        if value is None or value == "":
            return None
        return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
    value = found.value
    if not value:
        return None
    kind = found.VR or (dictionary_VR(found.tag) if not found.tag.is_private else "UN")
    if " or " in kind:  # US or SS: the sign of the pixels decides (PS3.5 A.1)
        kind = "SS" if get_integer(dataset, "PixelRepresentation") == 1 and "SS" in kind else "US"
    if kind == "UN" and found.tag.is_private:
        return (value,)
    if kind in BINARY:
        code = BINARY[kind]
        count = len(value) // SIZES[code]
        return struct.unpack_from(f"{'<' if found.is_little_endian else '>'}{count}{code}", value)
    if kind in ("LO", "SH", "PN", "LT", "ST", "UT", "UC"):  # of these the character set matters
        decoded = dataset[found.tag].value
        if decoded in (None, ""):
            return None
        return decoded if isinstance(decoded, Sequence) and not isinstance(decoded, str) else (decoded,)
    if kind in ("OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UN"):
        return (value,)
    return value.decode("latin-1").rstrip(" \0").split("\\")
