"""The sizes of RadFM: vision tower, Perceiver, decoder. Defaults are those of the paper (arXiv 2308.02463), 14B in all."""

import warnings
from typing import Any

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

# LLaMA-13B, its 32,000 words and the three image marks behind them.
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


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


@strict
class RadFMVisionConfig(PreTrainedConfig):
    """Sizes of the 3D vision transformer and of the Perceiver that follows it.

    Lengths are in voxels. The position tables have `image_size / patch_size` rows and columns and
    `max_slices / patch_depth` depths; a scan may be smaller than that, never larger. `head_dim` is a size of its own (the
    paper's 8 heads of 64 are narrower than its width of 768); `None` divides the width by the heads.

    Raises:
        ValueError: sizes that no model can have, in a sentence that names the field.
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
    head_dim: Any = 64
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

    def __post_init__(self, **kwargs):
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
            "rows, columns and depths each have a third of a patch's position.",
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
        super().__post_init__(**kwargs)


@strict
class RadFMConfig(PreTrainedConfig):
    """A RadFM: vision tower and Perceiver (`vision_config`), any causal decoder (`text_config`), three image marks.

    `text_config` may be a config, or a dictionary whose `model_type` names a decoder of transformers ("llama" where it
    names none). `image_token_id` is the placeholder that an image token takes the place of; a scan is
    `image_start_token_id`, `num_image_tokens` placeholders, `image_end_token_id`. All three lie in the decoder's
    vocabulary and are never spoken.

    Raises:
        ValueError: ids outside of the vocabulary, or sizes that no decoder can have.
    """

    model_type = "radfm"
    sub_configs = {"vision_config": RadFMVisionConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    image_start_token_id: int = 32_000
    image_end_token_id: int = 32_001
    image_token_id: int = 32_002
    tie_word_embeddings: bool | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        num_image_tokens = kwargs.pop("num_image_tokens", None)
        if self.vision_config is None or isinstance(self.vision_config, dict):
            self.vision_config = RadFMVisionConfig(**(self.vision_config or {}))
        if num_image_tokens is not None:
            self.num_image_tokens = num_image_tokens
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = _decoder_config(PAPER_DECODER if self.text_config is None else self.text_config)
        decoder = self.text_config.get_text_config()
        marks = {name: getattr(self, name) for name in ("image_start_token_id", "image_end_token_id", "image_token_id")}
        for name, token_id in marks.items():
            _require(
                0 <= token_id < decoder.vocab_size,
                f"{name}={token_id} lies outside of the decoder's vocabulary of {decoder.vocab_size}: "
                "raise text_config.vocab_size or choose another id.",
            )
        _require(len(set(marks.values())) == 3, f"The three image marks must have three different ids, not {marks}.")
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(decoder, "tie_word_embeddings", False))
        decoder.tie_word_embeddings = self.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens a scan: what the Perceiver gives, and how many placeholders the text has for it."""
        return self.vision_config.num_image_tokens

    @num_image_tokens.setter
    def num_image_tokens(self, value: int) -> None:
        self.vision_config.num_image_tokens = value


def _decoder_config(sizes: dict) -> PreTrainedConfig:
    sizes = dict(sizes)
    model_type = sizes.pop("model_type", "llama")
    heads, width = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and sizes.get("head_dim") is None:
        _require(
            heads > 0 and width % heads == 0,
            f"text_config: num_attention_heads={heads} does not divide hidden_size={width}.",
        )
    return AutoConfig.for_model(model_type, **sizes)


__all__ = ["RadFMConfig", "RadFMVisionConfig"]
