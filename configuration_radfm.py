"""Configs of RadFM: vision tower, Perceiver, decoder. Defaults are the sizes of the paper (arXiv 2308.02463), 14B in all."""

import re
import warnings
from typing import Any, ClassVar

import transformers
from packaging.version import Version

OLDEST_TRANSFORMERS = "5.18"

if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
    raise ImportError(
        f"RadFM needs transformers {OLDEST_TRANSFORMERS} or newer, and this is transformers {transformers.__version__}: "
        f"pip install -U 'transformers>={OLDEST_TRANSFORMERS},<6'"
    )
if Version(transformers.__version__) >= Version("6"):
    warnings.warn(
        f"RadFM was tested with transformers {OLDEST_TRANSFORMERS} to 5.x, and this is transformers "
        f"{transformers.__version__}: if something breaks, pip install 'transformers<6'",
        stacklevel=2,
    )

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig  # noqa: E402

# The Auto classes that give `RadFMForConditionalGeneration`. Its parts are found by the first one alone.
AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# LLaMA-13B, with its vocabulary of 32,000 and three more ids for the image tokens.
PAPER_DECODER = {
    "model_type": "llama",
    "vocab_size": 32_003,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# A repository of the Hub at a commit.
PINNED_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")

# Decoders that RadFM cannot run, and why.
UNSUPPORTED_DECODERS = {
    "rwkv": "its forward takes `state` instead of a key-value cache",
    "xlstm": "its forward takes `cache_params` instead of a key-value cache, and its head caps the logits in its own way",
    "muse_glimmer": "its head multiplies the logits by `output_multiplier`",
    "muse_spark": "its head multiplies the logits by `output_multiplier`",
}


def auto_map(config_class: str, model_class: str) -> dict[str, str]:
    """The `auto_map` of a config.json: which class of the remote code each Auto class gives.

    Examples:
        >>> auto_map("RadFMVisionConfig", "RadFMVisionModel")
        {'AutoConfig': 'configuration_radfm.RadFMVisionConfig', 'AutoModel': 'modeling_radfm.RadFMVisionModel'}
    """
    classes = AUTO_CLASSES if model_class == "RadFMForConditionalGeneration" else AUTO_CLASSES[:1]
    return {
        "AutoConfig": f"configuration_radfm.{config_class}",
        **dict.fromkeys(classes, f"modeling_radfm.{model_class}"),
    }


def logit_scale(decoder: PreTrainedConfig) -> float:
    """The factor by which the head of a decoder multiplies its logits, 1 for most decoders.

    Each name is of one family in transformers: `logit_scale` of cohere, `lm_head_multiplier` of falcon_h1,
    `logits_scaling` of hyperclovax (a factor) and of granite and minicpm3 (a divisor).
    """
    scale = getattr(decoder, "logit_scale", None) or getattr(decoder, "lm_head_multiplier", None) or 1.0
    scaling = getattr(decoder, "logits_scaling", None) or 1.0
    return float(scale * scaling if decoder.model_type == "hyperclovax" else scale / scaling)


def logit_softcap(decoder: PreTrainedConfig) -> float | None:
    """c of c · tanh(logits / c), which gemma and others (`final_logit_softcapping`) and recurrent_gemma apply, or None."""
    cap = getattr(decoder, "final_logit_softcapping", None) or getattr(decoder, "logits_soft_cap", None)
    return None if cap is None else float(cap)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


@strict
class RadFMVisionConfig(PreTrainedConfig):
    """Sizes of the 3D vision transformer and of the Perceiver that follows it.

    Args:
        image_size: largest height and width of a scan in voxels. A smaller scan is allowed.
        max_slices: largest depth of a scan in voxels.
        patch_size: height and width of a patch in voxels; divides `image_size`.
        patch_depth: depth of a patch in voxels; divides `max_slices`.
        num_channels: channels of a patch. A scan has this many channels or 1 (grey), which stands for equal channels.
        hidden_size: width of patches and image tokens, a multiple of 3: the positions of row, column and depth have a
            third each.
        num_hidden_layers: layers of the vision transformer.
        num_attention_heads: attention heads of a layer.
        head_dim: width of a head. None divides `hidden_size` by the heads; the paper's 8 heads of 64 are narrower than its
            768.
        intermediate_size: width of the MLP of a layer.
        hidden_act: activation of that MLP.
        hidden_dropout: dropout on the patch embedding and on the output of attention and MLP.
        attention_dropout: dropout on attention weights.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of fresh weights.
        num_image_tokens: latents of the Perceiver, that is image tokens of one scan.
        perceiver_num_hidden_layers: layers of the Perceiver.
        perceiver_num_attention_heads: attention heads of a Perceiver layer.
        perceiver_head_dim: width of such a head.
        perceiver_intermediate_size: width of the MLP of a Perceiver layer.
        kernels: kernel repository on the Hub with RadFM's Triton kernels, "OWNER/NAME@COMMIT" with all 40 digits, for users
            who have neither the package `radfm_kernels` nor a clone. None for no such repository.

    Raises:
        ValueError: sizes that no model can have, in a sentence that names the field.

    Examples:
        >>> RadFMVisionConfig(hidden_size=96, num_attention_heads=4, head_dim=None).head_dim
        24
    """

    model_type = "radfm_vision"
    base_config_key = "vision_config"

    image_size: int = 512
    max_slices: int = 512
    patch_size: int = 32
    patch_depth: int = 4
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    head_dim: int | None = 64
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    num_image_tokens: int = 32
    perceiver_num_hidden_layers: int = 6
    perceiver_num_attention_heads: int = 8
    perceiver_head_dim: int = 64
    perceiver_intermediate_size: int = 3072
    kernels: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in (
            "image_size", "max_slices", "patch_size", "patch_depth", "num_channels", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "intermediate_size", "num_image_tokens", "perceiver_num_hidden_layers",
            "perceiver_num_attention_heads", "perceiver_head_dim", "perceiver_intermediate_size",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(isinstance(value, int) and value > 0, f"{name}={value!r} must be a whole number above zero.")
        if self.head_dim is None:
            _require(
                self.hidden_size % self.num_attention_heads == 0,
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}: "
                "choose another number of heads, or set head_dim.",
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        _require(self.head_dim > 0, f"head_dim={self.head_dim} must be above zero.")
        _require(
            self.hidden_size % 3 == 0,
            f"hidden_size={self.hidden_size} must be a multiple of three: "
            "the positions of row, column and depth have a third of it each.",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"patch_size={self.patch_size} does not divide image_size={self.image_size}, "
            "so the position tables would not end on a patch.",
        )
        _require(
            self.max_slices % self.patch_depth == 0,
            f"patch_depth={self.patch_depth} does not divide max_slices={self.max_slices}, "
            "so the depth table would not end on a patch.",
        )
        _require(
            self.kernels is None or PINNED_REPOSITORY.fullmatch(self.kernels) is not None,
            f"kernels={self.kernels!r} must be OWNER/NAME@COMMIT with the 40 digits of a commit: its code runs where the "
            "model is loaded, so it may not change.",
        )
        super().__post_init__(**kwargs)


@strict
class RadFMConfig(PreTrainedConfig):
    """Config of a whole RadFM.

    Args:
        vision_config: the vision tower and its Perceiver: a `RadFMVisionConfig`, or a dictionary of its fields.
        text_config: the decoder, any causal language model of transformers: its config, or a dictionary whose `model_type`
            names it ("llama" without one). LLaMA-13B by default.
        image_start_token_id: id that stands before the image tokens of a scan.
        image_end_token_id: id that stands after them.
        image_token_id: id of the placeholder whose embedding is overwritten by an image token. In a text, a scan is the
            start id, `num_image_tokens` placeholders, the end id. The three ids are part of the decoder's vocabulary; the
            model never predicts them.
        tie_word_embeddings: share the weights of word embeddings and head. None takes what `text_config` says.
        initializer_range: standard deviation of fresh weights.

    Raises:
        ValueError: ids outside the vocabulary, sizes that no decoder can have, or a decoder that RadFM cannot run.

    Examples:
        >>> config = RadFMConfig(text_config={"model_type": "qwen3", "vocab_size": 151_939}, image_start_token_id=151_936,
        ...                      image_end_token_id=151_937, image_token_id=151_938)
        >>> config.text_config.model_type, config.num_image_tokens
        ('qwen3', 32)
    """

    model_type = "radfm"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": RadFMVisionConfig, "text_config": AutoConfig}
    # The cache and the vision tower's output are not gathered by `Trainer.evaluate`.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values", "image_outputs"]

    # Always configs after construction; transformers passes dictionaries, and configs of another copy of this class.
    vision_config: Any = None
    text_config: Any = None
    image_start_token_id: int = 32_000
    image_end_token_id: int = 32_001
    image_token_id: int = 32_002
    tie_word_embeddings: bool | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        num_image_tokens = kwargs.pop("num_image_tokens", None)
        if self.vision_config is None or isinstance(self.vision_config, dict):
            self.vision_config = RadFMVisionConfig(**(self.vision_config or {}))
        if num_image_tokens is not None:
            self.num_image_tokens = num_image_tokens
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = _decoder_config(PAPER_DECODER if self.text_config is None else self.text_config)
        decoder = self.text_config.get_text_config()
        _require(
            decoder.model_type not in UNSUPPORTED_DECODERS,
            f"text_config: RadFM cannot run a decoder of type {decoder.model_type!r}, because "
            f"{UNSUPPORTED_DECODERS.get(decoder.model_type)}. Choose another causal language model.",
        )
        ids = {name: getattr(self, name) for name in ("image_start_token_id", "image_end_token_id", "image_token_id")}
        for name, token_id in ids.items():
            _require(
                0 <= token_id < decoder.vocab_size,
                f"{name}={token_id} lies outside of the decoder's vocabulary of {decoder.vocab_size}: "
                "raise text_config.vocab_size or choose another id.",
            )
        _require(len(set(ids.values())) == 3, f"The three image ids must differ: {ids}.")
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(decoder, "tie_word_embeddings", False))
        decoder.tie_word_embeddings = self.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one scan: outputs of the Perceiver, and placeholders in the text."""
        return int(self.vision_config.num_image_tokens)

    @num_image_tokens.setter
    def num_image_tokens(self, value: int) -> None:
        self.vision_config.num_image_tokens = value


def _decoder_config(sizes: dict[str, Any]) -> PreTrainedConfig:
    sizes = dict(sizes)
    model_type = sizes.pop("model_type", "llama")
    heads, width = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and sizes.get("head_dim") is None:
        _require(
            heads > 0 and width % heads == 0,
            f"text_config: num_attention_heads={heads} does not divide hidden_size={width}.",
        )
    return AutoConfig.for_model(model_type, **sizes)


# `transformers serve` finds the class of a model in this table by its `model_type`, also that of remote code.
try:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
except ImportError:  # a transformers without the table serves no remote code at all
    pass
else:
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault("radfm", "RadFMForConditionalGeneration")

# Saving copies this file next to config.json, so that the folder loads with `trust_remote_code=True` alone.
RadFMConfig.register_for_auto_class()
RadFMVisionConfig.register_for_auto_class()

__all__ = ["RadFMConfig", "RadFMVisionConfig"]
