"""The recipe `demo`: data set → tokenizer → vision tower → the rest → a model repository."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from ..recipe import Recipe, RecipeError
from ..run import keep_recipe
from .checkpoint import image_processor, new_model, write
from .language import train_language
from .scans import DemoScan, label_values, read_scans
from .tokenizer import train_tokenizer
from .tower import Classifier, train_tower


def train_demo(recipe: Recipe) -> Path:
    """Train the demo checkpoint, from nothing or from another one (`model`); the folder with the model.

    Interrupted, the same call goes on.

    Raises:
        DataError: no such data set.
        RecipeError: a stage draws scans of a kind that the data set lacks, or the folder holds another training.
    """
    out, stages = Path(str(recipe.training["output_dir"])), recipe.stages
    assert stages is not None
    keep_recipe(recipe, out, write=True)
    scans = read_scans(recipe.data, "train", image_processor(), out / "scans")
    scan_kinds = {scan.kind for scan in scans}
    for name, stage in (("tower", stages.tower), ("language", stages.language)):
        if missing := sorted(set(stage.scans) - scan_kinds):
            raise RecipeError(
                f"stages.{name}.scans.{missing[0]}: the data set has no such scans; it has {', '.join(sorted(scan_kinds))}."
            )
    processor = RadFMProcessor(image_processor(), train_tokenizer(texts_of(scans)))
    values = label_values(scans)
    model = new_model(processor.tokenizer)
    if recipe.model:
        start_from(model, processor.tokenizer, recipe.model)
    classifier = Classifier(model.model.vision_tower, values)
    train_tower(classifier, scans, stages.tower, out / "tower")
    train_language(model, processor, values, scans, stages.language, recipe.loss, out / "language")
    write(model, processor, out)
    return out


def start_from(model: RadFMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Take over the weights of an earlier demo checkpoint, which has another tokenizer.

    A token that both have keeps its row of the embedding and of the head; a new one gets the mean of the rows of the
    tokens that spelled it before.
    """
    base, spell = RadFMForConditionalGeneration.from_pretrained(name), RadFMProcessor.from_pretrained(name).tokenizer
    spelled = [_spelling(tokenizer, token, spell) for token in range(len(tokenizer))]
    weights = base.state_dict()
    for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = torch.stack([weights[key][ids].mean(0) for ids in spelled])
    model.load_state_dict(weights)


def _spelling(tokenizer: PreTrainedTokenizerFast, token: int, earlier: PreTrainedTokenizerFast) -> list[int]:
    """The ids of a token, or of the tokens that it consists of, in an earlier tokenizer."""
    text = tokenizer.convert_ids_to_tokens(token)
    known = earlier.get_vocab()
    return [known[text]] if text in known else earlier.encode(tokenizer.decode([token]), add_special_tokens=False)


def texts_of(scans: list[DemoScan]) -> list[str]:
    """The texts of all records, once each, as the chat template joins them; in sorted order."""
    texts: set[str] = set()
    for scan in scans:
        for record in scan.records:
            for message in record.messages:
                start = " " if message.role == "assistant" else ""
                texts.update(start + part.text for part in message.content if part.text)
    return sorted(texts)
