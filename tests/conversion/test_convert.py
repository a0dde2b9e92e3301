"""The published checkpoint in every form it comes in becomes the same repository, and goes back to the same tensors."""

import doctest
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import radfm.conversion.names
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
    report = json.loads((converted / "conversion.json").read_text())
    stored = Checkpoint(published / "pytorch_model.bin").tensors
    assert set(report["tensors"]) == set(stored)
    ours = set(weights(converted))
    for name, outcome in report["tensors"].items():
        assert outcome in ours or outcome.startswith("dropped: "), name
    dropped = [name for name, outcome in report["tensors"].items() if outcome.startswith("dropped")]
    assert any("bert_model" in name for name in dropped) and "embedding_layer.weight" in dropped
    assert set(report["tensors"].values()) >= ours, "nothing is left at its random start"


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


def test_a_split_zip_is_refused_with_the_command_that_joins_it(published, tmp_path):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(published / "pytorch_model.bin", "pytorch_model.bin")
    content = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "RadFM.z01").write_bytes(content[:300_000])
    (tmp_path / "RadFM.zip").write_bytes(content[300_000:])
    for _ in range(2):
        with pytest.raises(ConversionError, match=r"zip -s 0 RadFM\.zip --out joined\.zip"):
            convert(tmp_path / "RadFM.zip", tmp_path / "out")
        (tmp_path / "RadFM.z01").unlink(missing_ok=True)


def test_a_checkpoint_in_bfloat16_keeps_its_values(published, converted, text_config, tmp_path):
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    torch.save(half, tmp_path / "half.bin")
    convert(tmp_path / "half.bin", tmp_path / "out", text_config=text_config)
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights(converted).items()}
    torch.testing.assert_close(weights(tmp_path / "out"), rounded, rtol=0, atol=0)


def test_back_again_every_tensor_is_as_it_was(published, converted, text_config, tmp_path):
    to_published(converted, tmp_path / "back.bin")
    back, stored = torch.load(tmp_path / "back.bin", weights_only=True), load_file(published / "model.safetensors")
    used = {
        name
        for name, outcome in json.loads((converted / "conversion.json").read_text())["tensors"].items()
        if outcome[:4] != "drop"
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
    monkeypatch.setattr("radfm.conversion.tensors.SHARD_BYTES", 100_000)

    def stop(name, size):
        if "perceiver" in name:
            raise KeyboardInterrupt

    # The card names its folder, so both have one name.
    one, other = tmp_path / "interrupted" / "radfm", tmp_path / "whole" / "radfm"
    with pytest.raises(KeyboardInterrupt):
        convert(published / "pytorch_model.bin", one, text_config=text_config, progress=stop)
    written = {file.name: file.stat().st_mtime_ns for file in one.glob("*.safetensors")}
    convert(published / "pytorch_model.bin", one, text_config=text_config)
    convert(published / "pytorch_model.bin", other, text_config=text_config)
    for file in other.iterdir():
        assert (one / file.name).read_bytes() == file.read_bytes(), file.name
    assert written and all((one / name).stat().st_mtime_ns == at for name, at in written.items()), "kept"
    sharded, single = (RadFMForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (one, converted))
    torch.testing.assert_close(sharded, single, rtol=0, atol=0)


def changed(published, tmp_path, change):
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "changed.bin")
    return tmp_path / "changed.bin"


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor(tensors[name]) if callable(tensor) else tensor})


def with_value(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


EMBED, HEAD = "lang_model.model.embed_tokens.weight", "lang_model.lm_head.weight"
MARKS = "embedding_layer.figure_token_weight"
LATENTS, FC_BIAS = "embedding_layer.perceiver.latents", "embedding_layer.fc.bias"
QKV = "embedding_layer.vision_encoder.transformer.layers.0.0.fn.to_qkv.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("embedding_layer.perceiver.norm.bias"), "lacks embedding_layer.perceiver.norm.bias"),
        (lambda t: t.pop(MARKS), "lacks embedding_layer.figure_token_weight"),
        (lambda t: t.pop(HEAD), "lacks lang_model.lm_head.weight"),
        (lambda t: t.update(surprise=torch.zeros(2)), r"surprise: the table of names .* has no rule"),
        (put(FC_BIAS, torch.zeros(3)), r"fc.bias has shape \(3,\), not \(64,\)"),
        (put(HEAD, lambda t: t[:-1]), r"lm_head.weight has shape \(\d+, 64\), not \(\d+, 64\)"),
        (put(MARKS, lambda t: t[:1]), r"figure_token_weight has shape \(1, 64\), not \(2, 64\)"),
        (put(EMBED, lambda t: t[0]), r"embed_tokens.weight has shape \(64,\), and must have 2 axes"),
        (put(LATENTS, lambda t: t[None]), r"perceiver.latents has shape .* and must have 2 axes"),
        (put(LATENTS, torch.zeros(0, 48)), r"perceiver.latents has shape \(0, 48\)"),
        (put(QKV, lambda t: t[:3]), "its sizes make no model|to_qkv.weight has shape"),
        (put(EMBED, lambda t: t.long()), "embed_tokens.weight holds torch.int64, no real numbers"),
        (put(FC_BIAS, lambda t: t[:1].expand(64)), r"fc.bias: its values overlap \(shape \(64,\), stride \(0,\)\)"),
        (put(EMBED, with_value(float("nan"))), "embed_tokens.weight holds NaN or infinity"),
        (put(FC_BIAS, with_value(float("-inf"))), "fc.bias holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_cannot_be_a_model_is_refused_with_the_tensor_and_the_reason(
    change, sentence, published, text_config, tmp_path
):
    with pytest.raises(ConversionError, match=sentence) as error:
        convert(changed(published, tmp_path, change), tmp_path / "out", text_config=text_config)
    assert "\n" not in str(error.value)


def test_a_value_too_large_for_float16_is_refused_with_the_remedy(published, text_config, tmp_path):
    source = changed(published, tmp_path, put(FC_BIAS, with_value(1e6)))
    with pytest.raises(ConversionError, match=r"fc.bias has values too large for torch.float16; use --dtype bfloat16"):
        convert(source, tmp_path / "out", text_config=text_config, dtype="float16")


class Stored:
    """Pickles as the call of a function of torch with any arguments, as a hostile file may hold it."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "the storage" else None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("the storage", 0, (1 << 40,), (1,)), "needs more than the 16 bytes that are stored"),
        (("the storage", 3, (2,), (1,)), "needs more than the 16 bytes"),
        (("the storage", -1, (2,), (1,)), "describe no tensor"),
        (("the storage", 0, (2, 2), (1,)), "describe no tensor"),
        (("the storage", 0, ("2",), (1,)), "describe no tensor"),
        (("the storage", 0, (2, 2), (1, 1)), "its values overlap"),
        (("something else", 0, (2,), (1,)), "its index is damaged"),
        (("the storage", 0), "its index is damaged"),
    ],
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(arguments, sentence, tmp_path):
    with zipfile.ZipFile(tmp_path / "hostile.bin", "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file).dump({"weight": Stored(*arguments)})
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(ConversionError, match=sentence):
        Checkpoint(tmp_path / "hostile.bin")


class Evil:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_a_pickle_that_asks_for_code_is_not_run(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(ConversionError, match=r"asks for builtins\.print, which no weights need; it was not run"):
        convert(tmp_path / "evil.bin", tmp_path / "out")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_one_line_and_status_2(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(app, ["convert", str(tmp_path / name), str(tmp_path / "out")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and name in result.stderr


def test_a_damaged_index_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "damaged.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00(X")
    with pytest.raises(ConversionError, match="its index is damaged"):
        Checkpoint(tmp_path / "damaged.bin")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ConversionError, match="holds no tensors"):
        Checkpoint(tmp_path / "empty.safetensors")


def test_the_examples_in_the_docstrings_give_what_they_say():
    assert doctest.testmod(radfm.conversion.names).failed == 0
