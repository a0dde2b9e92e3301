"""Values of DICOM elements as plain Python numbers and strings; None where an element is missing, empty or malformed.

pydicom converts an element when it is read, with a Python warning for each value that breaks the standard, which only a
global filter could silence. Numbers are therefore read here from the raw bytes (PS3.5 6.2), and a value that is no number
is None: what to do without it is the caller's decision.
"""

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

from .dicom_header_radfm import PlainHeader

# What pydicom raises at an element that breaks the standard.
MALFORMED: tuple[type[Exception], ...]
MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError)
try:
    import pydicom
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.tag import BaseTag

    MALFORMED += (BytesLengthException, InvalidDicomError)
except ImportError:
    pass

BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "AT": "H"}
TEXT = ("DS", "IS", "CS", "UI", "DA", "TM", "DT", "AS", "AE")
CHARACTERS = ("LO", "SH", "PN", "LT", "ST", "UT", "UC")
SIZES = {"H": 2, "h": 2, "L": 4, "l": 4, "f": 4, "d": 8, "Q": 8, "q": 8}
Header: TypeAlias = "pydicom.Dataset | PlainHeader"
Element = str | int
"""An element's keyword, or the tag of a private element."""


def get_numbers(dataset: Header, element: Element) -> tuple[float, ...] | None:
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
            number = float(value)  # type: ignore[arg-type] # whatever else it is raises
        except (TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(number):
            return None
        numbers.append(number)
    return tuple(numbers) or None


def get_number(dataset: Header, element: Element) -> float | None:
    """The first value of an element as a finite number."""
    numbers = get_numbers(dataset, element)
    return numbers[0] if numbers else None


def get_integer(dataset: Header, element: Element, default: int = 0) -> int:
    """The first value of an element as an integer."""
    number = get_number(dataset, element)
    return default if number is None else int(number)


def get_vector(dataset: Header, element: Element, length: int) -> tuple[float, ...] | None:
    """The values of an element that has to have so many."""
    numbers = get_numbers(dataset, element)
    return numbers if numbers is not None and len(numbers) == length else None


def get_texts(dataset: Header, element: Element) -> tuple[str, ...]:
    """All values of an element as stripped strings."""
    found = _raw(dataset, element)
    return tuple(str(value).strip(" \0") for value in found) if found else ()


def get_text(dataset: Header, element: Element) -> str:
    """The first value of an element as a stripped string, "" where there is none."""
    return (get_texts(dataset, element) or ("",))[0]


def get_items(dataset: Header, element: Element) -> "Sequence[pydicom.Dataset]":
    """The items of a sequence; none where it is missing or something else than a sequence."""
    if isinstance(dataset, PlainHeader):  # a header with a sequence that is wanted is not plain
        return ()
    tag = _tag(element)
    if tag is None or tag not in dataset:
        return ()
    try:
        value = dataset[tag].value
    except MALFORMED:
        return ()
    return value if isinstance(value, pydicom.Sequence | list) else ()


def has_element(dataset: Header, element: Element) -> bool:
    """Whether an element is there, be it empty."""
    tag = _tag(element)
    return tag is not None and (tag in dataset.elements if isinstance(dataset, PlainHeader) else tag in dataset)


def as_dataset(dataset: Header) -> "pydicom.Dataset":
    """A header as pydicom's own functions take it."""
    return dataset.to_dataset() if isinstance(dataset, PlainHeader) else dataset


@cache
def _tag(element: Element) -> int | None:
    return element if isinstance(element, int) else tag_for_keyword(element)


@cache
def _dictionary_vr(tag: int) -> str:
    return dictionary_VR(tag)


def _raw(dataset: Header, element: Element) -> Sequence[object] | None:
    """The values of an element, numbers or strings, before they are checked; None where there is none."""
    tag = _tag(element)
    if tag is None:
        return None
    if isinstance(dataset, PlainHeader):
        found = dataset.elements.get(tag)
        return None if found is None or not found[1] else _parse(dataset, tag, found[0] or "UN", found[1], True)
    if tag not in dataset:
        return None
    try:
        item = dataset.get_item(BaseTag(tag))
    except MALFORMED:
        return None
    if isinstance(item, RawDataElement):
        return _parse(dataset, tag, item.VR or "UN", item.value, item.is_little_endian) if item.value else None
    value = None if item is None else item.value
    if value is None or value == "":
        return None
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)


def _parse(dataset: Header, tag: int, kind: str, value: bytes, little_endian: bool) -> Sequence[object] | None:
    if kind == "UN" and not tag >> 16 & 1:  # implicit, or written by somebody who did not know the element
        kind = _dictionary_vr(tag)
    if kind in TEXT:
        return value.decode("latin-1").rstrip(" \0").split("\\")
    if " or " in kind:  # US or SS: the sign of the pixels decides (PS3.5 A.1)
        kind = "SS" if get_integer(dataset, "PixelRepresentation") == 1 and "SS" in kind else "US"
    if kind in BINARY:
        code = BINARY[kind]
        count = len(value) // SIZES[code]
        return struct.unpack_from(f"{'<' if little_endian else '>'}{count}{code}", value)
    if kind in CHARACTERS:  # the character set matters
        try:
            decoded = as_dataset(dataset)[tag].value
        except MALFORMED:
            return None
        if decoded in (None, ""):
            return None
        return decoded if isinstance(decoded, Sequence) and not isinstance(decoded, str) else (decoded,)
    return (value,)
