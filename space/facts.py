"""What may be shown of a scan in words: geometry, modality, series; nothing about the patient."""

from typing import Any

from modalities import MODALITIES


def facts(scan: Any) -> list[tuple[str, str]]:
    """(label, value) of what may be shown of a scan: geometry, modality, series; nothing about the patient."""
    channels, *size = scan.voxels.shape
    rows = [("Modality", MODALITIES.get(scan.modality, scan.modality) or "not stated")]
    if scan.series:
        rows.append(("Series", scan.series))
    shape = size if size[2] > 1 else size[:2]
    unit = "voxels" if size[2] > 1 else "pixels"
    rows.append(("Size", f"{' × '.join(map(str, shape))} {unit}{', colour' if channels == 3 else ''}"))
    if scan.spacing:
        spacing = scan.spacing[: len(shape)]
        rows.append(("Spacing", " × ".join(f"{mm:.4g}" for mm in spacing) + " mm"))
        rows.append(("Extent", " × ".join(f"{n * mm:.0f}" for n, mm in zip(shape, spacing, strict=True)) + " mm"))
    hu = " HU" if scan.modality == "CT" else ""
    rows.append(("Values", f"{float(scan.voxels.min()):g} to {float(scan.voxels.max()):g}{hu}"))
    return rows + [("Note", warning) for warning in scan.warnings]


def size_label(scan: Any) -> str:
    """Modality and size in a few characters, for the series panel: "CT · 512 × 512 × 20"."""
    _, *size = scan.voxels.shape
    modality = MODALITIES.get(scan.modality, scan.modality)
    shape = " × ".join(str(n) for n in (size if size[2] > 1 else size[:2]))
    return f"{modality} · {shape}" if modality else shape
