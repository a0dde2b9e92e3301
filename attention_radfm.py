"""Attention of scans that lie packed in one tensor, through transformers' `AttentionInterface`.

`eager` and `sdpa` take neighbours of one length as a batch; `flash_attention_2` and `radfm` (the Triton kernels) take the
pack.
"""

import contextlib
import importlib
import os
import sys
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import is_flash_attention_requested

logger = logging.get_logger(__name__)

# What holds RadFM's Triton kernels: "0" for none, a folder, or a Hub id. Left out, an installed `radfm_kernels` or the
# folder `kernels/` beside this file.
KERNELS = "RADFM_KERNELS"
OFF = "0"


class PackedLengths:
    """Where each scan lies in a packed tensor: `lengths` in rows, and their running sum `cu_seqlens` for kernels."""

    def __init__(self, lengths: list[int], device: torch.device):
        self.lengths = lengths
        self.max_length = max(lengths)
        self.cu_seqlens = F.pad(torch.tensor(lengths, device=device).cumsum(0), (1, 0)).to(torch.int32)


class LatentPack:
    """Latents and the patches that they ask: `keys` are a scan's patches and then its own latents."""

    def __init__(self, patches: PackedLengths, latents: int, device: torch.device):
        self.patches, self.latents = patches, latents
        self.queries = PackedLengths([latents] * len(patches.lengths), device)
        self.keys = PackedLengths([length + latents for length in patches.lengths], device)

    def interleave(self, of_patches: torch.Tensor, of_latents: torch.Tensor) -> torch.Tensor:
        """Rows of patches and of latents in the order of `keys`."""
        scans = zip(of_patches.split(self.patches.lengths), of_latents.split(self.latents), strict=True)
        return torch.cat([rows for scan in scans for rows in scan])


@cache
def kernels() -> Any | None:
    """RadFM's Triton kernels: those that `RADFM_KERNELS` names, or an installed package, or those beside this file."""
    named = os.environ.get(KERNELS, "")
    if named == OFF:
        return None
    if named and not Path(named).exists():
        return importlib.import_module("kernels").get_kernel(named, trust_remote_code=True)
    folder = Path(named) if named else Path(__file__).parent / "kernels" / "torch-ext"
    with contextlib.ExitStack() as stack:
        if folder.is_dir():
            sys.path.insert(0, str(folder))
            stack.callback(sys.path.remove, str(folder))
        try:
            return importlib.import_module("radfm_kernels")
        except ImportError:
            return None


def kernels_for(device: torch.device) -> Any | None:
    """The kernels where they run: on a card, or in Triton's interpreter where `RADFM_KERNELS` asks for them by name."""
    if device.type != "cuda" and os.environ.get(KERNELS, OFF) == OFF:
        return None
    found = kernels()
    return found if found is not None and found.runs_triton(device) else None


def radfm_attention(module, query, key, value, attention_mask=None, *, scaling=None, dropout=0.0, **options):
    """Attention by RadFM's kernels where a pack is given; anything else (a decoder's text) is PyTorch's.

    Shapes as every attention of transformers; a pack is one batch, with `cu_seq_lens_q` and `cu_seq_lens_k`, or with
    `latent_key` and `latent_value` for latents that ask patches and themselves.
    """
    # A decoder's padding-free batch comes with the same names, and with a mask that keeps its texts apart.
    if "cu_seq_lens_k" not in options or module.is_causal:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    found: Any = kernels_for(query.device)
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    starts, longest = options["cu_seq_lens_k"], options["max_length_k"]
    if "latent_key" in options:
        output = found.perceiver_attention(*rows, options["latent_key"], options["latent_value"], starts, longest, scaling)
    else:
        own, most = options["cu_seq_lens_q"], options["max_length_q"]
        output = found.packed_attention(*rows, own, starts, most, longest, scaling)
    return output[None], None


AttentionInterface.register("radfm", radfm_attention)
AttentionMaskInterface.register("radfm", sdpa_mask)


def uses_kernels(module: Any, query: torch.Tensor) -> bool:
    """Whether an attention module's own kernels run: they are asked for, the device has them, and nothing is dropped."""
    if module.config._attn_implementation != "radfm":
        return False
    if kernels_for(query.device) is None:
        logger.warning_once(f"RadFM's kernels do not run on {query.device.type}: PyTorch's attention takes their place.")
        return False
    return not (module.training and module.dropout)


def latent_attention(
    module: Any, query: torch.Tensor, key_value: torch.Tensor, latent_key_value: torch.Tensor, pack: LatentPack
) -> torch.Tensor:
    """Attention of each scan's latents over its patches and themselves.

    Args:
        query: (latents of all scans, heads, head width).
        key_value: (patches of all scans, 2, heads, head width).
        latent_key_value: (latents of all scans, 2, heads, head width).

    Returns:
        (latents of all scans, heads · head width).
    """
    if not uses_kernels(module, query):
        key, value = pack.interleave(key_value, latent_key_value).unbind(1)
        return packed_attention(module, query, key, value, pack.queries, pack.keys)
    key, value = (part[None].transpose(1, 2) for part in key_value.unbind(1))
    latent_key, latent_value = latent_key_value.unbind(1)
    options = {"cu_seq_lens_k": pack.patches.cu_seqlens, "max_length_k": pack.patches.max_length}
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    output, _ = attend(
        module, query[None].transpose(1, 2), key, value, attention_mask=None, scaling=module.scaling,
        latent_key=latent_key, latent_value=latent_value, **options,
    )  # fmt: skip
    return output[0].flatten(1)


def packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: PackedLengths, keys: PackedLengths
) -> torch.Tensor:
    """Attention of each scan over its own keys, by whichever implementation `module.config` names.

    What understands packs (flash attention, RadFM's kernels) gets all at once; the others get neighbours of one length
    together, as a batch.

    Args:
        query: (rows of `queries`, heads, head width).
        key, value: (rows of `keys`, heads, head width).

    Returns:
        (rows of `queries`, heads · head width).
    """
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    options = {"scaling": module.scaling, "is_causal": False, "dropout": module.dropout if module.training else 0.0}
    if is_flash_attention_requested(module.config) or uses_kernels(module, query):
        options.update(cu_seq_lens_q=queries.cu_seqlens, cu_seq_lens_k=keys.cu_seqlens)
        options.update(max_length_q=queries.max_length, max_length_k=keys.max_length)
        runs = [(sum(queries.lengths), sum(keys.lengths), 1)]
    else:
        neighbours = groupby(zip(queries.lengths, keys.lengths, strict=True))
        runs = [(*lengths, len(list(scans))) for lengths, scans in neighbours]
    outputs, q, k = [], 0, 0
    for query_length, key_length, scans in runs:
        batch = [
            part.view(scans, -1, *part.shape[1:]).transpose(1, 2)
            for part in (
                query[q : q + scans * query_length],
                key[k : k + scans * key_length],
                value[k : k + scans * key_length],
            )
        ]
        output, _ = attend(module, *batch, attention_mask=None, **options)
        outputs.append(output.flatten(0, 1))
        q, k = q + scans * query_length, k + scans * key_length
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).flatten(1)


def eager_attention(module, query, key, value, attention_mask=None, *, scaling, dropout=0.0, **_):
    """softmax(q·kᵀ · scaling) · v with (batch, heads, length, head width) in, (batch, length, heads, head width) out."""
    weights = torch.softmax(query @ key.transpose(-1, -2) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, dropout, module.training) @ value
    return output.transpose(1, 2), weights
