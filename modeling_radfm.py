"""RadFM: scans → 3D vision transformer → Perceiver → image tokens in a decoder's text (arXiv 2308.02463, Methods).

Sizes in docstrings: N scans, L patches of one scan, P patches of all scans, T tokens of a text, B texts. Scans are never
padded: the vision tower works on packed patches (P, width), and `PackedLengths` says which of them belong to which scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from .attention_radfm import LatentPack, PackedLengths, kernels_for, latent_attention, packed_attention
from .configuration_radfm import RadFMConfig, RadFMVisionConfig
from .linear_radfm import Linear, linear

# A tensor of the published code, and the bytes within which a file of weights lists its names.
PUBLISHED_NAME, NAMES_BYTES = b"lang_model.model.", 4 << 20

# What a quantisation leaves alone: 2 % of the published weights, and all of what they see.
WHOLE_PARTS = ("vision_tower", "model.vision_tower", "projector", "model.projector", "lm_head")

# The name of the key-value cache: transformers 5.24 renamed `past_key_values`.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class RadFMVisionOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (P, width), the patches of all scans in the order in which the scans were given.
        cu_seqlens: (N + 1,), int32; the patches of scan i are rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
        pooler_output: one (image tokens, width) tensor a scan; from `get_image_features` as wide as the decoder.
    """

    last_hidden_state: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    pooler_output: Sequence[torch.Tensor] | None = None


@dataclass
class RadFMModelOutputWithPast(BaseModelOutputWithPast):
    """The decoder's output, and `image_features`: one (image tokens, decoder width) tensor a scan."""

    image_features: Sequence[torch.Tensor] | None = None


@dataclass
class RadFMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """The language model's output, and `image_features`: one (image tokens, decoder width) tensor a scan."""

    image_features: Sequence[torch.Tensor] | None = None


class RadFMPatchEmbedding(nn.Module):
    """Patches of a scan → LayerNorm → Linear → LayerNorm, plus the learned position of row, column and depth.

    The weights are those of a full patch (patch, patch, patch depth, channels; channel fastest). A grey scan stands for
    equal channels and a 2D one for equal slices: LayerNorm over repeated values has the mean and variance of one copy,
    so norm and Linear are folded into one matrix, summed over the copies, and the copies are never made.
    """

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.full_patch = (config.patch_size, config.patch_size, config.patch_depth, config.num_channels)
        values = config.patch_size**2 * config.patch_depth * config.num_channels
        self.patch_norm = nn.LayerNorm(values, eps=config.layer_norm_eps)
        self.projection = nn.Linear(values, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        third = config.hidden_size // 3
        self.rows = nn.Embedding(config.image_size // config.patch_size, third)
        self.columns = nn.Embedding(config.image_size // config.patch_size, third)
        self.depths = nn.Embedding(config.max_slices // config.patch_depth, third)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self._folded: dict[tuple[bool, bool], tuple[tuple, tuple[torch.Tensor, torch.Tensor]]] = {}

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Patches along rows, columns and depth of a scan of `shape` (channels, height, width, depth)."""
        channels, height, width, depth = shape
        patch, patch_depth = self.config.patch_size, self.config.patch_depth
        if channels not in (1, self.config.num_channels):
            raise ValueError(
                f"A scan of shape {tuple(shape)} has {channels} channels; the vision tower takes 1 (grey) "
                f"or {self.config.num_channels}, in the order (channels, height, width, depth)."
            )
        if min(height, width, depth) < 1 or height % patch or width % patch or (depth > 1 and depth % patch_depth):
            raise ValueError(
                f"A scan of shape {tuple(shape)} cannot be cut into patches of {patch}×{patch}×{patch_depth}: height and "
                f"width must be multiples of {patch}, depth 1 (an image) or a multiple of {patch_depth}."
            )
        if max(height, width) > self.config.image_size or depth > self.config.max_slices:
            raise ValueError(
                f"A scan of shape {tuple(shape)} is larger than the position tables: at most {self.config.image_size} "
                f"rows and columns and {self.config.max_slices} slices."
            )
        return height // patch, width // patch, max(depth // patch_depth, 1)

    def positions(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Positions of a grid's patches, (L, width): patch i of n takes row (i + 1) · ⌊N / n⌋ − 1 of a table of N."""
        parts = []
        for axis, (table, n) in enumerate(zip((self.rows, self.columns, self.depths), grid, strict=True)):
            index = torch.arange(1, n + 1, device=table.weight.device) * (table.num_embeddings // n) - 1
            part = table(index).view(*(n if a == axis else 1 for a in range(3)), -1)
            parts.append(part.expand(*grid, -1))
        return torch.cat(parts, dim=-1).flatten(0, 2)

    def folded(self, grey: bool, flat: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrix and bias that stand for norm and Linear over one copy of a patch; kept while nothing changes."""
        sources = (self.patch_norm.weight, self.patch_norm.bias, self.projection.weight, self.projection.bias)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._fold(*sources, grey, flat)
        # Tensors made under inference_mode have no version, and nothing changes them.
        state = tuple((id(s), 0 if s.is_inference() else s._version, s.data_ptr(), s.device, s.dtype) for s in sources)
        known = self._folded.get((grey, flat))
        if known is None or known[0] != state:
            known = self._folded[grey, flat] = (state, self._fold(*sources, grey, flat))
        return known[1]

    def _fold(self, gain, shift, weight, bias, grey: bool, flat: bool) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = (weight * gain).view(-1, *self.full_patch)
        if grey:
            matrix = matrix.sum(-1, keepdim=True)
        if flat:
            matrix = matrix.sum(-2, keepdim=True)
        return matrix.flatten(1), bias + weight @ shift

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Scans of one shape (N, channels, height, width, depth) → (N · L, width)."""
        n, channels, _, _, depth = scans.shape
        rows, columns, depths = self.grid(scans.shape[1:])
        patch = self.config.patch_size
        matrix, bias = self.folded(grey=channels < self.config.num_channels, flat=depth == 1)
        fused = kernels_for(scans.device)
        if fused is not None:
            tables = (self.rows.weight, self.columns.weight, self.depths.weight)
            norm = (self.output_norm.weight, self.output_norm.bias)
            size, eps = (patch, patch, depth // depths), self.config.layer_norm_eps
            return self.dropout(fused.patch_embedding(scans, matrix, bias, *norm, *tables, size, eps))
        patches = scans.view(n, channels, rows, patch, columns, patch, depths, depth // depths)
        patches = patches.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(0, 3)
        normed = F.layer_norm(patches.float(), patches.shape[-1:], eps=self.config.layer_norm_eps)
        tokens = self.output_norm(linear(normed.to(matrix.dtype), matrix, bias))
        tokens = tokens.view(n, rows * columns * depths, -1) + self.positions((rows, columns, depths))
        return self.dropout(tokens.flatten(0, 1))


class RadFMVisionAttention(nn.Module):
    """Self-attention of a scan's patches."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.scaling, self.dropout, self.is_causal = config.head_dim**-0.5, config.attention_dropout, False
        self.qkv = Linear(config.hidden_size, 3 * self.heads * self.head_dim, bias=False)
        self.output = Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, pack: PackedLengths) -> torch.Tensor:
        query, key, value = self.qkv(hidden_states).view(-1, 3, self.heads, self.head_dim).unbind(1)
        return self.output(packed_attention(self, query, key, value, pack, pack))


class RadFMMLP(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, act: str, bias: bool):
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.act = ACT2FN[act]
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(hidden_states)))


class RadFMVisionLayer(GradientCheckpointingLayer):
    """One block of the vision transformer, normed before each half."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = RadFMVisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadFMMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=True)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, pack: PackedLengths) -> torch.Tensor:
        hidden_states = hidden_states + self.dropout(self.attention(self.attention_norm(hidden_states), pack))
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class RadFMPerceiverAttention(nn.Module):
    """A scan's latents ask its patches and themselves."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.perceiver_num_attention_heads, config.perceiver_head_dim
        self.scaling, self.dropout, self.is_causal = self.head_dim**-0.5, 0.0, False
        inner = self.heads * self.head_dim
        self.patches_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.latents_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = Linear(config.hidden_size, inner, bias=False)
        self.key_value = Linear(config.hidden_size, 2 * inner, bias=False)
        self.output = Linear(inner, config.hidden_size, bias=False)

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, pack: LatentPack) -> torch.Tensor:
        latents = self.latents_norm(latents)
        query = self.query(latents).view(-1, self.heads, self.head_dim)
        key_value, own = (
            self.key_value(asked).view(-1, 2, self.heads, self.head_dim) for asked in (self.patches_norm(patches), latents)
        )
        return self.output(latent_attention(self, query, key_value, own, pack))

    def patch_attention(self, latents: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """One scan's attention weights on its patches (L, width) → (L,), the mean over heads and latents."""
        latents = self.latents_norm(latents)
        query = self.query(latents).view(-1, self.heads, self.head_dim)
        asked = torch.cat([self.patches_norm(patches), latents])
        key = self.key_value(asked).view(-1, 2, self.heads, self.head_dim)[:, 0]
        weights = torch.einsum("qhd, khd -> hqk", query.float(), key.float()).mul(self.scaling).softmax(-1)
        return weights.mean((0, 1))[: len(patches)]


class RadFMPerceiverLayer(GradientCheckpointingLayer):
    """One block of the Perceiver: attention and MLP, each added to the latents."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.attention = RadFMPerceiverAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadFMMLP(config.hidden_size, config.perceiver_intermediate_size, "gelu", bias=False)

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, pack: LatentPack) -> torch.Tensor:
        latents = latents + self.attention(latents, patches, pack)
        return latents + self.mlp(self.mlp_norm(latents))


class RadFMPerceiver(nn.Module):
    """A scan of any number of patches → a fixed number of image tokens (Flamingo's resampler)."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.num_image_tokens, config.hidden_size))
        self.layers = nn.ModuleList(RadFMPerceiverLayer(config) for _ in range(config.perceiver_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: torch.Tensor, pack: PackedLengths) -> torch.Tensor:
        """Packed patches (P, width) → (N, image tokens, width)."""
        tokens, scans = len(self.latents), len(pack.lengths)
        beside = LatentPack(pack, tokens, patches.device)
        latents = self.latents.repeat(scans, 1)
        for layer in self.layers:
            latents = layer(latents, patches, beside)
        return self.norm(latents).view(scans, tokens, -1)


class RadFMPreTrainedModel(PreTrainedModel):
    config_class: Any = RadFMConfig
    base_model_prefix = "model"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["RadFMVisionLayer", "RadFMPerceiverLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for the interface in this file's text; it stands in `attention_radfm.py`.
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, quantization_config: Any = None, **kwargs):
        """As everywhere in transformers; a quantisation leaves vision tower, projector and head as they are.

        Raises:
            ValueError: a folder whose weights have the names of the published code.
        """
        _refuse_published_names(pretrained_model_name_or_path)
        if quantization_config is not None:
            kwargs["quantization_config"] = _with_whole_parts(quantization_config)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, RadFMPatchEmbedding):
            for table in (module.rows, module.columns, module.depths):
                init.uniform_(table.weight)
        elif isinstance(module, RadFMPerceiver):
            init.normal_(module.latents)


def _refuse_published_names(source: Any) -> None:
    # Both kinds of file begin with the names of their tensors.
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = Path(str(source)) / name
        if file.is_file():
            with file.open("rb") as weights:
                if PUBLISHED_NAME in weights.read(NAMES_BYTES):
                    raise ValueError(
                        f"{file} has the tensor names of the published RadFM: convert it once, `radfm convert {file} OUT`, "
                        "and load OUT."
                    )
            return


def _with_whole_parts(quantization_config: Any) -> Any:
    """The config, told to leave alone what is small and precise, unless it says itself what to leave alone."""
    for setting in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if isinstance(quantization_config, dict):
            if quantization_config.get(setting) is None:
                quantization_config = {**quantization_config, setting: list(WHOLE_PARTS)}
        elif getattr(quantization_config, setting, WHOLE_PARTS) is None:
            setattr(quantization_config, setting, list(WHOLE_PARTS))
    return quantization_config


class RadFMVisionModel(RadFMPreTrainedModel):
    """The 3D vision transformer and the Perceiver alone: scans in, patch features and image tokens out."""

    config_class = RadFMVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^model\.(language_model|projector)\.", r"^lm_head\."]

    def __init__(self, config: RadFMVisionConfig):
        super().__init__(config)
        self.patch_embedding = RadFMPatchEmbedding(config)
        self.layers = nn.ModuleList(RadFMVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.perceiver = RadFMPerceiver(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As everywhere in transformers; a whole RadFM gives up its vision tower."""
        kwargs.setdefault("key_mapping", {r"^model\.vision_tower\.": ""})
        return super().from_pretrained(*args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: str | None, *args, **kwargs) -> str:
        """RadFM's kernels where nobody asked for anything else and a card has them."""
        if requested_attention is None and torch.cuda.is_available() and kernels_for(torch.device("cuda")) is not None:
            return "radfm"
        return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)

    @can_return_tuple
    def forward(self, pixel_values: Sequence[torch.Tensor], **kwargs) -> RadFMVisionOutput:
        """Encode scans, each on its own.

        Args:
            pixel_values: one tensor a scan, (channels, height, width, depth): 1 channel (grey) or `num_channels`, depth
                1 (an image) or a multiple of `patch_depth`. Values as the image processor gives them.

        Raises:
            ValueError: no scan, or one whose shape does not fit patches and position tables.
        """
        patches, pack = self.encode_patches(pixel_values)
        return RadFMVisionOutput(
            last_hidden_state=patches,
            cu_seqlens=pack.cu_seqlens,
            pooler_output=list(self.perceiver(patches, pack)),
        )

    def encode_patches(self, pixel_values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, PackedLengths]:
        """The vision transformer without the Perceiver: packed patches (P, width) in the order of the scans."""
        if len(pixel_values) == 0:
            raise ValueError("pixel_values holds no scan; leave it out for a text without images.")
        for scan in pixel_values:
            if scan.ndim != 4:
                raise ValueError(
                    f"A scan of shape {tuple(scan.shape)} was given; pixel_values is a list with one tensor of four "
                    "axes (channels, height, width, depth) a scan."
                )
        # Scans of one shape side by side: they share each matrix product, and attention takes them as one batch.
        order = sorted(range(len(pixel_values)), key=lambda i: tuple(pixel_values[i].shape))
        lengths, embedded = [], []
        for _, scans in groupby((pixel_values[i] for i in order), key=lambda scan: scan.shape):
            stack = torch.stack(list(scans)).to(self.device)
            embedded.append(self.patch_embedding(stack))
            lengths += [len(embedded[-1]) // len(stack)] * len(stack)
        patches = torch.cat(embedded)
        pack = PackedLengths(lengths, patches.device)
        for layer in self.layers:
            patches = layer(patches, pack)
        if order == sorted(order):
            return patches, pack
        given, per_scan = sorted(range(len(order)), key=order.__getitem__), patches.split(lengths)
        return torch.cat([per_scan[i] for i in given]), PackedLengths([lengths[i] for i in given], patches.device)

    @torch.no_grad()
    def image_attention(self, pixel_values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Where the Perceiver's last layer takes its image tokens from: its attention over each scan's patches.

        The mean over heads and image tokens of softmax(q·kᵀ). The image tokens attend to themselves as well; that part is
        left out, so a scan's values sum to less than 1. It is attention, no explanation of an answer.

        Args:
            pixel_values: one (channels, height, width, depth) tensor a scan.

        Returns:
            One (rows, columns, depths) tensor of patches a scan.
        """
        patches, pack = self.encode_patches(pixel_values)
        layers: list[Any] = list(self.perceiver.layers)
        *earlier, last = layers
        grids = []
        for scan, own in zip(pixel_values, patches.split(pack.lengths), strict=True):
            latents, tokens = self.perceiver.latents, len(self.perceiver.latents)
            beside = LatentPack(PackedLengths([len(own)], own.device), tokens, own.device)
            for layer in earlier:
                latents = layer(latents, own, beside)
            grids.append(last.attention.patch_attention(latents, own).view(self.patch_embedding.grid(scan.shape)))
        return grids


class RadFMModel(RadFMPreTrainedModel):
    """Vision tower, projector and decoder, without the head that speaks words."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        self.vision_tower = RadFMVisionModel._from_config(config.vision_config)
        self.projector = Linear(config.vision_config.hidden_size, config.text_config.get_text_config().hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: Sequence[torch.Tensor], **kwargs) -> RadFMVisionOutput:
        """Encode scans once, to ask about them often: pass the result's `pooler_output` on as `image_features`.

        Args:
            pixel_values: one (channels, height, width, depth) tensor a scan.

        Returns:
            The vision tower's output, with `pooler_output` as wide as the decoder: one (image tokens, width) a scan.
        """
        outputs = self.vision_tower(pixel_values, return_dict=True)
        outputs.pooler_output = list(self.projector(torch.stack(outputs.pooler_output)))
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: Sequence[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        mm_encoder_outputs: dict[str, RadFMVisionOutput] | None = None,
        **kwargs,
    ) -> RadFMModelOutputWithPast:
        """Decode texts (B, T) in which image tokens stand for scans.

        Args:
            pixel_values: the scans, (channels, height, width, depth) each, in the order of their placeholders over the
                batch, row by row. Rows may have none.
            image_features: in their place, what `get_image_features` gave for them; (image tokens, width) each.
            mm_encoder_outputs: the same under "image", as transformers' `generate` hands it on.
            kwargs: whatever the decoder takes, its key-value cache under the name that this transformers has for it.

        Raises:
            ValueError: the text has places for more or fewer scans than were given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
        # Image tokens take the place of rows of a tensor of our own.
        inputs_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds.clone()
        if image_features is None and mm_encoder_outputs and mm_encoder_outputs.get("image") is not None:
            image_features = mm_encoder_outputs["image"].pooler_output
        if pixel_values is not None and len(pixel_values) > 0:
            if image_features is not None:
                raise ValueError("Give scans as pixel_values or as image_features, not as both.")
            image_features = self.get_image_features(pixel_values, return_dict=True).pooler_output
        # A single token is a step of generation, and never a placeholder.
        if image_features is not None or inputs_embeds.shape[1] > 1:
            inputs_embeds = self._place(image_features, self._placeholders(input_ids, inputs_embeds), inputs_embeds)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        return RadFMModelOutputWithPast(**outputs, image_features=image_features)

    def _placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def _place(
        self, image_features: Sequence[torch.Tensor] | None, placeholders: torch.Tensor, inputs_embeds: torch.Tensor
    ) -> torch.Tensor:
        image_features = image_features if image_features is not None else []
        scans = len(image_features)
        places, tokens = int(placeholders.sum()), self.config.num_image_tokens
        if places != scans * tokens:
            raise ValueError(
                f"The text has places for {places / tokens:g} scans ({places} placeholders, {tokens} a scan), "
                f"and {scans} scans were given: one scan for each place, in the order of the text."
            )
        if scans == 0:
            return inputs_embeds
        features = torch.cat(list(image_features)).to(inputs_embeds.device, inputs_embeds.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), features)
        # In the rows themselves: a copy of all of them takes longer than looking them up.
        return inputs_embeds.index_put_(placeholders.nonzero(as_tuple=True), features)


class RadFMForConditionalGeneration(RadFMPreTrainedModel, GenerationMixin):
    """RadFM as it is asked: scans and a question in, the answer's words out."""

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        decoder = config.text_config.get_text_config()
        self.model = RadFMModel(config)
        self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        words = self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is words)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Sequence[torch.Tensor], **kwargs) -> RadFMVisionOutput:
        """As `RadFMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def image_attention(self, pixel_values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `RadFMVisionModel.image_attention`."""
        return self.model.vision_tower.image_attention(pixel_values)

    def generate(self, *args, image_features: Sequence[torch.Tensor] | None = None, **kwargs) -> Any:
        """As everywhere in transformers; `image_features` stands for `pixel_values` that were encoded before."""
        if kwargs.get("pixel_values") is None or len(kwargs["pixel_values"]) == 0:
            kwargs.pop("pixel_values", None)
        if image_features is not None:
            kwargs["mm_encoder_outputs"] = {"image": RadFMVisionOutput(pooler_output=list(image_features))}
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, mm_encoder_outputs=None, inputs_embeds=None, **kwargs):
        # `generate` reads in these names what it may be given.
        kwargs.update(mm_encoder_outputs=mm_encoder_outputs, inputs_embeds=inputs_embeds)
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # `generate` takes the first pass of an assistant model for a later one, and would take its scans away.
        cache = kwargs.get(CACHE)
        if mm_encoder_outputs and (cache is None or cache.get_seq_length() == 0):
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: Sequence[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        mm_encoder_outputs: dict[str, RadFMVisionOutput] | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> RadFMCausalLMOutputWithPast:
        """`RadFMModel.forward`, then logits (B, T, vocabulary) and, with `labels`, the loss.

        Args:
            labels: (B, T), not shifted; -100 and the image marks cost nothing.
            loss_weights: (B, T), the weight of each label (the paper: 3 a medical term, 1 an answer's other words, 0 the
                rest). The loss is Σ weight · nll / Σ weight; without them the plain mean.
            num_items_in_batch: what to divide by instead, when one step of the optimiser sees several batches: the sum of
                `loss_weights`, or without them the number of labels, of all of its batches.
            cache, past_key_values: the decoder's key-value cache, under either of its names.
        """
        kwargs[CACHE] = past_key_values if cache is None else cache
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        marks = [self.config.image_start_token_id, self.config.image_end_token_id, self.config.image_token_id]
        cap = getattr(self.config.text_config.get_text_config(), "final_logit_softcapping", None)
        others = {k: v for k, v in outputs.items() if k != "last_hidden_state"}
        fused = kernels_for(outputs.last_hidden_state.device)
        if self.training and labels is not None and loss_weights is not None and cap is None and fused is not None:
            # The logits of a training step are the largest thing in memory, and nobody reads them.
            silent = labels.new_tensor(marks)
            loss = fused.weighted_cross_entropy(
                outputs.last_hidden_state[:, :-1].flatten(0, 1),
                self.lm_head.weight,
                labels.masked_fill(torch.isin(labels, silent), -100)[:, 1:].flatten(),
                loss_weights[:, 1:].flatten(),
                silent,
                num_items_in_batch,
            )
            return RadFMCausalLMOutputWithPast(loss=loss, **others)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        # The marks are read and never spoken: the published head has no rows for them.
        logits[..., marks] = torch.finfo(logits.dtype).min

        loss = None
        if labels is not None:
            labels = labels.masked_fill(torch.isin(labels, labels.new_tensor(marks)), -100)
            if loss_weights is None:
                loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch)
            else:
                loss = weighted_loss(logits, labels, loss_weights, num_items_in_batch)
        return RadFMCausalLMOutputWithPast(loss=loss, logits=logits, **others)


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, total: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Σ w · nll / Σ w over the next tokens: labels and weights (B, T) move one left, as in the published code.

    A label of -100 costs nothing, and its weight still counts in the sum that divides; `total` takes that sum's place.
    """
    labels, weights = labels[:, 1:].flatten(), weights[:, 1:].flatten().to(logits.device, torch.float32)
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.to(logits.device), reduction="none")
    return (weights * nll).sum() / (weights.sum() if total is None else total)


__all__ = ["RadFMForConditionalGeneration", "RadFMModel", "RadFMPreTrainedModel", "RadFMVisionModel"]
