"""The names that the published checkpoint's tensors have here, as a table that is read in both directions.

The published state dict is that of plain modules (`lang_model`, `embedding_layer`), as its code (commit 9efba84) makes it.
"""

import re


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: one line that names the tensor and the reason."""


_VIT, _PERCEIVER = "embedding_layer.vision_encoder", "embedding_layer.perceiver"
_OURS, _LATENTS = "model.vision_tower", "model.vision_tower.perceiver"

# Published name → name here. {n} is a layer's number, {part} is weight or bias, {rest} the rest of the name.
NAMES = {
    "lang_model.model.layers.{n}.{rest}": "model.language_model.layers.{n}.{rest}",
    "lang_model.model.norm.{part}": "model.language_model.norm.{part}",
    "embedding_layer.fc.{part}": "model.projector.{part}",
    f"{_VIT}.to_patch_embedding.1.{{part}}": f"{_OURS}.patch_embedding.patch_norm.{{part}}",
    f"{_VIT}.to_patch_embedding.2.{{part}}": f"{_OURS}.patch_embedding.projection.{{part}}",
    f"{_VIT}.to_patch_embedding.3.{{part}}": f"{_OURS}.patch_embedding.output_norm.{{part}}",
    f"{_VIT}.pos_embedding.row_embed.{{part}}": f"{_OURS}.patch_embedding.row_positions.{{part}}",
    f"{_VIT}.pos_embedding.col_embed.{{part}}": f"{_OURS}.patch_embedding.column_positions.{{part}}",
    f"{_VIT}.pos_embedding.dep_embed.{{part}}": f"{_OURS}.patch_embedding.depth_positions.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.0.norm.{{part}}": f"{_OURS}.layers.{{n}}.attention_norm.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.0.fn.to_qkv.{{part}}": f"{_OURS}.layers.{{n}}.attention.qkv.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.0.fn.to_out.0.{{part}}": f"{_OURS}.layers.{{n}}.attention.output.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.1.norm.{{part}}": f"{_OURS}.layers.{{n}}.mlp_norm.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.1.fn.net.0.{{part}}": f"{_OURS}.layers.{{n}}.mlp.up.{{part}}",
    f"{_VIT}.transformer.layers.{{n}}.1.fn.net.3.{{part}}": f"{_OURS}.layers.{{n}}.mlp.down.{{part}}",
    f"{_PERCEIVER}.latents": f"{_LATENTS}.latents",
    f"{_PERCEIVER}.norm.{{part}}": f"{_LATENTS}.norm.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.0.norm_media.{{part}}": f"{_LATENTS}.layers.{{n}}.attention.patches_norm.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.0.norm_latents.{{part}}": f"{_LATENTS}.layers.{{n}}.attention.latents_norm.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.0.to_q.{{part}}": f"{_LATENTS}.layers.{{n}}.attention.query.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.0.to_kv.{{part}}": f"{_LATENTS}.layers.{{n}}.attention.key_value.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.0.to_out.{{part}}": f"{_LATENTS}.layers.{{n}}.attention.output.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.1.0.{{part}}": f"{_LATENTS}.layers.{{n}}.mlp_norm.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.1.1.{{part}}": f"{_LATENTS}.layers.{{n}}.mlp.up.{{part}}",
    f"{_PERCEIVER}.layers.{{n}}.1.3.{{part}}": f"{_LATENTS}.layers.{{n}}.mlp.down.{{part}}",
}

# Published name → why it has no place here.
DROPPED = {
    "lang_model.model.layers.{n}.self_attn.rotary_emb.inv_freq": "computed from the config",
    "embedding_layer.weight": "the same tensor as lang_model.model.embed_tokens.weight",
    "embedding_layer.bert_model.{rest}": "Med-KEBERT, of the abandoned key-word branch",
    "embedding_layer.bert_projection_fc.{rest}": "the abandoned key-word branch",
    "embedding_layer.transformer_decoder.{rest}": "the abandoned key-word branch",
    "embedding_layer.transformer_decoder_mlp.{rest}": "the abandoned key-word branch",
    "embedding_layer.cls_head.{rest}": "the abandoned key-word branch",
    "embedding_layer.output_upscaling.{rest}": "an abandoned segmentation head",
}

# These three change their shape on the way: `conversion_radfm.py` makes the decoder's words and head of them.
WORDS = "lang_model.model.embed_tokens.weight"
MARKS = "embedding_layer.figure_token_weight"
HEAD = "lang_model.lm_head.weight"
EMBEDDINGS, LM_HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

_FIELDS = {"n": r"\d+", "part": "weight|bias", "rest": ".+"}


def _match(template: str, name: str) -> dict[str, str] | None:
    pattern = re.escape(template)
    for field, values in _FIELDS.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{values})")
    found = re.fullmatch(pattern, name)
    return None if found is None else found.groupdict()


def why_dropped(published: str) -> str | None:
    """Why a published tensor has no place here; None where it has one."""
    return next((reason for template, reason in DROPPED.items() if _match(template, published) is not None), None)


def new_name(published: str) -> str:
    """The name here of a published tensor. Raises `ConversionError` where no rule knows it."""
    for template, here in NAMES.items():
        fields = _match(template, published)
        if fields is not None:
            return here.format(**fields)
    raise ConversionError(f"{published}: no rule says what becomes of this tensor.")


def old_name(name: str) -> str:
    """The published name of a tensor here. Raises `ConversionError` where no rule knows it."""
    for template, here in NAMES.items():
        fields = _match(here, name)
        if fields is not None:
            return template.format(**fields)
    raise ConversionError(f"{name}: no rule says what this tensor was called.")
