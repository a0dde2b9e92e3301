"""Each test starts from the same seed; `testing` comes first, because it chooses Triton's interpreter before Triton is imported."""

import pytest
import testing  # noqa: F401, I001
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
