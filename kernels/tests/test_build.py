"""The kernels as a kernel repository of the Hub: laid out as the `kernels` library wants it, and loaded by it offline."""

import ast
import importlib
import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import pytest
import radfm_kernels
import torch
from radfm_kernels import common
from radfm_kernels.packed_attention import reference
from testing import DEVICE, assert_close, cu_seqlens_of, rand

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("build_kernels", ROOT / "build.py")
build_kernels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_kernels)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    out = tmp_path_factory.mktemp("repository")
    build_kernels.build(out)
    return out


@pytest.fixture
def kernels(monkeypatch):
    """The `kernels` library. pytest imports this file as `kernels.tests.test_build`, so that name is taken by a folder."""
    if not hasattr(sys.modules.get("kernels"), "get_local_kernel"):
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
    return pytest.importorskip("kernels")


def read_metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def test_each_backend_has_a_variant_with_the_source_and_its_metadata(repository):
    backends = tomllib.loads((ROOT / "build.toml").read_text())["general"]["backends"]
    assert sorted(folder.name for folder in (repository / "build").iterdir()) == [f"torch-{b}" for b in sorted(backends)]
    for backend in backends:
        folder = repository / "build" / f"torch-{backend}"
        metadata = read_metadata(folder)
        assert metadata["backend"]["type"] == backend and metadata["name"] == "radfm-kernels"
        assert metadata["license"] == "Apache-2.0" and metadata["python-depends"] == []
        for file in build_kernels.source_files():
            text = (folder / file.name).read_text()
            if file.name == "_ops.py":
                assert f'NAMESPACE = "{metadata["id"]}"' in text
            else:
                assert text == file.read_text()


def test_the_card_is_the_readme_of_the_repository_with_its_id(tmp_path):
    build_kernels.build(tmp_path, "me/my-kernels")
    card = (tmp_path / "README.md").read_text()
    assert 'get_kernel("me/my-kernels", version=1' in card and "license: apache-2.0" in card and "{{" not in card
    assert tomllib.loads((tmp_path / "build.toml").read_text())["general"]["hub"]["repo-id"] == "me/my-kernels"


def test_the_metadata_names_the_cards_that_the_kernels_run_on(kernels, repository):
    archs = importlib.import_module("kernels.archs")
    named = read_metadata(repository / "build" / "torch-cuda")["backend"]["archs"]
    for capability in ((7, 5), (8, 0), (9, 0), (12, 0)):
        assert archs._supports_cuda_capability(named, capability) == (capability >= common.MIN_CAPABILITY)
    assert "archs" not in read_metadata(repository / "build" / "torch-cpu")["backend"]


def test_the_folder_of_the_kernels_name_holds_the_same_functions(repository):
    """Older versions of the library import `build/VARIANT/radfm_kernels`."""
    folder = repository / "build" / "torch-cpu" / "radfm_kernels"
    spec = importlib.util.spec_from_file_location("compatible", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__all__ == radfm_kernels.__all__
    namespace = read_metadata(folder.parent)["id"]
    assert module.packed_attention is sys.modules[namespace].packed_attention
    q = rand(20, 2, 16)
    cu_seqlens = cu_seqlens_of(12, 8)
    output = module.packed_attention(q, q, q, cu_seqlens, cu_seqlens, 12, 12)
    assert_close(output, reference(q, q, q, cu_seqlens, cu_seqlens, 0.25), torch.float32, "packed attention")


def test_imports_are_relative_or_of_torch_triton_and_the_standard_library():
    """A requirement of the Hub: a kernel is loaded under a name of the library's choice, with nothing else installed."""
    for file in build_kernels.source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            allowed = {"torch", "triton", *sys.stdlib_module_names}
            assert {module.split(".")[0] for module in modules} <= allowed, f"{file.name} imports {modules}"


def test_the_kernels_library_parses_build_toml(kernels):
    backends = importlib.import_module("kernels._rust").Build.open(ROOT).general.backends
    assert [str(backend).lower() for backend in backends] == build_kernels.read_general()["backends"]


def test_the_kernels_library_confirms_the_digest(kernels, repository):
    rust = importlib.import_module("kernels._rust")
    folder = repository / "build" / "torch-cuda"
    digest = rust.Metadata.read_from_file(folder / "metadata.json").digest
    digest.validate(rust.Digest.hash_variant(digest.algorithm, folder))
    (folder / "added.py").touch()
    try:
        with pytest.raises(rust.DigestValidationError):
            digest.validate(rust.Digest.hash_variant(digest.algorithm, folder))
    finally:
        (folder / "added.py").unlink()


def test_the_kernels_library_loads_a_copy_with_operators_of_its_own(kernels, repository):
    loaded = kernels.get_local_kernel(repository)
    q, k, v = (rand(20, 2, 16) for _ in range(3))
    cu_seqlens = cu_seqlens_of(12, 8)
    output = loaded.packed_attention(q, k, v, cu_seqlens, cu_seqlens, 12, 12)
    assert_close(output, reference(q, k, v, cu_seqlens, cu_seqlens, 0.25), torch.float32, "packed attention")
    namespace = read_metadata(repository / "build" / f"torch-{DEVICE}")["id"]
    assert hasattr(getattr(torch.ops, namespace), "packed_attention_forward")
    assert hasattr(torch.ops.radfm_kernels, "packed_attention_forward")


def test_the_wheel_of_radfm_carries_the_package():
    setuptools = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "radfm_kernels" in setuptools["packages"]
    assert ROOT.parent / setuptools["package-dir"]["radfm_kernels"] == build_kernels.SOURCE
    # A folder inside the package would have to be named in pyproject.toml as well.
    assert not [path for path in build_kernels.SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]
