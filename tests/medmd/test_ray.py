"""Ray writes the same files as one process does, and goes on where it was stopped."""

import pytest
from building import make_portal
from test_build import files_of

from radfm.medmd.build import BuildOptions, build
from radfm.medmd.schema import DataError

NAMES = ("nih", "slake", "ct-rate")


def test_ray_writes_the_same_bytes_and_a_lost_shard_again(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'radfm[ray]' (617 MB)")
    inputs = {name: make_portal(name, tmp_path) for name in NAMES}
    build(inputs, tmp_path / "one")
    build(inputs, tmp_path / "ray", BuildOptions(runner="ray"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")


def test_without_ray_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'radfm\[ray\]'"):
        build({"slake": make_portal("slake", tmp_path)}, tmp_path / "out", BuildOptions(runner="ray"))
