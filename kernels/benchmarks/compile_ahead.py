"""Compile every kernel for several compute capabilities without a card, and write what each needs of one.

    python kernels/benchmarks/compile_ahead.py                      # writes kernels/benchmarks/compiled.csv
    python kernels/benchmarks/compile_ahead.py --capabilities 90    # other capabilities, other file: --out FILE

A row is one kernel, dtype, tile configuration and capability: registers per thread, shared memory per program in bytes, and
stack per thread in bytes, which is what was spilled from registers. float32 is multiplied in three TF32 products.
"""

import argparse
import csv
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "torch-ext"))
packed, perceiver, patches, entropy = (
    import_module(f"radfm_kernels.{name}")
    for name in ("packed_attention", "perceiver_attention", "patch_embedding", "weighted_cross_entropy")
)

COLUMNS = (
    "kernel",
    "dtype",
    "blocks",
    "warps",
    "stages",
    "capability",
    "registers",
    "shared_bytes",
    "stack_bytes",
    "triton",
)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DOT_OPTIONS = {"UPCAST": False, "PRECISION": "tf32x3"}
# Integer arguments that are multiples of 16 at RadFM's sizes: a launch finds that out, and compiles for it.
DIVISIBLE_BY_16 = re.compile(r"_stride_[hmn]$|^(height|width|depth|features)$")
FLOAT_ARGUMENTS = ("scale", "scale_log2", "eps")


@dataclass
class Spec:
    """A kernel, its fixed constants, its tile configurations, and the pointers that do not have the row's dtype."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    configs: Sequence[tuple[dict[str, int], int, int]]
    pointers: dict[str, str] = field(default_factory=dict)


def kernel_specs() -> Iterator[Spec]:
    """Every kernel at RadFM's sizes: head_dim 64, 32 latents, patches of 32 × 32 × 4."""
    float32 = dict.fromkeys(("lse_ptr", "delta_ptr", "m_ptr", "l_ptr", "acc_ptr"), "fp32")
    cu_seqlens = dict.fromkeys(("cu_seqlens_ptr", "cu_seqlens_q_ptr", "cu_seqlens_k_ptr"), "i32")
    attention = {"HEAD_DIM": 64, **DOT_OPTIONS}
    for name, kernel, configs in (
        ("packed attention, forward", packed._forward_kernel, packed.FORWARD_CONFIGS),
        ("packed attention, dq", packed._dq_kernel, packed.DQ_CONFIGS),
        ("packed attention, dk and dv", packed._dkdv_kernel, packed.DKDV_CONFIGS),
    ):
        yield Spec(name, kernel, attention, configs, float32 | cu_seqlens)
    spans = {"LATENTS": 32, "BLOCK_M": 32, "SPAN": perceiver.SPAN, **attention}
    pointers = float32 | cu_seqlens
    yield Spec("Perceiver attention, forward", perceiver._forward_kernel, spans, perceiver.CONFIGS, pointers)
    joined, join = {"HEAD_DIM": 64, "BLOCK_M": perceiver.JOIN_ROWS}, perceiver._join_kernel
    yield Spec("Perceiver attention, joining of spans", join, joined, [({}, 4, 3)], pointers)
    pointers = pointers | {"dq_ptr": "fp32"}
    yield Spec("Perceiver attention, backward", perceiver._backward_kernel, spans, perceiver.CONFIGS, pointers)
    patch = {"CHANNELS": 1, "PATCH_H": 32, "PATCH_W": 32, "PATCH_D": 4, "BLOCK_M": 4, "BLOCK_K": 4096}
    configs = [({}, patches.NORMALISE_WARPS, 3)]
    yield Spec("patch embedding, normalise", patches._normalise_kernel, patch, configs, {"voxels_ptr": "fp32"})
    tokens = {"BLOCK_N": 1024}
    yield Spec("patch embedding, norm and positions", patches._norm_positions_kernel, tokens, [({}, 4, 3)], {})
    pointers = {"labels_ptr": "i64", "masked_token_ids_ptr": "i64", "weights_ptr": "fp32", "loss_ptr": "fp32"}
    configs = [({"BLOCK_V": entropy.BLOCK_V}, 4, 3)]
    yield Spec("weighted cross-entropy", entropy._loss_and_gradient_kernel, {}, configs, pointers)


def compile_kernel(spec: Spec, config: tuple[dict[str, int], int, int], dtype: str, capability: int) -> tuple[bytes, int]:
    """Machine code, and shared memory in bytes, of one tile configuration."""
    blocks, warps, stages = config
    fixed = spec.constants | blocks
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for number, name in enumerate(inspect.signature(spec.kernel.fn).parameters):
        if name in fixed:
            signature[name] = "constexpr"
            constants[(number,)] = fixed[name]
            continue
        if name.endswith("_ptr"):
            signature[name] = f"*{spec.pointers.get(name, dtype)}"
        else:
            signature[name] = "fp32" if name in FLOAT_ARGUMENTS else "i32"
        if name.endswith("_ptr") or DIVISIBLE_BY_16.search(name):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(spec.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return compiled.asm["cubin"], compiled.metadata.shared


def read_resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usages = [dict(re.findall(r"(REG|STACK):(\d+)", line)) for line in output.splitlines() if "REG:" in line]
    return int(usages[-1]["REG"]), int(usages[-1]["STACK"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "compiled.csv")
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 90, 120], help="80 is compute capability 8.0")
    options = parser.parse_args()
    with options.out.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for dtype in ("bf16", "fp32"):
            for spec in kernel_specs():
                for config in spec.configs:
                    blocks = "x".join(str(n) for n in config[0].values())
                    for capability in options.capabilities:
                        cubin, shared = compile_kernel(spec, config, dtype, capability)
                        registers, stack = read_resources(cubin)
                        row = (spec.name, dtype, blocks, *config[1:], capability / 10, registers, shared, stack)
                        rows.writerow((*row, triton.__version__))
                        file.flush()
    print(options.out)


if __name__ == "__main__":
    main()
