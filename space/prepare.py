"""Scan → the files in one folder that page and model take. Runs in the child process that reads scans.

voxels.npy            the grey values, for slices without WebGL2
thumbnail.png         for the series panel
coarse.nii            at most 2 million voxels: what the viewer shows first
scan.nii.gz           all voxels (of a very large volume, every second or third row and column)
pixel_values.npy      what the model takes
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import viewer
from model_code import ModelCode


def prepare(scan: Any, folder: Path, code: ModelCode) -> Iterator[dict[str, Any]]:
    """Write the folder of a scan; yields what is known of it as soon as it can be seen, and again when all is written."""
    folder.mkdir(parents=True)
    in_view = code.scans.to_radiological_view(scan)
    windows = viewer.windows(scan, code.image_processing.CT_WINDOWS)
    first = (windows[0]["low"], windows[0]["high"]) if windows else (0.0, 255.0)
    viewer.draw_thumbnail(in_view, first, folder / "thumbnail.png")
    small = scan.voxels[0].size <= viewer.COARSE_VOXELS
    if not small:
        viewer.write_nifti(scan, folder / "coarse.nii", viewer.COARSE_VOXELS)
    facts = scan.describe()
    named = dict(facts)
    about = {
        "shape": list(scan.voxels.shape),
        "affine": None if scan.affine is None else np.asarray(scan.affine, dtype=float).tolist(),
        "spacing": None if scan.spacing is None else [float(mm) for mm in scan.spacing],
        "modality": scan.modality,
        "series": scan.series,
        "warnings": list(scan.warnings),
        "facts": facts,
        "modality_name": named["Modality"],
        "size": named["Size"],
        "unit": code.scans.UNITS.get(scan.modality or "", ""),
        "windows": windows,
        "plane": in_view.plane() or "axial",
        "letters": edge_letters(scan, code.scans),
        "model_view": model_view(scan, code.image_processor),
    }
    if not small:
        yield about
    compact = replace(scan, voxels=viewer.compact(scan.voxels))
    viewer.write_nifti(compact, folder / "scan.nii.gz", viewer.FULL_VOXELS)
    np.save(folder / "voxels.npy", compact.voxels)
    np.save(folder / "pixel_values.npy", code.image_processor([scan])["pixel_values"][0].numpy())
    yield about


def edge_letters(scan: Any, scans: ModuleType) -> dict[str, dict[str, str]]:
    """For each plane the letters at the edges of its slices in radiological view; empty where the scan has no affine.

    Args:
        scan: a scan, its axes in any order.
        scans: the module `scan_radfm` of the model's repository.

    Returns:
        {"axial": {"top", "bottom", "left", "right"}, "coronal": …, "sagittal": …}
    """
    if scan.affine is None:
        return {}
    views = []
    for directions in scans.RADIOLOGICAL_VIEW.values():
        voxels, affine, _ = scans.reorient(scan.voxels, scan.affine, directions)
        views.append(scans.Scan(voxels, affine))
    return {view.plane(): view.edge_letters() for view in views}


def model_view(scan: Any, image_processor: Any) -> dict[str, Any]:
    """The geometry between a scan and its `pixel_values`, with which an overlay is placed.

    Returns:
        "affine": (4, 4) of the oriented and cropped scan; "shape": its height, width and depth in voxels; "resampled": what
        that was resampled to; "shown": height, width and depth of `pixel_values`, centred on it by padding or cutting.
    """
    placed = replace(scan, affine=viewer.affine_of(scan), spacing=scan.spacing if scan.affine is not None else None)
    published = image_processor.preset == "published"
    view = placed if published else image_processor.orient_and_crop(placed)
    side = image_processor.image_size
    if published:
        resampled = (side, side, image_processor.target_depth(view.voxels.shape[-1]))
    else:
        resampled = image_processor.target_size(view if scan.affine is not None else replace(view, spacing=scan.spacing))
    return {
        "affine": np.asarray(view.affine, dtype=float).tolist(),
        "shape": list(view.voxels.shape[1:]),
        "resampled": list(resampled),
        "shown": [side, side, image_processor.target_depth(resampled[2])],
    }
