"""Skips the tests that cannot apply, each with its reason, and fails if one of the list is not there any more.

A class with an attribute `only`, a pattern of names, runs no other tests.
"""

import re

import pytest
from excluded import EXCLUDED


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if re.fullmatch(getattr(item.cls, "only", ".*"), item.name)]
    unused = {(name, pattern) for name, patterns in EXCLUDED.items() for pattern in patterns}
    for item in items:
        for name, patterns in EXCLUDED.items():
            if item.cls is None or name not in [of.__name__ for of in item.cls.__mro__]:
                continue
            for pattern, reason in patterns.items():
                if re.fullmatch(pattern, item.originalname or item.name):
                    unused.discard((name, pattern))
                    item.add_marker(pytest.mark.skip(reason=reason))
    collected = {of.__name__ for item in items if item.cls is not None for of in item.cls.__mro__}
    stale = sorted(pattern for name, pattern in unused if name in collected)
    if stale:
        raise pytest.UsageError(f"tests/transformers/excluded.py names tests that transformers does not have: {stale}")
