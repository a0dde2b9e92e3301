"""What else the published checkpoint becomes: a vision tower, the front of another decoder; and the Hub as its source."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from radfm.conversion.convert import ConversionError, convert
from radfm.conversion.decoder import with_decoder
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel


@pytest.fixture(scope="module")
def text_config(published):
    language = json.loads((published / "cases.json").read_text())["config"]["language"]
    return {"model_type": "llama", **{k: v for k, v in language.items() if not k.endswith("token_id")}}


@pytest.fixture(scope="module")
def whole(published, text_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    convert(published / "pytorch_model.bin", out, text_config=text_config, reference=published)
    return out


def test_the_certificate_holds_the_largest_error_of_each_stage(whole, published):
    errors = json.loads((whole / "conversion.json").read_text())["largest_error"]
    tolerance = json.loads((published / "cases.json").read_text())["suggested_absolute_tolerance_float32"]
    assert errors.pop("equal_greedy_tokens") == 1.0
    assert set(errors) == {"vit_features", "perceiver", "image_tokens", "inputs_embeds", "logits", "losses"}
    assert all(0 < error <= tolerance[stage] for stage, error in errors.items())


def test_the_vision_tower_alone_sees_what_the_whole_sees(whole, published, text_config, tmp_path):
    convert(published / "pytorch_model.bin", tmp_path / "vision", text_config=text_config, part="vision")
    scans = [torch.rand(1, 64, 64, 1), torch.rand(1, 32, 64, 8)]
    with torch.no_grad():
        wanted = RadFMForConditionalGeneration.from_pretrained(whole).model.vision_tower(scans)
        for alone in (
            RadFMVisionModel.from_pretrained(tmp_path / "vision"),
            AutoModel.from_pretrained(tmp_path / "vision", trust_remote_code=True),
        ):
            seen = alone(scans)
            torch.testing.assert_close(seen.last_hidden_state, wanted.last_hidden_state, rtol=0, atol=1e-4)
            torch.testing.assert_close(list(seen.pooler_output), list(wanted.pooler_output), rtol=0, atol=1e-3)
    outcomes = json.loads((tmp_path / "vision" / "conversion.json").read_text())["tensors"]
    assert outcomes["lang_model.lm_head.weight"] == "left out: not of the vision tower"
    assert outcomes["embedding_layer.perceiver.latents"] == "perceiver.latents"


def small_decoder(kind, folder):
    words = {word: number for number, word in enumerate(["<unk>", "<eos>", "what", "is", "this", "a", "scan"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=7, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=1, eos_token_id=1)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=16, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_another_decoder_behind_the_published_vision_tower(kind, whole, published, tmp_path):
    small_decoder(kind, tmp_path / "decoder")
    lines = with_decoder(published / "pytorch_model.bin", str(tmp_path / "decoder"), tmp_path / "new", "float32")
    assert "projector (12 → 32)" in lines[1] and "train them first" in lines[2]
    model, loading = RadFMForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    text = torch.tensor([[2, 3, 4, 5, 6]])
    with torch.no_grad():
        wanted, got = decoder.eval()(input_ids=text).logits, model.eval()(input_ids=text).logits
        torch.testing.assert_close(got[..., :7], wanted[..., :7], rtol=0, atol=1e-6)
        tower = RadFMForConditionalGeneration.from_pretrained(whole).model.vision_tower
        torch.testing.assert_close(model.model.vision_tower.state_dict(), tower.state_dict(), rtol=0, atol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "new", trust_remote_code=True)
    inputs = processor(images=torch.rand(64, 64), text="<image>what is this", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4).shape[1] <= inputs["input_ids"].shape[1] + 4


def test_a_folder_without_a_decoder_is_refused(published, tmp_path):
    with pytest.raises(ConversionError, match="is no causal language model with a tokenizer"):
        with_decoder(published / "pytorch_model.bin", str(tmp_path), tmp_path / "new")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: what a repository holds, and its files."""

    folder = None

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        if "/api/models/" in self.path:
            if "missing" in self.path:
                return self.answer(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            names = ["cases.json", "pytorch_model.bin"]
            if "/tree/" in self.path:
                sizes = {name: (self.folder / name).stat().st_size for name in names}
                tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
                return self.answer(200, json.dumps(tree).encode(), body)
            files = [{"rfilename": name} for name in names]
            repository = {"id": "lab/radfm", "sha": "0" * 40, "siblings": files, "private": False, "disabled": False}
            return self.answer(200, json.dumps(repository).encode(), body)
        if "/resolve/" not in self.path:
            return self.answer(404, b"{}", body)
        content = (self.folder / self.path.rsplit("/", 1)[1]).read_bytes()
        return self.answer(200, content, body, {"ETag": '"1"', "X-Repo-Commit": "0" * 40})

    def answer(self, status, content, body, headers=()):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(published):
    """The address of a Hub on this machine."""
    Hub.folder = published
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow  # two interpreters, because the Hub's address is read at import
def test_a_hub_id_is_downloaded_and_converted(hub, whole, text_config, tmp_path):
    (tmp_path / "text.json").write_text(json.dumps(text_config))
    here = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}

    def run(source):
        words = ["convert", source, "out", "--text-config", "text.json"]
        command = [sys.executable, "-m", "radfm.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **here})

    done = run("lab/radfm")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0
    )
    missing = run("lab/missing")
    assert missing.returncode == 2
    assert missing.stderr.startswith("lab/missing: is no file here, and cannot be downloaded from the Hub"), missing.stderr


def test_published_names_are_refused_with_the_remedy(whole, published, tmp_path):
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes((published / "pytorch_model.bin").read_bytes())
    for load in (RadFMForConditionalGeneration, RadFMVisionModel):
        with pytest.raises(ValueError, match=r"published RadFM: convert it once, `radfm convert .*pytorch_model\.bin OUT`"):
            load.from_pretrained(tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits_leave_the_vision_tower_whole(bits):
    pytest.importorskip("bitsandbytes")
    from radfm.cli.chat import load_model

    model = load_model(str(ROOT), "cpu", bits)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert quantised == {name for name in kinds if name.startswith("model.language_model.")}
    assert model.model.vision_tower.dtype == model.model.projector.weight.dtype == torch.bfloat16
