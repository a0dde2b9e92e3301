"""`radfm convert --split`: a plain LLaMA and a front that makes its inputs give the logits of the whole model."""

import json

import pytest
import torch
from helpers import IMAGE, ROOT, small_config, small_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.conversion.names import ConversionError
from radfm.conversion.split import split
from radfm.modeling_radfm import RadFMModel
from radfm.processing_radfm import RadFMProcessor


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A small model with the demo's processor, and its two parts."""
    folder = tmp_path_factory.mktemp("split")
    model = small_model()
    model.save_pretrained(folder / "whole")
    RadFMProcessor.from_pretrained(ROOT).save_pretrained(folder / "whole")
    split(folder / "whole", folder)
    return model, folder


@torch.inference_mode()
def test_the_decoder_gives_the_logits_of_the_whole_on_what_the_front_embeds(parts):
    model, folder = parts
    decoder, decoder_info = AutoModelForCausalLM.from_pretrained(folder / "decoder", output_loading_info=True)
    front, front_info = RadFMModel.from_pretrained(folder / "front", output_loading_info=True)
    for info in (decoder_info, front_info):
        assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert type(decoder) is LlamaForCausalLM and len(front.language_model.layers) == 0

    scans = [torch.rand(1, 64, 64, 8), torch.rand(3, 64, 64, 1)]
    ids = torch.tensor([[1, *IMAGE, 5, *IMAGE, 7, 8]])
    features = front.get_image_features(scans).pooler_output
    embeddings = front.get_input_embeddings()(ids)
    embeddings[ids == front.config.image_token_id] = torch.cat(features)
    logits = decoder(inputs_embeds=embeddings).logits
    expected = model(input_ids=ids, pixel_values=scans).logits
    text = [i for i in range(logits.shape[-1]) if i not in model.image_ids]
    torch.testing.assert_close(logits[..., text], expected[..., text])


def test_the_decoder_knows_nothing_of_radfm(parts):
    _, folder = parts
    assert not list((folder / "decoder").glob("*.py"))
    for file in ("config.json", "tokenizer_config.json"):
        text = (folder / "decoder" / file).read_text()
        assert "radfm" not in text.lower()
    assert json.loads((folder / "front" / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_radfm.RadFMModel"


def test_weights_are_written_in_files_of_bounded_size(parts, tmp_path, monkeypatch):
    _, folder = parts
    monkeypatch.setattr("radfm.conversion.split.SHARD_BYTES", 40_000)
    split(folder / "whole", tmp_path)
    assert len(list((tmp_path / "decoder").glob("model-*.safetensors"))) > 1
    whole, sharded = (LlamaForCausalLM.from_pretrained(each / "decoder").state_dict() for each in (folder, tmp_path))
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_what_cannot_be_split_is_one_line_and_status_2(tmp_path):
    text = {"model_type": "qwen2", "vocab_size": 103, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    small_model(text_config={**text, "num_attention_heads": 4, "num_key_value_heads": 2}).save_pretrained(tmp_path / "qwen")
    (tmp_path / "empty").mkdir()
    small_config().save_pretrained(tmp_path / "empty")
    (tmp_path / "none").mkdir()
    for source, sentence in (
        ("qwen", "'qwen2', and only"),
        ("empty", "holds no safetensors"),
        ("none", "is no RadFM"),
    ):
        with pytest.raises(ConversionError, match=sentence):
            split(tmp_path / source, tmp_path / "out")
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / "out"), "--split"])
        assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
