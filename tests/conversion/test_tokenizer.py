"""Token ids of the published prompts.

LLaMA's own file is not free to ship; one of its form and size is made, in which the words of the prompts stand at their ids.
"""

import json
import re

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as sentencepiece

from radfm.conversion.names import ConversionError
from radfm.conversion.tokenizer import published_tokenizer
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.processing_radfm import RadFMProcessor

WORDS = {
    278: "▁the", 297: "▁in", 310: "▁of", 322: "▁and", 366: "▁you", 387: "eg", 550: "ans", 598: "are", 738: "▁any", 869: "▁.",
    885: "▁sc", 1577: "▁?", 1815: "▁Can", 1967: "▁image", 3831: "▁Comp", 4874: "▁yes", 7803: "▁Two", 7962: "▁visible",
    9160: "▁Card", 12439: "▁identify", 14910: "iom", 14997: "aly", 18906: "▁signs", 29901: ":", 29973: "?",
}  # fmt: skip
SCAN = load_scan(np.zeros((8, 8), np.uint8))
# The published folder's: under it transformers 5 recurses without end.
EMPTY = {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": "", "add_bos_token": True}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A SentencePiece file of LLaMA's form and size: bytes, the words above and the pieces that they are merged from."""
    folder = tmp_path_factory.mktemp("llama")
    model = sentencepiece.ModelProto()
    parts = {word[:length] for word in WORDS.values() for length in range(1, len(word))} | set("".join(WORDS.values()))
    free = iter(number for number in range(259, 32_000) if number not in WORDS)
    places = {**WORDS, **dict(zip(free, sorted(parts - set(WORDS.values())), strict=False))}
    for number in range(32_000):
        piece = model.pieces.add()
        piece.score = -max(number - 259, 0)
        if number < 3:
            piece.piece, piece.type = (("<unk>", 2), ("<s>", 3), ("</s>", 3))[number]
        elif number < 259:
            piece.piece, piece.type = f"<0x{number - 3:02X}>", 6
        else:
            piece.piece, piece.type = places.get(number, f"unused{number}"), 1
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(EMPTY))
    return folder


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json", "saved and loaded"])
def tokenizer(request, llama, tmp_path_factory):
    made = published_tokenizer(str(llama), 32_000)
    if request.param == "tokenizer.model":
        return made
    folder = tmp_path_factory.mktemp("again")
    processor = RadFMProcessor(RadFMImageProcessor(), made)
    if request.param == "saved and loaded":
        processor.save_pretrained(folder)
        return RadFMProcessor.from_pretrained(folder).tokenizer
    from transformers import LlamaTokenizer

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    LlamaTokenizer.from_pretrained(llama, **special).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return published_tokenizer(str(folder), 32_000)


def test_ids_of_the_published_prompts(tokenizer, published):
    examples = json.loads((published / "cases.json").read_text())["tokenizer_example"]
    for example in examples:
        scans = len(re.findall(r"<image>", example["text"]))
        tokens = len(re.findall(r"<image\d+>", example["text"])) // scans
        processor = RadFMProcessor(RadFMImageProcessor(), tokenizer, num_image_tokens=tokens)
        text = re.sub(r"(<image\d+>)+</image>", "", example["text"])
        # One placeholder stands here for each of the 3,200 published ones.
        wanted = [min(token_id, 32_002) for token_id in example["ids"]]
        (ids,) = processor(text=text, images=[SCAN] * scans)["input_ids"]
        assert ids == wanted, text


def test_a_question_mark_behind_a_scan_is_the_spaced_one(tokenizer):
    assert tokenizer("</image>?")["input_ids"] == [1, 32_001, 1577]
    assert tokenizer.decode([1815, 366, 29973, 2], skip_special_tokens=True) == "Can you?"


def test_a_vocabulary_of_another_size_is_refused(llama):
    with pytest.raises(ConversionError, match=r"has a vocabulary of 32000, the checkpoint one of 200\."):
        published_tokenizer(str(llama), 200)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"holds no tokenizer \(tokenizer\.json or tokenizer\.model\)"):
        published_tokenizer(str(tmp_path), 32_000)
