"""The remote code in an environment that has what `pip install transformers torch` brings, and nothing more."""

import os
import shutil
import subprocess
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


# A finder that knows none of the packages that a user may lack.
ASK_WITHOUT_THEM = """
import os
import shutil
import subprocess
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydicom", "nibabel", "SimpleITK", "pylibjpeg", "peft", "kernels", "radfm", *MORE}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import numpy
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(ROOT, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
inputs = processor(images=numpy.zeros((96, 96), numpy.float32), text="<image>What is this?", return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[0])
try:
    processor(images="scan.dcm", text="<image>What is this?")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow  # loads the demo checkpoint in a process of its own
@pytest.mark.parametrize("more", [[], ["PIL"]])
def test_a_model_answers_about_arrays_without_the_readers_packages(more, tmp_path, dicom_files):
    shutil.copy(dicom_files / "CT_small.dcm", tmp_path / "scan.dcm")
    code = f"ROOT, MORE = {str(ROOT)!r}, {more!r}\n{ASK_WITHOUT_THEM}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    answered, refusal = done.stdout.splitlines()
    assert answered == "1" and refusal.startswith("scan.dcm: is DICOM, and reading it needs pydicom")
