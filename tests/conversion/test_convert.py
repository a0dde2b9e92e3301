"""The published checkpoint in every form it comes in becomes the same repository, and goes back to the same tensors."""

import json
import pickle
import shutil
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.conversion.convert import Checkpoint, ConversionError, convert, to_published
from radfm.modeling_radfm import RadFMForConditionalGeneration


@pytest.fixture(scope="module")
def text_config(published):
    language = json.loads((published / "cases.json").read_text())["config"]["language"]
    return {"model_type": "llama", **{k: v for k, v in language.items() if not k.endswith("token_id")}}


@pytest.fixture(scope="module")
def converted(published, text_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    convert(published / "pytorch_model.bin", out, text_config=text_config)
    return out


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_every_published_tensor_is_used_or_dropped_for_a_reason(published, converted):
    certificate = json.loads((converted / "conversion.json").read_text())
    stored = Checkpoint(published / "pytorch_model.bin").tensors
    assert set(certificate["tensors"]) == set(stored)
    ours = set(weights(converted))
    for name, fate in certificate["tensors"].items():
        assert fate in ours or fate.startswith("dropped: "), name
    dropped = [name for name, fate in certificate["tensors"].items() if fate.startswith("dropped")]
    assert any("bert_model" in name for name in dropped) and "embedding_layer.weight" in dropped
    assert set(certificate["tensors"].values()) >= ours, "nothing is left at its random start"


@pytest.mark.parametrize("form", ["zip stored", "zip deflated", "folder", "safetensors"])
def test_every_form_gives_the_same_weights(form, published, converted, text_config, tmp_path):
    binary = published / "pytorch_model.bin"
    if form == "safetensors":
        source = published / "model.safetensors"
    elif form == "folder":
        source = tmp_path / "folder"
        source.mkdir()
        shutil.copy(binary, source)
    else:
        source = tmp_path / "RadFM.zip"
        kind = zipfile.ZIP_STORED if form.endswith("stored") else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(source, "w", kind) as archive:
            archive.write(binary, "RadFM/pytorch_model.bin")
    convert(source, tmp_path / "out", text_config=text_config)
    torch.testing.assert_close(weights(tmp_path / "out"), weights(converted), rtol=0, atol=0)
    assert not list(tmp_path.glob("**/*.bin")) or form == "folder", "nothing was unpacked to disk"


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the zip program, which splits archives")
def test_a_split_zip_is_read_across_its_parts(published, converted, text_config, tmp_path):
    command = ["zip", "-q", "-s", "300k", "-0", tmp_path / "RadFM.zip", "pytorch_model.bin"]
    subprocess.run(command, cwd=published, check=True)
    assert (tmp_path / "RadFM.z01").exists()
    convert(tmp_path / "RadFM.zip", tmp_path / "out", text_config=text_config)
    torch.testing.assert_close(weights(tmp_path / "out"), weights(converted), rtol=0, atol=0)
    (tmp_path / "RadFM.z01").unlink()
    with pytest.raises(ConversionError, match=r"RadFM\.zip: is no whole file of weights"):
        convert(tmp_path / "RadFM.zip", tmp_path / "again", text_config=text_config)


def test_back_again_every_tensor_is_as_it_was(published, converted, text_config, tmp_path):
    to_published(converted, tmp_path / "back.bin")
    back, stored = torch.load(tmp_path / "back.bin", weights_only=True), load_file(published / "model.safetensors")
    used = {
        name
        for name, fate in json.loads((converted / "conversion.json").read_text())["tensors"].items()
        if fate[:4] != "drop"
    }
    assert set(back) == used | {"embedding_layer.weight"}
    for name in used:
        assert torch.equal(back[name], stored[name]), name
    convert(tmp_path / "back.bin", tmp_path / "again", text_config=text_config)
    torch.testing.assert_close(weights(tmp_path / "again"), weights(converted), rtol=0, atol=0)


def test_sixteen_bits_and_the_stopping_rule(published, text_config, tmp_path):
    convert(published / "pytorch_model.bin", tmp_path / "a", text_config=text_config, dtype="bfloat16")
    model = RadFMForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == 2
    convert(published / "pytorch_model.bin", tmp_path / "b", text_config=text_config, published_generation=True)
    assert RadFMForConditionalGeneration.from_pretrained(tmp_path / "b").generation_config.eos_token_id == 1


def test_interrupted_and_started_again_it_ends_with_the_same_files(published, converted, text_config, tmp_path, monkeypatch):
    monkeypatch.setattr("radfm.conversion.convert.SHARD_BYTES", 100_000)

    def stop(name, size):
        if "perceiver" in name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(published / "pytorch_model.bin", tmp_path / "a", text_config=text_config, progress=stop)
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a").glob("*.safetensors")}
    convert(published / "pytorch_model.bin", tmp_path / "a", text_config=text_config)
    convert(published / "pytorch_model.bin", tmp_path / "b", text_config=text_config)
    for file in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes(), file.name
    assert written and all((tmp_path / "a" / name).stat().st_mtime_ns == at for name, at in written.items()), "kept"
    one, other = (
        RadFMForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (tmp_path / "a", converted)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def changed(published, tmp_path, change):
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "changed.bin")
    return tmp_path / "changed.bin"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("embedding_layer.perceiver.norm.bias"), "lacks embedding_layer.perceiver.norm.bias"),
        (lambda t: t.pop("embedding_layer.figure_token_weight"), "lacks embedding_layer.figure_token_weight"),
        (lambda t: t.update(surprise=torch.zeros(2)), "surprise: no rule says"),
        (lambda t: t.update({"embedding_layer.fc.bias": torch.zeros(3)}), r"fc.bias has shape \(3,\), not \(64,\)"),
    ],
)
def test_what_is_missing_unknown_or_misshapen_is_named(change, sentence, published, text_config, tmp_path):
    with pytest.raises(ConversionError, match=sentence):
        convert(changed(published, tmp_path, change), tmp_path / "out", text_config=text_config)


class Evil:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_a_pickle_that_asks_for_code_is_not_run(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(ConversionError, match=r"asks for builtins\.print, which no weights need; it was not run"):
        convert(tmp_path / "evil.bin", tmp_path / "out")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_one_line_and_status_2(content, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    words = ["convert", str(tmp_path / "model.bin"), str(tmp_path / "out")]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 2 and run.stderr.count("\n") == 1 and "model.bin" in run.stderr
