"""The remote code in an environment that has what `pip install transformers torch` brings, and nothing more."""

import sys

import pytest
from helpers import ROOT
from transformers.dynamic_module_utils import get_imports

# torch, transformers and what they depend on.
BROUGHT = {"torch", "transformers", "numpy", "packaging", "huggingface_hub", "safetensors", "tokenizers", "jinja2"}


@pytest.mark.parametrize("file", sorted(ROOT.glob("*_radfm.py")), ids=lambda file: file.stem)
def test_transformers_finds_no_import_that_a_user_may_lack(file):
    """transformers refuses a module for an import that is not installed, unless that stands in `try`."""
    assert set(get_imports(file)) - BROUGHT - sys.stdlib_module_names == set()
