"""The published checkpoint's tensors under the names they have here.

The published state dict is that of plain modules (`lang_model`, `embedding_layer`), as its code (commit 9efba84) makes it.
"""

import re
from collections.abc import Mapping

import torch


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: one line that names the tensor and the reason."""


# Pattern of a published name → name here.
NAMES = {
    r"lang_model\.model\.(?!embed_tokens)(.+)": r"model.language_model.\1",
    r"embedding_layer\.fc\.(.+)": r"model.projector.\1",
    r"embedding_layer\.vision_encoder\.to_patch_embedding\.1\.(.+)": r"model.vision_tower.patch_embedding.patch_norm.\1",
    r"embedding_layer\.vision_encoder\.to_patch_embedding\.2\.(.+)": r"model.vision_tower.patch_embedding.projection.\1",
    r"embedding_layer\.vision_encoder\.to_patch_embedding\.3\.(.+)": r"model.vision_tower.patch_embedding.output_norm.\1",
    r"embedding_layer\.vision_encoder\.pos_embedding\.row_embed\.(.+)": r"model.vision_tower.patch_embedding.rows.\1",
    r"embedding_layer\.vision_encoder\.pos_embedding\.col_embed\.(.+)": r"model.vision_tower.patch_embedding.columns.\1",
    r"embedding_layer\.vision_encoder\.pos_embedding\.dep_embed\.(.+)": r"model.vision_tower.patch_embedding.depths.\1",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.0\.norm\.(.+)": r"model.vision_tower.layers.\1.attention_norm.\2",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.(.+)": r"model.vision_tower.layers.\1.attention.qkv.\2",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(.+)": r"model.vision_tower.layers.\1.attention.output.\2",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.1\.norm\.(.+)": r"model.vision_tower.layers.\1.mlp_norm.\2",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.(.+)": r"model.vision_tower.layers.\1.mlp.up.\2",
    r"embedding_layer\.vision_encoder\.transformer\.layers\.(\d+)\.1\.fn\.net\.3\.(.+)": r"model.vision_tower.layers.\1.mlp.down.\2",
    r"embedding_layer\.perceiver\.latents": r"model.vision_tower.perceiver.latents",
    r"embedding_layer\.perceiver\.norm\.(.+)": r"model.vision_tower.perceiver.norm.\1",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.0\.norm_media\.(.+)": r"model.vision_tower.perceiver.layers.\1.attention.patches_norm.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.0\.norm_latents\.(.+)": r"model.vision_tower.perceiver.layers.\1.attention.latents_norm.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.0\.to_q\.(.+)": r"model.vision_tower.perceiver.layers.\1.attention.query.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.0\.to_kv\.(.+)": r"model.vision_tower.perceiver.layers.\1.attention.key_value.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.0\.to_out\.(.+)": r"model.vision_tower.perceiver.layers.\1.attention.output.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.1\.0\.(.+)": r"model.vision_tower.perceiver.layers.\1.mlp_norm.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.1\.1\.(.+)": r"model.vision_tower.perceiver.layers.\1.mlp.up.\2",
    r"embedding_layer\.perceiver\.layers\.(\d+)\.1\.3\.(.+)": r"model.vision_tower.perceiver.layers.\1.mlp.down.\2",
}  # fmt: skip

# Pattern of a published name → why it has no place here.
DROPPED = {
    r"lang_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "computed from the config",
    r"embedding_layer\.weight": "the same tensor as lang_model.model.embed_tokens.weight",
    r"embedding_layer\.bert_model\..+": "Med-KEBERT, of the abandoned key-word branch",
    r"embedding_layer\.bert_projection_fc\..+": "the abandoned key-word branch",
    r"embedding_layer\.transformer_decoder\..+": "the abandoned key-word branch",
    r"embedding_layer\.transformer_decoder_mlp\..+": "the abandoned key-word branch",
    r"embedding_layer\.cls_head\..+": "the abandoned key-word branch",
    r"embedding_layer\.output_upscaling\..+": "an abandoned segmentation head",
}

WORDS = "lang_model.model.embed_tokens.weight"
MARKS = "embedding_layer.figure_token_weight"
HEAD = "lang_model.lm_head.weight"


def new_name(published: str) -> str | None:
    """The name here of a published tensor; None where it is dropped.

    Raises:
        ConversionError: no rule knows it.
    """
    if any(re.fullmatch(pattern, published) for pattern in DROPPED):
        return None
    for pattern, name in NAMES.items():
        if re.fullmatch(pattern, published):
            return re.sub(pattern, name, published)
    raise ConversionError(f"{published}: no rule says what becomes of this tensor.")


def convert_tensors(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict as one of `RadFMForConditionalGeneration`.

    Three rows are added to the decoder's words: the two learned image marks, and a placeholder of zeros that image
    tokens take the place of. The head has three rows of zeros for them; the model never lets them be spoken.

    Raises:
        ConversionError: a tensor is missing, or no rule knows it.
    """
    missing = [name for name in (WORDS, MARKS, HEAD) if name not in published]
    if missing:
        raise ConversionError(f"{missing[0]}: the checkpoint lacks this tensor.")
    words, marks, head = published[WORDS], published[MARKS], published[HEAD]
    converted = {
        "model.language_model.embed_tokens.weight": torch.cat([words, marks.to(words.dtype), torch.zeros_like(words[:1])]),
        "lm_head.weight": torch.cat([head, torch.zeros_like(head[:3])]),
    }
    for name, tensor in published.items():
        if name not in (WORDS, MARKS, HEAD) and (target := new_name(name)) is not None:
            converted[target] = tensor
    return converted
