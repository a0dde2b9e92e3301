"""The published checkpoint's tensor names and those of RadFM, as one table for both directions.

Published names are those of the state dict that the published code (commit 9efba84) makes: `lang_model.…` is the decoder,
`embedding_layer.…` the vision tower, the Perceiver and the projector.
"""

import re


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: one line that names the tensor and the reason."""


_VIT, _PERCEIVER = "embedding_layer.vision_encoder", "embedding_layer.perceiver"
_OURS, _LATENTS = "model.vision_tower", "model.vision_tower.perceiver"

# Published name → RadFM's name. {n} is a layer's number, {part} is weight or bias, {rest} the rest of the name.
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

# Published name → why RadFM has no such tensor.
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

# These three are not renamed but joined, because RadFM's vocabulary has three rows more: `plan_tensors` in tensors.py.
EMBED_KEY = "lang_model.model.embed_tokens.weight"
MARK_KEY = "embedding_layer.figure_token_weight"
HEAD_KEY = "lang_model.lm_head.weight"
# Their names in RadFM: the word embeddings with the rows of the image tokens, and the head.
EMBEDDINGS, LM_HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

_FIELDS = {"n": r"\d+", "part": "weight|bias", "rest": ".+"}


def _match(template: str, name: str) -> dict[str, str] | None:
    pattern = re.escape(template)
    for field, values in _FIELDS.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{values})")
    match = re.fullmatch(pattern, name)
    return None if match is None else match.groupdict()


def drop_reason(published_name: str) -> str | None:
    """Why RadFM has no such tensor; None where it has one.

    Examples:
        >>> drop_reason("embedding_layer.cls_head.bias")
        'the abandoned key-word branch'
    """
    return next((reason for template, reason in DROPPED.items() if _match(template, published_name) is not None), None)


def to_radfm_name(published_name: str) -> str:
    """RadFM's name of a published tensor.

    Raises:
        ConversionError: the table has no rule for the name.

    Examples:
        >>> to_radfm_name("embedding_layer.fc.weight")
        'model.projector.weight'
    """
    for template, radfm_template in NAMES.items():
        fields = _match(template, published_name)
        if fields is not None:
            return radfm_template.format(**fields)
    raise ConversionError(f"{published_name}: the table of names (conversion/names.py) has no rule for this tensor.")


def to_published_name(radfm_name: str) -> str:
    """The published name of a RadFM tensor.

    Raises:
        ConversionError: the table has no rule for the name.

    Examples:
        >>> to_published_name("model.projector.weight")
        'embedding_layer.fc.weight'
    """
    for template, radfm_template in NAMES.items():
        fields = _match(radfm_template, radfm_name)
        if fields is not None:
            return template.format(**fields)
    raise ConversionError(f"{radfm_name}: the table of names (conversion/names.py) has no rule for this tensor.")
