"""What the tests of the benchmark share."""

from collections.abc import Iterator

import pytest
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING


@pytest.fixture(scope="module", autouse=True)
def auto_classes_as_before() -> Iterator[None]:
    """Take back what `radfm bench run` registers, so that later tests of the process load RadFM as remote code."""
    mappings = (CONFIG_MAPPING, AutoModelForImageTextToText._model_mapping, PROCESSOR_MAPPING)
    before = [dict(mapping._extra_content) for mapping in mappings]
    yield
    for mapping, content in zip(mappings, before, strict=True):
        mapping._extra_content.clear()
        mapping._extra_content.update(content)
