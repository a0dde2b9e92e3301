"""docs/transformers.md lists every private name of another library that the code uses."""

import ast
import re

from helpers import ROOT
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, ProcessorMixin, Trainer
from transformers.image_processing_base import ImageProcessingMixin

ROOMS = ("", "cli", "conversion", "medmd", "space", "training", "training/demo")
DOCUMENTED = {"_exit"}  # os._exit is a public function
BASES = (GenerationMixin, ImageProcessingMixin, PreTrainedConfig, PreTrainedModel, ProcessorMixin, Trainer)


def private(name):
    return name.startswith("_") and not name.startswith("__")


def names_in(tree):
    """Attributes that are read or set, and names that are defined in classes and modules or set on `self`."""
    used, defined = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self" and isinstance(node.ctx, ast.Store)
            (defined if of_self else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return used, defined


def private_names_of_other_libraries(sources):
    """Used and not defined here, or defined here because a base class of transformers has it."""
    parts = [names_in(ast.parse(source)) for source in sources]
    used, defined = (set().union(*of_all) for of_all in zip(*parts, strict=True))
    overridden = {name for name in defined if any(hasattr(base, name) for base in BASES)}
    return {name for name in (used - defined) | overridden if private(name)} - DOCUMENTED


def test_the_table_has_the_private_names_of_the_code():
    files = [file for room in ROOMS for file in (ROOT / room).glob("*.py") if file.name != "__init__.py"]
    section = (ROOT / "docs" / "transformers.md").read_text().split("## Private interfaces")[1]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", section, flags=re.M) for name in re.findall(r"`(\w+)`", row)}
    assert private_names_of_other_libraries(file.read_text() for file in files) == listed


def test_a_new_private_name_is_noticed():
    source = "class A:\n _no_split_modules = []\n def f(self):\n  self._own = 1\n  return self._own, x._theirs\n"
    assert private_names_of_other_libraries([source]) == {"_no_split_modules", "_theirs"}
