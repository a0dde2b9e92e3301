"""One seed for each test. `testing` is imported first, because it chooses the interpreter before Triton is imported."""

import pytest
import testing  # noqa: F401
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
