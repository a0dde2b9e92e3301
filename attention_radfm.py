"""Attention over packed scans, through transformers' `AttentionInterface`.

- A pack is one tensor with the rows of all scans, one scan after another; `PackedLengths` holds where each scan starts.
- `eager` and `sdpa` get neighbouring scans of equal length as one batch; `flash_attention_2` gets the whole pack with
  `cu_seq_lens`, and so does `radfm` (RadFM's Triton kernels), if the pack would be more than a few batches.
- Shape letters: R rows of a pack, h heads, d width of a head, S scans in one batch, Q and K rows of one scan.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import is_flash_attention_requested

logger = logging.get_logger(__name__)

# Environment variable that names RadFM's Triton kernels: "0" for none, a folder, or a kernel repository of the Hub, with or
# without "@revision". Without it, an installed package `radfm_kernels` is used, or the folder `kernels/` next to this file,
# or the repository that the model's config names.
KERNELS = "RADFM_KERNELS"
OFF = "0"
# The interface of the kernels that this file calls: branch "v1" of a kernel repository.
KERNELS_VERSION = 1
# With `radfm`, a pack of more batches than this goes to the kernel as one. On an H200 (kernels/benchmarks/results.json)
# PyTorch's attention took 0.92 to 0.95 of the kernel's time for 1 and 2 batches, and 1.2 times as much for 12.
MAX_SDPA_BATCHES = 4
# The name of remote code begins so: whoever runs it has passed trust_remote_code=True for the repository of the model.
REMOTE_CODE = "transformers_modules."


class AttentionModule(Protocol):
    """The attributes of an attention layer that this file reads."""

    config: Any
    scaling: float
    dropout: float
    is_causal: bool
    training: bool


class PackedLengths:
    """Where each scan lies in a packed tensor.

    Args:
        lengths: rows of each scan.
        device: of `cu_seqlens`.

    Examples:
        >>> PackedLengths([4, 2], torch.device("cpu")).cu_seqlens
        tensor([0, 4, 6], dtype=torch.int32)
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self.lengths = lengths
        self.max_length = max(lengths)
        self.cu_seqlens = F.pad(torch.tensor(lengths, device=device).cumsum(0), (1, 0)).to(torch.int32)  # (scans + 1,)


class LatentPack:
    """Row layout of the Perceiver's attention: a scan has `latents` queries; its keys are its patches, then its latents."""

    def __init__(self, patches: PackedLengths, latents: int, device: torch.device):
        self.patches, self.latents, self.device = patches, latents, device

    @cached_property
    def queries(self) -> PackedLengths:
        return PackedLengths([self.latents] * len(self.patches.lengths), self.device)

    @cached_property
    def keys(self) -> PackedLengths:
        return PackedLengths([length + self.latents for length in self.patches.lengths], self.device)

    def interleave(self, patch_rows: torch.Tensor, latent_rows: torch.Tensor) -> torch.Tensor:
        """Rows of patches and rows of latents → one tensor in the order of `keys`."""
        scans = zip(patch_rows.split(self.patches.lengths), latent_rows.split(self.latents), strict=True)
        return torch.cat([rows for scan in scans for rows in scan])


@cache
def kernels(repository: str | None = None) -> ModuleType | None:
    """RadFM's Triton kernels: those that `RADFM_KERNELS` names, or an installed package, or the folder next to this file, or
    those of a repository on the Hub.

    Args:
        repository: "OWNER/NAME@COMMIT", from the config of a model. It is asked for only by remote code, that is where
            somebody trusted the repository of the model, whose config pins the commit. Without the library `kernels`, or
            without a network, one line is logged, and PyTorch's operators take their place.

    None if there are none, or if `RADFM_KERNELS` is "0".
    """
    named = os.environ.get(KERNELS, "")
    if named == OFF:
        return None
    if named and not Path(named).exists():
        return _fetch_kernels(named)  # the user's own choice: an error is raised
    folder = Path(named) if named else Path(__file__).parent / "kernels" / "torch-ext"
    with contextlib.ExitStack() as stack:
        if folder.is_dir():
            sys.path.insert(0, str(folder))
            stack.callback(sys.path.remove, str(folder))
        with contextlib.suppress(ImportError):
            return importlib.import_module("radfm_kernels")
    if repository is None or not __name__.startswith(REMOTE_CODE):
        return None
    try:
        return _fetch_kernels(repository)
    except (ImportError, OSError, RuntimeError, ValueError, HTTPError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning(f"The kernels {repository} are not used ({reason}): PyTorch's operators take their place.")
        return None


def _fetch_kernels(repository: str) -> ModuleType:
    """The kernels of "OWNER/NAME" or "OWNER/NAME@REVISION" on the Hub, or of the Hub's cache where there is no network.

    Not by `kernels.get_kernel`: version 0.17 downloads one build, and without a network wants all of them in the cache.
    Consent to run the code was given: by the environment variable, or for the repository whose config pins the commit.
    """
    name, _, revision = repository.partition("@")
    library = importlib.import_module("kernels")
    revision = revision or f"v{KERNELS_VERSION}"
    folder = snapshot_download(name, repo_type="kernel", revision=revision, allow_patterns=["build/*"])
    found: ModuleType = library.get_local_kernel(Path(folder))
    return found


def kernels_for(device: torch.device, repository: str | None = None) -> ModuleType | None:
    """The kernels if they run on `device`: a CUDA card, or Triton's interpreter on a CPU if `RADFM_KERNELS` names them.

    Args:
        repository: as for `kernels`.
    """
    if device.type != "cuda" and os.environ.get(KERNELS, OFF) == OFF:
        return None
    found = kernels(repository)
    return found if found is not None and found.runs_triton(device) else None


def radfm_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a pack by RadFM's kernels; everything else (the text of a decoder) goes to PyTorch's sdpa.

    Arguments as for every attention function of transformers. A pack is a batch of one, with `cu_seq_lens_q` and
    `cu_seq_lens_k`, or for the Perceiver with `latent_key` and `latent_value` beside `cu_seq_lens_k`.
    """
    # A padding-free batch of texts has the same argument names, and a causal mask that keeps its texts apart.
    if "cu_seq_lens_k" not in options or module.is_causal:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return output, None
    fused: Any = kernels_for(query.device, getattr(module.config, "kernels", None))
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]  # (1, h, R, d) → (R, h, d)
    key_starts, longest_key = options["cu_seq_lens_k"], options["max_length_k"]
    if "latent_key" in options:
        latents = options["latent_key"], options["latent_value"]
        output = fused.perceiver_attention(*rows, *latents, key_starts, longest_key, scaling)
    else:
        query_starts, longest_query = options["cu_seq_lens_q"], options["max_length_q"]
        output = fused.packed_attention(*rows, query_starts, key_starts, longest_query, longest_key, scaling)
    return output[None], None


AttentionInterface.register("radfm", radfm_attention)
AttentionMaskInterface.register("radfm", sdpa_mask)


def uses_kernels(module: AttentionModule, query: torch.Tensor) -> bool:
    """True if `attn_implementation` is "radfm", the kernels run on the device of `query`, and dropout is inactive."""
    if module.config._attn_implementation != "radfm":
        return False
    if kernels_for(query.device, module.config.kernels) is None:
        logger.warning_once(f"RadFM's kernels do not run on {query.device.type}: PyTorch's attention takes their place.")
        return False
    return not (module.training and module.dropout)


def latent_attention(
    module: AttentionModule,
    query: torch.Tensor,
    key_value: torch.Tensor,
    latent_key_value: torch.Tensor,
    pack: LatentPack,
) -> torch.Tensor:
    """Cross-attention of the Perceiver: the latents of each scan attend to the patches of the scan and to themselves.

    Args:
        query: (latents of all scans, h, d).
        key_value: (patches of all scans, 2, h, d).
        latent_key_value: (latents of all scans, 2, h, d).

    Returns:
        (latents of all scans, h · d).
    """
    if not uses_kernels(module, query):
        key, value = pack.interleave(key_value, latent_key_value).unbind(1)  # each (R, h, d)
        return packed_attention(module, query, key, value, pack.queries, pack.keys)[0]
    key, value = (part[None].transpose(1, 2) for part in key_value.unbind(1))  # each (1, h, R, d)
    latent_key, latent_value = latent_key_value.unbind(1)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    output: torch.Tensor = attend(
        module, query[None].transpose(1, 2), key, value, attention_mask=None, scaling=module.scaling,
        latent_key=latent_key, latent_value=latent_value,
        cu_seq_lens_k=pack.patches.cu_seqlens, max_length_k=pack.patches.max_length,
    )[0]  # fmt: skip
    return output[0].flatten(1)


def packed_attention(
    module: AttentionModule,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: PackedLengths,
    keys: PackedLengths,
) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
    """Attention of each scan over its own keys, by the implementation that `module.config` names.

    Args:
        query: (rows of `queries`, h, d).
        key, value: (rows of `keys`, h, d).

    Returns:
        (rows of `queries`, h · d), and the attention weights, (h, Q, K) for each scan, or None if the implementation
        does not return them (all but `eager`).
    """
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    options: dict[str, Any] = {
        "scaling": module.scaling, "is_causal": False, "dropout": module.dropout if module.training else 0.0,
    }  # fmt: skip
    neighbours = groupby(zip(queries.lengths, keys.lengths, strict=True))
    batches = [(*lengths, len(list(scans))) for lengths, scans in neighbours]
    if is_flash_attention_requested(module.config) or (len(batches) > MAX_SDPA_BATCHES and uses_kernels(module, query)):
        options.update(cu_seq_lens_q=queries.cu_seqlens, cu_seq_lens_k=keys.cu_seqlens)
        options.update(max_length_q=queries.max_length, max_length_k=keys.max_length)
        batches = [(sum(queries.lengths), sum(keys.lengths), 1)]
    outputs: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    q = k = 0
    for query_length, key_length, scans in batches:
        parts = (
            query[q : q + scans * query_length],
            key[k : k + scans * key_length],
            value[k : k + scans * key_length],
        )
        batch = [part.view(scans, -1, *part.shape[1:]).transpose(1, 2) for part in parts]  # (S · Q, h, d) → (S, h, Q, d)
        output, batch_weights = attend(module, *batch, attention_mask=None, **options)  # output (S, Q, h, d)
        outputs.append(output.flatten(0, 1))
        weights += [] if batch_weights is None else batch_weights.unbind()
        q, k = q + scans * query_length, k + scans * key_length
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return packed.flatten(1), weights or None


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q · kᵀ · scaling) · v: (S, h, Q, d) → (S, Q, h, d), and the weights (S, h, Q, K)."""
    weights = torch.softmax(query @ key.transpose(-1, -2) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, dropout, module.training) @ value
    return output.transpose(1, 2), weights
