"""Make a RadFM in every way that there is and push it to the Hub that HF_ENDPOINT names. A process of its own runs this.

    python push_every_way.py FOLDER PUBLISHED    # prints a JSON object: name of the way → None, or the error

FOLDER is empty; PUBLISHED holds the published code's checkpoint (tests/data/published-small).
"""

import json
import shutil
import sys
import traceback
from pathlib import Path

import torch
from helpers import ROOT
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.conversion.convert import convert
from radfm.conversion.decoder import with_decoder
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

work, published = Path(sys.argv[1]), Path(sys.argv[2])
BASE = "me/clone"


def push_folder(folder: Path, name: str, *options: str) -> None:
    done = CliRunner().invoke(app, ["push", "model", str(folder), f"me/{name}", *options])
    assert done.exit_code == 0, done.output


def clone() -> None:
    folder = work / "my-clone.v2"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "venvs", "build", "shared", "__pycache__"))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "config.json").write_text("{}")
    push_folder(folder, "clone")


def auto_loaded() -> None:
    AutoModelForImageTextToText.from_pretrained(ROOT, trust_remote_code=True).push_to_hub("me/auto-loaded")
    AutoProcessor.from_pretrained(ROOT, trust_remote_code=True).push_to_hub("me/auto-loaded")


def hub_loaded() -> None:
    AutoModelForImageTextToText.from_pretrained(BASE, trust_remote_code=True).push_to_hub("me/hub-loaded")
    AutoProcessor.from_pretrained(BASE, trust_remote_code=True).push_to_hub("me/hub-loaded")


def installed_classes() -> None:
    RadFMForConditionalGeneration.from_pretrained(ROOT).push_to_hub("me/installed-classes")
    RadFMProcessor.from_pretrained(ROOT).push_to_hub("me/installed-classes")


def saved_folder() -> None:
    folder = work / "saved"
    RadFMForConditionalGeneration.from_pretrained(ROOT).save_pretrained(folder)
    RadFMProcessor.from_pretrained(ROOT).save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"paths of this machine")
    push_folder(folder, "saved-folder")


class Examples(torch.utils.data.Dataset):
    """One example without a scan, twice."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        ids = torch.tensor([1, 5, 6, 7, 2])
        return {"input_ids": ids, "labels": ids}


def train(model: object, name: str) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(work / name), hub_model_id=f"me/{name}", max_steps=1, learning_rate=1e-7, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(BASE, trust_remote_code=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=Examples(), processing_class=processor)
    trainer.train()
    return trainer


def adapted(base: str, model_class: type = AutoModelForImageTextToText, **options: object) -> PeftModel:
    model = model_class.from_pretrained(base, **options)
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["projector"], r=2))


def trainer_full() -> None:
    train(AutoModelForImageTextToText.from_pretrained(BASE, trust_remote_code=True), "trainer-full").push_to_hub()


def trainer_lora() -> None:
    train(adapted(BASE, trust_remote_code=True), "trainer-lora").push_to_hub()


def trainer_lora_installed() -> None:
    train(adapted(BASE, RadFMForConditionalGeneration), "trainer-lora-installed").push_to_hub()


def adapter_folder() -> None:
    trainer = train(adapted(str(ROOT), RadFMForConditionalGeneration), "adapter-folder")
    trainer.save_model()
    commit = HfApi().model_info(BASE).sha
    push_folder(work / "adapter-folder", "adapter-folder", "--base", f"{BASE}@{commit}")


def merged_lora() -> None:
    merged = adapted(BASE, trust_remote_code=True).merge_and_unload()
    merged.push_to_hub("me/merged-lora")
    AutoProcessor.from_pretrained(BASE, trust_remote_code=True).push_to_hub("me/merged-lora")


def merged_folder() -> None:
    folder = work / "merged"
    adapted(str(ROOT), RadFMForConditionalGeneration).merge_and_unload().save_pretrained(folder)
    RadFMProcessor.from_pretrained(ROOT).save_pretrained(folder)
    push_folder(folder, "merged-folder")


def text_sizes() -> dict:
    language = json.loads((published / "cases.json").read_text())["config"]["language"]
    return {"model_type": "llama", **{key: value for key, value in language.items() if not key.endswith("token_id")}}


def converted() -> None:
    convert(published / "pytorch_model.bin", work / "converted", text_config=text_sizes())
    push_folder(work / "converted", "converted")


def vision_part() -> None:
    convert(published / "pytorch_model.bin", work / "vision", text_config=text_sizes(), part="vision")
    push_folder(work / "vision", "vision-part")


def other_decoder() -> None:
    decoder = work / "decoder"
    words = {word: number for number, word in enumerate(["<unk>", "<eos>", "Which", "imaging", "modality", "is", "this"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>").save_pretrained(decoder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=16, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(decoder)
    with_decoder(published / "pytorch_model.bin", str(decoder), work / "other", "float32")
    push_folder(work / "other", "other-decoder")


def quantised() -> None:
    folder = work / "quantised"
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    RadFMForConditionalGeneration.from_pretrained(ROOT, quantization_config=settings).save_pretrained(folder)
    RadFMProcessor.from_pretrained(ROOT).save_pretrained(folder)
    push_folder(folder, "quantised")


WAYS = (
    clone, auto_loaded, hub_loaded, installed_classes, saved_folder, trainer_full, trainer_lora, trainer_lora_installed,
    adapter_folder, merged_lora, merged_folder, converted, vision_part, other_decoder, quantised,
)  # fmt: skip

if __name__ == "__main__":
    errors = {}
    for way in WAYS:
        try:
            way()
            errors[way.__name__] = None
        except Exception:
            errors[way.__name__] = traceback.format_exc()
    print("\n" + json.dumps(errors))
