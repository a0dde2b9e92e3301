"""Compile every kernel for compute capability 9.0 and 8.0 without a card, and tell what each needs of one.

    python kernels/benchmarks/compile_ahead.py

Prints a Markdown table: registers a thread, shared memory a program, and bytes that did not fit into registers and are
spilled.
"""

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent.parent / "torch-ext"))
packed_attention, neighbourhood_attention, perceiver_attention, patch_embedding, weighted_cross_entropy = (
    import_module(f"radfm_kernels.{name}")
    for name in (
        "packed_attention",
        "neighbourhood_attention",
        "perceiver_attention",
        "patch_embedding",
        "weighted_cross_entropy",
    )
)

CAPABILITIES = (90, 80)
RESOURCES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MULTIPLY = {"WIDEN": False, "PRECISION": "tf32x3"}
# What a launch finds to be multiples of 16 at RadFM's sizes, and compiles for.
ROUND = ("_row", "_head", "height", "width", "depth", "outputs")
PATCH = {"SCALED": True, "CHANNELS": 1, "ROWS": 32, "COLUMNS": 32, "SLICES": 4}
PERCEIVER = {"LATENTS": 32, "PADDED": 32, "SPAN": perceiver_attention.SPAN, "WIDTH": 64, **MULTIPLY}


def kernels(kind: str) -> Iterator[tuple[str, Any, dict[str, Any], list[tuple[dict[str, int], int, int]], dict[str, str]]]:
    """Name, kernel, fixed arguments, tile sizes to choose from, and the pointers that are not to `kind`."""
    lse = {"lse_ptr": "fp32", "delta_ptr": "fp32"}
    for name in ("_forward", "_backward_queries", "_backward_keys"):
        tiles = packed_attention.FORWARD_TILES if name == "_forward" else packed_attention.BACKWARD_TILES
        rows = {"query_starts_ptr": "i32", "key_starts_ptr": "i32"}
        yield f"packed attention{name}", getattr(packed_attention, name), {"WIDTH": 64, **MULTIPLY}, tiles, lse | rows
    for name in ("_forward", "_backward"):
        tiles = neighbourhood_attention.BRICKS if name == "_forward" else neighbourhood_attention.BRICKS[:3]
        rows = {"starts_ptr": "i32", "grids_ptr": "i32"}
        kernel = getattr(neighbourhood_attention, name)
        yield f"neighbourhood attention{name}", kernel, {"WIDTH": 64, **MULTIPLY}, tiles, lse | rows
    parts = {"part_ptr": "fp32", "highest_ptr": "fp32", "total_ptr": "fp32", "starts_ptr": "i32"}
    for name in ("_span", "_span_backward"):
        kernel = getattr(perceiver_attention, name)
        yield f"perceiver attention{name}", kernel, PERCEIVER, perceiver_attention.TILES, lse | parts
    floats = ("low_ptr", "per_unit_ptr", "mean_ptr", "spread_ptr", "projected_ptr", "gradient_ptr")
    voxels = {"voxels_ptr": "i16", **dict.fromkeys(floats, "fp32")}
    statistics = {"PATCHES": patch_embedding.STATISTICS_PATCHES, "VALUES": patch_embedding.STATISTICS_VALUES}
    yield "patch embedding_statistics", patch_embedding._statistics, PATCH, [(statistics, 4, 3)], voxels
    yield "patch embedding_project", patch_embedding._project, PATCH | MULTIPLY, patch_embedding.PROJECT_TILES, voxels
    yield "patch embedding_place", patch_embedding._place, {"PADDED": 1024}, [({}, 4, 3)], voxels
    gradient = patch_embedding.GRADIENT_TILES
    yield "patch embedding_matrix_gradient", patch_embedding._matrix_gradient, PATCH | MULTIPLY, gradient, voxels
    rows = {"label_ptr": "i64", "silent_ptr": "i64", "weight_ptr": "fp32", "loss_ptr": "fp32"}
    words = [({"WORDS": weighted_cross_entropy.WORDS}, 4, 3)]
    yield "weighted cross-entropy", weighted_cross_entropy._loss_and_gradient, {}, words, rows


def compiled(
    kernel: Any, fixed: dict[str, Any], warps: int, stages: int, pointers: dict[str, str], kind: str, capability: int
):
    """One kernel's machine code and shared memory."""
    signature, constants, aligned = {}, {}, {}
    for number, name in enumerate(inspect.signature(kernel.fn).parameters):
        if name in fixed:
            signature[name] = "constexpr"
            constants[(number,)] = fixed[name]
        elif name.endswith("_ptr"):
            signature[name] = f"*{pointers.get(name, kind)}"
            aligned[(number,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
            if name.endswith(ROUND):
                aligned[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    done = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    return done.asm["cubin"], done.metadata.shared


def needed(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of the stack a thread that registers were spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([RESOURCES, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = [dict(re.findall(r"(REG|STACK):(\d+)", line)) for line in said.stdout.splitlines() if "REG:" in line]
    return int(found[-1]["REG"]), int(found[-1]["STACK"])


def main() -> None:
    columns = [f"{capability / 10:.1f}: registers, shared KB, spilled" for capability in CAPABILITIES]
    print(f"| kernel | dtype | tiles | warps, stages | {' | '.join(columns)} |")
    print("|---|---|---|---|" + "---|" * len(CAPABILITIES))
    for kind in ("bf16", "fp32"):
        for name, kernel, fixed, choices, pointers in kernels(kind):
            for tiles, warps, stages in choices:
                cells = []
                for capability in CAPABILITIES:
                    cubin, shared = compiled(kernel, fixed | tiles, warps, stages, pointers, kind, capability)
                    registers, spilled = needed(cubin)
                    cells.append(f"{registers}, {shared / 1024:.0f}, {spilled}")
                sizes = "×".join(str(n) for n in tiles.values())
                title = name.replace("_", ", ", 1).replace("_", " ")
                print(f"| {title} | {kind} | {sizes} | {warps}, {stages} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
