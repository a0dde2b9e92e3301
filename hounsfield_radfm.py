"""CT recognised by its grey values, for formats that do not state the modality (NIfTI, MetaImage, NRRD, …)."""

import numpy as np

from .scan_radfm import Scan

# HU by definition: water is 0, air -1000. Air measures -1000 ± 100 with noise and beam hardening; fat, muscle and organs lie
# between -200 and 300 with contrast (the soft-tissue windows of radiology cover no more); lung lies between.
AIR_HU = (-1100.0, -900.0)
NEXT_TO_AIR_HU = (-900.0, -700.0)
SOFT_TISSUE_HU = (-200.0, 300.0)
BONE_HU = 100.0
# Shares of voxels, measured on CT of head, chest and abdomen (TotalSegmentator, NEMA and pydicom's files): air 0.27 to 0.61
# and at least 7 times its neighbours; soft tissue 0.62 to 0.89 of what is denser than air. MR phase (uniform from -4096 to
# 4094) has 0.02, 1 and 0.10; a difference image (normal, σ 400) 0.01, 0.3 and 0.47. What lies between is left unknown.
# Padding counts with air against its neighbours: in a chest it replaces the air around the body, and the lung remains.
LEAST_AIR, LEAST_AIR_TO_NEXT, LEAST_SOFT_TISSUE = 0.02, 1.0, 0.4
# Below air lie the padding around the field of view, one value, and a few voxels behind metal.
MOST_BELOW_AIR = 0.02
# The shares are counted on about so many voxels.
SAMPLE = 1_000_000


def recognise_ct(scan: Scan) -> None:
    """Set the modality of a scan to CT where its values cannot be anything but HU, and its padding to air.

    Padding is one value below -1100 HU (-2000, -3024, -8192, …) around the field of view; it becomes the lowest other
    value, as for DICOM's Pixel Padding Value. Warnings say both.
    """
    step = max(round((scan.voxels.size / SAMPLE) ** (1 / 3)), 1)
    values = scan.voxels[:, ::step, ::step, ::step].ravel()
    lowest, highest = float(scan.voxels.min()), float(scan.voxels.max())
    if scan.voxels.shape[0] != 1 or lowest > AIR_HU[1] or highest < BONE_HU:
        return
    padded = values == lowest if lowest < AIR_HU[0] else np.zeros(values.shape, bool)
    air, next_to_air = _share(values, AIR_HU), _share(values, NEXT_TO_AIR_HU)
    dense = values[values > AIR_HU[1]]
    if (
        air < LEAST_AIR
        or air + float(np.mean(padded)) < LEAST_AIR_TO_NEXT * next_to_air
        or _share(dense, SOFT_TISSUE_HU) < LEAST_SOFT_TISSUE
        or float(np.mean((values < AIR_HU[0]) & ~padded)) > MOST_BELOW_AIR
    ):
        return
    scan.modality = "CT"
    scan.warnings.append(f"Taken for CT in HU: no modality is stated, and the values run from {lowest:g} to {highest:g}.")
    if lowest < AIR_HU[0]:
        _replace_padding(scan, lowest)


def _share(values: np.ndarray, bounds: tuple[float, float]) -> float:
    """The share of values between two bounds."""
    return float(np.mean((values >= bounds[0]) & (values <= bounds[1]))) if values.size else 0.0


def _replace_padding(scan: Scan, padding: float) -> None:
    kept = scan.voxels > padding
    lowest = float(scan.voxels.min(where=kept, initial=np.inf))
    if lowest < AIR_HU[0]:
        scan.warnings.append(f"Values from {padding:g} to {AIR_HU[0]:g} HU, lower than air, were left as they are.")
        return
    np.logical_not(kept, out=kept)
    scan.voxels[kept] = lowest
    scan.warnings.append(f"{int(kept.sum())} voxels of padding ({padding:g}) were set to {lowest:g}.")
