"""RadFM: 2D and 3D scans → vision transformer → Perceiver → image tokens in a decoder's text (arXiv 2308.02463, Methods).

- Scans are never padded. The vision tower works on packed patches: one tensor with the patches of all scans, one scan after
  another; `PackedLengths` holds where each scan starts.
- A patch is `patch_size` × `patch_size` × `patch_depth` voxels of `num_channels` channels, the channel fastest: LayerNorm,
  Linear, LayerNorm, plus learned positions.
- A position is three embeddings side by side, for row, column and depth, each a third of the width.
- A grey scan stands for equal channels, a 2D image for equal slices. The copies are not made: weights are summed instead.
- Transformer layers are pre-norm, with q, k and v in one matrix without bias, GELU, and no norm after the last layer.
- Perceiver (Flamingo's resampler): `num_image_tokens` latents attend to the patches of a scan and to themselves.
- One Linear projects image tokens to the width of the decoder, where they overwrite the embeddings of placeholders.
- The decoder is any causal language model of transformers; its head is here, without a bias.
- The three ids of image tokens are inputs only: their logits are `MASKED_LOGIT`, so the softmax is that of the published
  model, whose vocabulary does not have them.
- The loss is a mean over tokens weighted by `loss_weights`.

Shape letters: N scans, C channels, H height, W width, D depth; L patches of one scan, P patches of all scans, V width of the
vision tower, I image tokens of one scan; B texts, T tokens of a text, E width of the decoder; h heads, d width of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .attention_radfm import PackedLengths, kernels_for
from .configuration_radfm import RadFMConfig, RadFMVisionConfig, auto_map, logit_scale, logit_softcap
from .vision_layers_radfm import RadFMPatchEmbedding, RadFMPerceiver, RadFMVisionLayer, is_plain

logger = logging.get_logger(__name__)

# A scan is one tensor; a batch of scans is a list of them, or a list of such lists, one for each text.
Scans = Sequence[Any]

# The name of a tensor in the published checkpoint, and the bytes at the start of a file that hold the names of its tensors.
PUBLISHED_NAME, NAMES_BYTES = b"lang_model.model.", 4 << 20

# Modules that stay in full precision in a quantised model: they are 2 % of the weights, and everything depends on them.
MODULES_TO_NOT_CONVERT = ("vision_tower", "model.vision_tower", "projector", "model.projector", "lm_head")

# Logit of the three image ids. Beside any real logit its softmax is exactly 0 in float32, so loss and sampling are those of
# a vocabulary without them. It is finite in float16 too, and so are losses over the vocabulary, such as label smoothing.
MASKED_LOGIT = -1e4

# Label of a token without loss, as everywhere in PyTorch.
IGNORE = -100

# The name of the key-value cache: transformers 5.24 renamed `past_key_values`.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class RadFMVisionOutput(BaseModelOutputWithPooling):
    """
    Args:
        last_hidden_state: (P, V), the patches of all scans, in the order of `pixel_values`.
        pooler_output: (I, V) for each scan, the image tokens; from `get_image_features` (I, E), as wide as the decoder.
        hidden_states: (P, V) for the patch embedding and for each layer, with `output_hidden_states=True`.
        attentions: for each layer a tuple with (h, L, L) for each scan, with `output_attentions=True`; None if the
            attention implementation is not "eager".
        cu_seqlens: (N + 1,), int32; the patches of scan i are rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
    """

    pooler_output: Sequence[torch.Tensor] | None = None  # type: ignore[assignment] # scans are a list here
    attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None  # type: ignore[assignment]
    cu_seqlens: torch.Tensor | None = None


@dataclass
class RadFMModelOutputWithPast(BaseModelOutputWithPast):
    """The output of the decoder, and `image_outputs`: the output of the vision tower, None for a text without scans."""

    image_outputs: RadFMVisionOutput | None = None


@dataclass
class RadFMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Loss, logits, the output of the decoder, and `image_outputs`: the output of the vision tower, None without scans."""

    image_outputs: RadFMVisionOutput | None = None


class RadFMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation that all RadFM models share."""

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
        # transformers searches this file for ALL_ATTENTION_FUNCTIONS; attention_radfm.py calls it.
        return True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, quantization_config: Any = None, **kwargs: Any
    ) -> Any:
        """As in all of transformers. A quantisation leaves vision tower, projector and head in full precision, unless the
        config lists other modules to skip.

        Raises:
            ValueError: a folder whose weights have the names of the published code.
        """
        _refuse_published_names(pretrained_model_name_or_path)
        if quantization_config is not None:
            kwargs["quantization_config"] = _skip_vision_modules(quantization_config)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in all of transformers. The code is saved too, with an `auto_map`, so that the Auto classes load the folder."""
        self.config.auto_map = auto_map(type(self.config).__name__, type(self).__name__)
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RadFMPatchEmbedding):
            for table in module.position_tables():
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


def _skip_vision_modules(quantization_config: Any) -> Any:
    """The config with `MODULES_TO_NOT_CONVERT` in its list of modules to skip, unless it has such a list."""
    for setting in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if isinstance(quantization_config, dict):
            if quantization_config.get(setting) is None:
                quantization_config = {**quantization_config, setting: list(MODULES_TO_NOT_CONVERT)}
        elif getattr(quantization_config, setting, MODULES_TO_NOT_CONVERT) is None:
            setattr(quantization_config, setting, list(MODULES_TO_NOT_CONVERT))
    return quantization_config


def _flatten_scans(pixel_values: Scans) -> Iterator[torch.Tensor]:
    """The scans of a list, or of the lists of lists that `pipeline(batch_size=2)` makes, in the order of the texts."""
    for scan in pixel_values:
        if isinstance(scan, list | tuple):
            yield from _flatten_scans(scan)
        else:
            yield scan


class RadFMVisionModel(RadFMPreTrainedModel):
    """The vision tower: scans → features of their patches and image tokens.

    Examples:
        >>> config = RadFMVisionConfig(image_size=64, max_slices=32, patch_size=16, hidden_size=48, num_hidden_layers=2,
        ...                            num_image_tokens=4, perceiver_num_hidden_layers=1)
        >>> tower = RadFMVisionModel(config).eval()
        >>> outputs = tower([torch.rand(1, 64, 64, 1), torch.rand(1, 32, 32, 8)])  # an X-ray and a small CT
        >>> outputs.last_hidden_state.shape, outputs.cu_seqlens.tolist()  # 4 · 4 patches and 2 · 2 · 2
        (torch.Size([24, 48]), [0, 16, 24])
        >>> [tuple(tokens.shape) for tokens in outputs.pooler_output]
        [(4, 48), (4, 48)]
    """

    config_class = RadFMVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected: Any = [r"^model\.(language_model|projector)\.", r"^lm_head\."]

    def __init__(self, config: RadFMVisionConfig):
        super().__init__(config)
        self.patch_embedding = RadFMPatchEmbedding(config)
        self.layers = nn.ModuleList(RadFMVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.perceiver = RadFMPerceiver(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in all of transformers. A checkpoint of a whole RadFM loads as well: its vision weights."""
        kwargs.setdefault("key_mapping", {r"^model\.vision_tower\.": ""})
        return super().from_pretrained(*args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        """ "radfm" if no implementation is named and a card has RadFM's kernels; else as in all of transformers."""
        on_card = requested_attention is None and torch.cuda.is_available()
        if on_card and kernels_for(torch.device("cuda"), self.config.kernels) is not None:
            return "radfm"
        name: str = super().get_correct_attn_implementation(requested_attention, *args, **kwargs)
        return name

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding. With frozen weights and re-entrant checkpointing, `enable_input_require_grads` hooks it."""
        return self.patch_embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.patch_embedding = value

    @can_return_tuple
    def forward(
        self,
        pixel_values: Scans,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> RadFMVisionOutput:
        """Encode scans, each independently of the others.

        Args:
            pixel_values: one (C, H, W, D) tensor a scan: 1 channel (grey) or `num_channels`, depth 1 (an image) or a
                multiple of `patch_depth`. Values in 0…1, as the image processor gives them.
            output_hidden_states: return the output of the patch embedding and of each layer.
            output_attentions: return the attention weights of each layer, with `attn_implementation="eager"` only.

        Raises:
            ValueError: no scan, or one whose shape does not fit patches and position tables.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        encoded, pack = self._encode(pixel_values, bool(output_hidden_states), bool(output_attentions))
        encoded.pooler_output = list(self.perceiver(encoded.last_hidden_state, pack))
        return encoded

    def encode_patches(self, pixel_values: Scans) -> tuple[torch.Tensor, PackedLengths]:
        """The vision transformer without the Perceiver: packed patches (P, V) in the order of the scans."""
        encoded, pack = self._encode(pixel_values)
        return encoded["last_hidden_state"], pack

    @torch.no_grad()
    def image_attention(self, pixel_values: Scans) -> list[torch.Tensor]:
        """The attention of the Perceiver's last layer over the patches of each scan.

        The mean over heads and image tokens of softmax(q · kᵀ). Image tokens attend to themselves as well; that part is left
        out, so the values of a scan sum to less than 1. It is attention, not an explanation of an answer.

        Args:
            pixel_values: one (C, H, W, D) tensor a scan.

        Returns:
            One (rows, columns, depths) tensor of patches a scan.
        """
        scans = list(_flatten_scans(pixel_values))
        patches, pack = self.encode_patches(scans)
        weights = self.perceiver(patches, pack, patch_attention=True)
        grids = [self.patch_embedding.patch_grid(scan.shape) for scan in scans]
        return [of_scan.view(grid) for of_scan, grid in zip(weights, grids, strict=True)]

    def _encode(
        self, pixel_values: Scans, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> tuple[RadFMVisionOutput, PackedLengths]:
        scans = list(_flatten_scans(pixel_values))
        if len(scans) == 0:
            raise ValueError("pixel_values holds no scan; leave it out for a text without images.")
        for scan in scans:
            if scan.ndim != 4:
                raise ValueError(
                    f"A scan of shape {tuple(scan.shape)} was given; pixel_values is a list with one tensor of four "
                    "axes (channels, height, width, depth) a scan."
                )
        # Sorted by shape: scans of one shape share each matrix product, and attention takes them as one batch.
        order = sorted(range(len(scans)), key=lambda i: tuple(scans[i].shape))
        lengths: list[int] = []
        embedded: list[torch.Tensor] = []
        for _, same_shape in groupby((scans[i] for i in order), key=lambda scan: scan.shape):
            stack = torch.stack(list(same_shape))  # (N of this shape, C, H, W, D)
            # The weights of an offloaded tower are on "meta"; accelerate then moves the scans itself.
            stack = stack if self.device.type == "meta" else stack.to(self.device)
            embedded.append(self.patch_embedding(stack))
            lengths += [len(embedded[-1]) // len(stack)] * len(stack)
        patches = torch.cat(embedded)  # (P, V)
        pack = PackedLengths(lengths, patches.device)
        hidden_states, attentions = [patches], []
        for layer in self.layers:
            patches, weights = layer(patches, pack)
            if output_hidden_states:
                hidden_states.append(patches)
            if output_attentions and weights is not None:
                attentions.append(weights)
        if output_attentions and not attentions:
            logger.warning_once("Attention weights of the vision tower need attn_implementation='eager': they are None.")

        inverse_order = sorted(range(len(order)), key=order.__getitem__)
        sorted_already = order == inverse_order == sorted(order)

        def restore(packed: torch.Tensor) -> torch.Tensor:
            per_scan = packed.split(lengths)
            return packed if sorted_already else torch.cat([per_scan[i] for i in inverse_order])

        restored = PackedLengths([lengths[i] for i in inverse_order], patches.device)
        return RadFMVisionOutput(
            last_hidden_state=restore(patches),
            hidden_states=tuple(restore(states) for states in hidden_states) if output_hidden_states else None,
            attentions=tuple(tuple(of_layer[i] for i in inverse_order) for of_layer in attentions) or None,
            cu_seqlens=restored.cu_seqlens,
        ), restored


class RadFMModel(RadFMPreTrainedModel):
    """Vision tower, projector and decoder, without the language modelling head.

    As all base models of transformers it reports the head of a whole checkpoint as unexpected. It may not ignore it: vLLM
    builds its model around this class, and leaves out every weight that it ignores.
    """

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        self.vision_tower = RadFMVisionModel._from_config(config.vision_config)
        # What the tower may ignore on its own would be ignored here too: transformers merges the lists of sub-models.
        self.vision_tower._keys_to_ignore_on_load_unexpected = None
        self.projector = nn.Linear(config.vision_config.hidden_size, config.text_config.get_text_config().hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: Scans, **kwargs: Any) -> RadFMVisionOutput:
        """Encode scans. To ask several questions about them, pass the `pooler_output` of the result as `image_features`.

        Args:
            pixel_values: one (C, H, W, D) tensor a scan.
            kwargs: as `RadFMVisionModel.forward`.

        Returns:
            The output of the vision tower, with image tokens of the width of the decoder: `pooler_output` is (I, E) a scan.
        """
        outputs: RadFMVisionOutput = self.vision_tower(pixel_values, **{**kwargs, "return_dict": True})
        assert outputs.pooler_output is not None
        tokens = torch.stack(list(outputs.pooler_output))  # (N, I, V)
        # A tower in float32 before a decoder in bfloat16. Quantised weights are integers, and their layer takes any float.
        if self.projector.weight.is_floating_point():
            tokens = tokens.to(self.projector.weight.dtype)
        outputs.pooler_output = list(self.projector(tokens))
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: Scans | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        mm_encoder_outputs: dict[str, RadFMVisionOutput] | None = None,
        **kwargs: Any,
    ) -> RadFMModelOutputWithPast:
        """Run the decoder on texts (B, T) in which image tokens stand for scans.

        Args:
            pixel_values: the scans, (C, H, W, D) each, in the order of their placeholders over the batch, row by row. A row
                may have none.
            image_features: instead of them, the `pooler_output` of `get_image_features`: (I, E) a scan.
            mm_encoder_outputs: {"image": the output of `get_image_features`}, as transformers' `generate` passes it.
            kwargs: arguments of the decoder, with its key-value cache under the name that this transformers uses.
                `output_hidden_states` and `output_attentions` apply to the vision tower too.

        Raises:
            ValueError: a text with placeholders for more or fewer scans than there are.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, T, E)
        assert inputs_embeds is not None
        image_outputs = (mm_encoder_outputs or {}).get("image")
        if image_features is not None:
            image_outputs = RadFMVisionOutput(pooler_output=list(image_features))
        scans = [] if pixel_values is None else list(_flatten_scans(pixel_values))
        if scans:
            if image_outputs is not None:
                raise ValueError("Give scans as pixel_values or as image_features, not as both.")
            output_options = {name: kwargs.get(name) for name in ("output_hidden_states", "output_attentions")}
            image_outputs = self.get_image_features(scans, return_dict=True, **output_options)
        # A text of one token is a step of generation, and that token is never a placeholder.
        if image_outputs is not None or inputs_embeds.shape[1] > 1:
            inputs_embeds = self._insert_image_tokens(input_ids, inputs_embeds, image_outputs)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        return RadFMModelOutputWithPast(**outputs, image_outputs=image_outputs)

    def _insert_image_tokens(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_outputs: RadFMVisionOutput | None
    ) -> torch.Tensor:
        """Embeddings (B, T, E) in which image tokens have replaced the placeholders."""
        if input_ids is not None:
            placeholders = input_ids == self.config.image_token_id  # (B, T)
        else:
            token = torch.full((), self.config.image_token_id, device=inputs_embeds.device)
            placeholders = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        features = [] if image_outputs is None else list(image_outputs.pooler_output or ())
        count, tokens, scans = placeholders.sum(), self.config.num_image_tokens, len(features)
        torch_compilable_check(
            count == scans * tokens,
            lambda: (
                f"The text has places for {count.item() / tokens:g} scans ({count.item()} placeholders, {tokens} a scan), "
                f"and {scans} scans were given: one scan for each place, in the order of the text."
            ),
        )
        if scans == 0:
            return inputs_embeds
        rows = torch.cat(features).to(inputs_embeds.device, inputs_embeds.dtype)  # (N · I, E)
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1).to(inputs_embeds.device), rows)


class RadFMForConditionalGeneration(RadFMPreTrainedModel, GenerationMixin):
    """Vision tower, projector and decoder with the language modelling head: scans and a text → the next tokens.

    Examples:
        >>> vision = RadFMVisionConfig(image_size=64, max_slices=32, patch_size=16, hidden_size=48, num_hidden_layers=2,
        ...                            num_image_tokens=4, perceiver_num_hidden_layers=1)
        >>> text = {"model_type": "llama", "vocab_size": 103, "hidden_size": 64, "intermediate_size": 96,
        ...         "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> config = RadFMConfig(vision_config=vision, text_config=text, image_start_token_id=100, image_end_token_id=101,
        ...                      image_token_id=102)
        >>> model = RadFMForConditionalGeneration(config).eval()
        >>> input_ids = torch.tensor([[1, 100, 102, 102, 102, 102, 101, 5, 6]])  # a scan and a question of two tokens
        >>> inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        >>> scan = torch.rand(1, 64, 64, 8)  # (C, H, W, D)
        >>> model(**inputs, pixel_values=[scan]).logits.shape
        torch.Size([1, 9, 103])
        >>> model.generate(**inputs, pixel_values=[scan], max_new_tokens=3, min_new_tokens=3, pad_token_id=0).shape
        torch.Size([1, 12])
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: RadFMConfig):
        super().__init__(config)
        decoder = config.text_config.get_text_config()
        self.model = RadFMModel(config)
        self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        self.logit_scale, self.logit_softcap = logit_scale(decoder), logit_softcap(decoder)
        self.image_ids = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        # `generate` compiles the decoding step with a static cache if the decoder's own class can be compiled.
        self._can_compile_fullgraph = self.model.language_model._can_compile_fullgraph
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Scans, **kwargs: Any) -> RadFMVisionOutput:
        """As `RadFMModel.get_image_features`."""
        outputs: RadFMVisionOutput = self.model.get_image_features(pixel_values, **kwargs)
        return outputs

    def image_attention(self, pixel_values: Scans) -> list[torch.Tensor]:
        """As `RadFMVisionModel.image_attention`."""
        grids: list[torch.Tensor] = self.model.vision_tower.image_attention(pixel_values)
        return grids

    def generate(self, *args: Any, image_features: Sequence[torch.Tensor] | None = None, **kwargs: Any) -> Any:
        """As in all of transformers, with `pixel_values`, or with `image_features` as `forward` takes them."""
        pixel_values = kwargs.pop("pixel_values", None)
        scans = [] if pixel_values is None else list(_flatten_scans(pixel_values))
        if scans:
            kwargs["pixel_values"] = scans
        if image_features is not None:
            kwargs["mm_encoder_outputs"] = {"image": RadFMVisionOutput(pooler_output=list(image_features))}
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        mm_encoder_outputs: dict[str, RadFMVisionOutput] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in all of transformers, which checks the arguments of `generate` against the names of this signature."""
        kwargs.update(mm_encoder_outputs=mm_encoder_outputs, inputs_embeds=inputs_embeds)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # The prefill of an assistant model is not flagged as the first iteration, so transformers drops its scans.
        ids = inputs.get("input_ids")
        if mm_encoder_outputs and (ids is None or (ids.shape[1] > 1 and (ids == self.config.image_token_id).any())):
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: Scans | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        mm_encoder_outputs: dict[str, RadFMVisionOutput] | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        loss_weight_sum: torch.Tensor | float | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> RadFMCausalLMOutputWithPast:
        """`RadFMModel.forward`, then logits (B, T, vocabulary) and, with labels, the loss.

        With nll the negative log-likelihood of each label and w its weight, the loss is

            Σ w · nll / Σ w                                              of one batch alone;
            Σ w · nll / Σ w · (labels of this batch / num_items_in_batch)  with `num_items_in_batch`;
            Σ w · nll / loss_weight_sum                                  with `loss_weight_sum`;

        and 0, with a gradient of 0, if all weights are 0. A label of -100 or of an image id has no nll; its weight counts in
        Σ w, as in the published code. Labels are counted as `Trainer` counts them: all but -100, image ids included.

        Args:
            labels: (B, T), not shifted.
            loss_weights: (B, T), the weight of each label (paper: 3 for medical terms, 1 for the other words of an answer, 0
                for the rest). Without them each label that has an nll weighs 1.
            num_items_in_batch: number of labels in all micro-batches of an optimiser step, as `Trainer` passes it. The sum
                of the losses is then the mean over micro-batches, each in proportion to its labels.
            loss_weight_sum: sum of `loss_weights` (shifted) over all micro-batches and ranks of an optimiser step. The sum
                of the losses is then exactly the loss of one large batch. Takes precedence over `num_items_in_batch`.
            logits_to_keep: compute only the last so many logits, or those at these positions; 0 for all.
            cache, past_key_values: the key-value cache of the decoder, under either name.
            kwargs: `shift_labels` (B, T), shifted already: the label of position t is the token t + 1. They take precedence
                over `labels`, and `loss_weights` are then shifted too. The rest is for `RadFMModel.forward`.

        Returns:
            No `logits` from a training step with `loss_weights` on a card with RadFM's kernels: the fused loss makes none.
        """
        # Not in the signature: `Trainer` would take a batch without it for one without labels.
        shift_labels = kwargs.pop("shift_labels", None)
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
        hidden_states = outputs.last_hidden_state  # (B, T, E)
        other_outputs = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        targets = None
        if labels is not None or shift_labels is not None:
            targets = self._targets(labels, shift_labels, loss_weights, num_items_in_batch, loss_weight_sum, hidden_states)
        if targets is not None and loss_weights is not None and self.training:
            loss = self._fused_loss(hidden_states, *targets)
            if loss is not None:
                return RadFMCausalLMOutputWithPast(loss=loss, **other_outputs)

        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, keep])
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        for image_id in self.image_ids:
            logits[..., image_id] = MASKED_LOGIT
        loss = None if targets is None else weighted_loss(logits, *targets)
        return RadFMCausalLMOutputWithPast(loss=loss, logits=logits, **other_outputs)

    def _targets(
        self,
        labels: torch.Tensor | None,
        shift_labels: torch.Tensor | None,
        loss_weights: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | float | None,
        loss_weight_sum: torch.Tensor | float | None,
        hidden_states: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels and weights aligned with the logits, both (B, T), and the divisor of the loss."""
        if shift_labels is None:
            assert labels is not None
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)  # (B, T)
            loss_weights = None if loss_weights is None else F.pad(loss_weights[:, 1:], (0, 1))
        shift_labels = shift_labels.to(hidden_states.device)
        count = (shift_labels != IGNORE).sum()
        for image_id in self.image_ids:
            shift_labels = shift_labels.masked_fill(shift_labels == image_id, IGNORE)
        weights = (shift_labels != IGNORE) if loss_weights is None else loss_weights
        weights = weights.to(hidden_states.device, torch.float32)
        if loss_weight_sum is not None:
            divisor = torch.as_tensor(loss_weight_sum, dtype=torch.float32, device=weights.device)
        elif num_items_in_batch is not None:
            items = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=weights.device)
            divisor = weights.sum() * items / count.clamp_min(1)
        else:
            divisor = weights.sum()
        # All weights 0: the sum above the divisor is 0 too, and the loss 0 / 1. NaN would end a training, and an error on
        # one rank would leave the others waiting.
        return shift_labels, weights, divisor.masked_fill(divisor == 0, 1)

    def _fused_loss(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, divisor: torch.Tensor
    ) -> torch.Tensor | None:
        """`weighted_loss` by RadFM's kernels, which never hold all logits, the largest tensor of a training step.

        None where they do not run, or where the logits are more than the product with the weight of a plain head.
        """
        fused = kernels_for(hidden_states.device, self.config.vision_config.kernels)
        if fused is None or not is_plain(self.lm_head) or self.logit_scale != 1 or self.logit_softcap is not None:
            return None
        rows = hidden_states.flatten(0, 1)  # (B · T, E)
        masked = torch.tensor(self.image_ids, device=labels.device)
        loss: torch.Tensor = fused.weighted_cross_entropy(
            rows, self.lm_head.weight, labels.flatten(), weights.flatten(), masked, divisor
        )
        return loss


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, divisor: torch.Tensor | float
) -> torch.Tensor:
    """Σ weight · nll / divisor.

    Args:
        logits: (B, T, vocabulary).
        labels: (B, T), aligned with the logits; -100 has an nll of 0.
        weights: (B, T), float32.

    Examples:
        >>> logits, labels, weights = torch.zeros(1, 2, 4), torch.tensor([[3, -100]]), torch.tensor([[2.0, 0.0]])
        >>> weighted_loss(logits, labels, weights, divisor=2.0)  # log 4
        tensor(1.3863)
    """
    nll = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return (weights.flatten() * nll).sum() / divisor


# Saving copies this file and what it imports, so that the folder loads with `trust_remote_code=True` alone.
RadFMVisionModel.register_for_auto_class("AutoModel")
RadFMModel.register_for_auto_class("AutoModel")
RadFMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["RadFMForConditionalGeneration", "RadFMModel", "RadFMPreTrainedModel", "RadFMVisionModel"]
