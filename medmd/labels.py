"""What a portal's label says: present, absent, uncertain, or nothing."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .schema import ABSENT, PRESENT, UNCERTAIN, DataError


def consensus(votes: Sequence[int]) -> int:
    """Several readers' 0 and 1: present where most say so, absent where none does, else uncertain.

    A finding that one of three saw is neither asked for nor denied.

    >>> [consensus(votes) for votes in ([1, 1, 0], [1, 0, 0], [0, 0, 0], [1])]
    [1, -1, 0, 1]
    """
    if 2 * sum(votes) > len(votes):
        return PRESENT
    return UNCERTAIN if any(votes) else ABSENT


def four_states(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, int]:
    """Columns with 1, 0, -1 and blank (CheXpert's labeller): blank is "not mentioned" and gives no finding.

    Args:
        row: a table's row.
        columns: column → finding.

    >>> four_states({"Edema": "-1.0", "Pneumonia": ""}, {"Edema": "edema", "Pneumonia": "pneumonia"})
    {'edema': -1}
    """
    findings = {}
    for column, name in columns.items():
        value = row.get(column)
        if value not in (None, "", "nan", "NaN"):
            findings[name] = _state(value, column)
    return findings


def _state(value: Any, column: str) -> int:
    try:
        state = int(float(value))
    except ValueError:
        state = 9
    if state not in (PRESENT, ABSENT, UNCERTAIN):
        raise DataError(f"column {column}: {value!r} is none of 1, 0, -1 and blank.")
    return state


def complete(present: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """Findings of a source that looked for every name: present where listed, else absent.

    >>> complete(["nodule"], ["mass", "nodule"])
    {'mass': 0, 'nodule': 1}
    """
    listed = set(present)
    return {name: PRESENT if name in listed else ABSENT for name in (*names, *sorted(listed - set(names)))}


def mentioned(present: Iterable[str]) -> dict[str, int]:
    """Findings of a source that lists what was mentioned: nothing is known of the others."""
    return dict.fromkeys(present, PRESENT)


def list_literal(text: str | None) -> list[Any]:
    """A Python list written in a cell; empty for an empty cell.

    Raises:
        DataError: it is something else.
    """
    if not text or not text.strip() or text.strip() == "nan":
        return []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{text[:60]!r} is no list.") from error
    return list(value) if isinstance(value, list | tuple) else [value]


def boxes(rows: Iterable[tuple[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Boxes for `Record.extra`: name and (x, y, width, height) or (x_min, y_min, x_max, y_max) as the source has them."""
    return [{"name": name, "box": [round(float(value), 1) for value in box]} for name, box in rows]
