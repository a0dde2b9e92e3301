"""Scans as the browser shows them: NIfTI for NiiVue, pictures of slices without it, and what may be told of a scan."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

# Low and high end in HU of the windows that CT is read with.
CT_WINDOWS = {
    "Soft tissue": (-160, 240),
    "Lung": (-1350, 150),
    "Bone": (-500, 1300),
    "Brain": (0, 80),
    "Liver": (-45, 105),
}
# More voxels than this are thinned out in plane before they travel to the browser.
MOST_VOXELS = 160_000_000
MOST_SLICES, SLICE_PIXELS = 96, 512
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def affine_of(scan: Any) -> np.ndarray:
    """A scan's affine; where it has none, one that shows its rows downwards and its columns to the right."""
    if scan.affine is not None:
        return np.asarray(scan.affine, dtype=float)
    rows, columns, slices = scan.spacing or (1.0, 1.0, 1.0)
    return np.array([[0, -columns, 0, 0], [-rows, 0, 0, 0], [0, 0, slices, 0], [0, 0, 0, 1.0]])


def write_nifti(scan: Any, file: Path) -> None:
    """A scan on its affine, in as few bytes as its grey values allow."""
    affine = affine_of(scan)
    voxels = scan.voxels
    step = 1
    while voxels[0].size / step**2 > MOST_VOXELS:
        step += 1
    if step > 1:
        voxels = voxels[:, ::step, ::step]
        affine = affine @ np.diag([step, step, 1.0, 1.0])
    if len(voxels) == 3:
        data = np.ascontiguousarray(np.moveaxis(voxels, 0, -1).clip(0, 255).astype(np.uint8)).view(RGB)[..., 0]
    else:
        data = _compact(voxels[0])
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def _compact(voxels: np.ndarray) -> np.ndarray:
    """Whole numbers in 16 bits where the grey values are whole numbers that fit."""
    low, high = float(voxels.min()), float(voxels.max())
    if low >= -32768 and high <= 32767 and bool((voxels == np.rint(voxels)).all()):
        return np.asarray(voxels, dtype=np.int16)
    return np.asarray(voxels, dtype=np.float32)


def windows(scan: Any) -> list[dict[str, Any]]:
    """Grey windows to choose from, the one to start with first: {"name", "low", "high"}."""
    if len(scan.voxels) == 3:
        return []
    lowest, highest = float(scan.voxels.min()), float(scan.voxels.max())
    own = [(f"From file{f' {i + 1}' if i else ''}", low, high) for i, (low, high) in enumerate(scan.windows[:3])]
    if scan.modality == "CT":
        named = own + [(name, low, high) for name, (low, high) in CT_WINDOWS.items()]
    else:
        low, high = np.percentile(scan.voxels[:, ::2, ::2], (0.5, 99.5))
        named = [*own, ("Automatic", float(low), float(high))] if high > low else own
    named.append(("Full range", lowest, highest if highest > lowest else lowest + 1))
    return [{"name": name, "low": low, "high": high} for name, low, high in named]


def plane(scan: Any) -> str:
    """The plane in which a scan was acquired: axial, coronal or sagittal; axial where nothing is known of it.

    Args:
        scan: hung, so that its last axis is the one of acquisition.
    """
    return scan.plane() or "axial"


def letters(scan: Any) -> dict[str, str]:
    """Letters at the edges of a hung scan's slices: {"top", "bottom", "left", "right"}; empty without an affine."""
    return scan.edge_letters()


def draw_slices(scan: Any, window: tuple[float, float], folder: Path) -> list[Path]:
    """PNGs of a hung scan's slices at their true proportions, evenly chosen where there are very many."""
    folder.mkdir(exist_ok=True)
    channels, height, width, depth = scan.voxels.shape
    low, high = window
    mm = scan.spacing or (1.0, 1.0, 1.0)
    scale = SLICE_PIXELS / max(height * mm[0], width * mm[1])
    size = max(round(width * mm[1] * scale), 1), max(round(height * mm[0] * scale), 1)
    files = []
    for index in np.unique(np.linspace(0, depth - 1, min(depth, MOST_SLICES)).round().astype(int)):
        grey = (np.clip((scan.voxels[..., index] - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(grey[0] if channels == 1 else np.ascontiguousarray(np.moveaxis(grey, 0, -1)))
        files.append(folder / f"{index:04d}.png")
        image.resize(size, Image.Resampling.BILINEAR).save(files[-1])
    return files


def facts(name: str, about: dict[str, Any]) -> list[tuple[str, str]]:
    """What may be told of a scan, (what, value): geometry, modality, series; nothing about the patient."""
    return [("File", name), *((label, value) for label, value in about["description"])]


def viewer_value(number: int, stored: Any, scan: Any, hung: Any, address: Any) -> dict[str, Any]:
    """What the viewer is told of a scan; `address` makes a file's URL. Writes the scan's NIfTI file the first time."""
    file = stored.folder / "scan.nii.gz"
    if not file.exists():
        write_nifti(scan, file)
    overlay = stored.folder / "overlay.nii.gz"
    return {
        "number": number,
        "url": address(file),
        "file": file.name,
        "volume": scan.is_volume,
        "plane": plane(hung),
        "placed": scan.affine is not None,
        "letters": letters(hung),
        "unit": " HU" if scan.modality == "CT" else "",
        "windows": windows(scan),
        "overlay": address(overlay) if overlay.exists() else None,
        "brightest": stored.about.get("brightest"),
        "pictures": None,
    }
