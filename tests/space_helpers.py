"""Scans for the tests of the Space."""

from dataclasses import replace

import nibabel
import numpy as np

from radfm.scan_radfm import Scan


def oblique_volume() -> Scan:
    """A volume whose axes are neither in order nor all in direction, and oblique."""
    voxels = np.random.default_rng(0).normal(size=(1, 30, 20, 24)).astype(np.float32)
    turn = nibabel.eulerangles.euler2mat(0.1, -0.05, 0.08)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -2.0], [1.5, 0, 0], [0, -1.0, 0]])
    affine[:3, 3] = 10, -20, 30
    return Scan(voxels, affine, (1.5, 1.0, 2.0), "MR")


def flipped(scan: Scan) -> Scan:
    """The same anatomy, stored the other way round along the first and last axis."""
    affine = scan.affine.copy()
    for axis in (0, 2):
        affine[:3, 3] += affine[:3, axis] * (scan.voxels.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    return replace(scan, voxels=scan.voxels[:, ::-1, :, ::-1], affine=affine)
