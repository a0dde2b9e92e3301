"""Where the packs of the demo training come from. Each is a zip (or npz) of scans, with a CSV of labels of the same name.

The CSV has one row a scan: `file` (the member of the zip), `split` (train or val), `modality`, `body_part`, `plane`,
`sequence`, `finding`; an empty cell means unknown.
"""

from typing import NamedTuple


class Pack(NamedTuple):
    """One pack: its name, what it holds, who publishes the scans and where, under which licence."""

    name: str
    content: str
    source: str
    licence: str


PACKS = (
    Pack(
        "mednist",
        "9,000 JPEGs of 64×64: CT, MR and X-ray images of six kinds",
        "MedNIST (B. J. Erickson, Mayo Clinic): github.com/apolanco3225/Medical-MNIST-Classification",
        "CC BY-SA 4.0",
    ),
    Pack(
        "pneumoniamnist_28",
        "5,232 chest X-rays of 28×28 (npz)",
        "PneumoniaMNIST (Kermany et al. 2018): medmnist.com",
        "CC BY 4.0",
    ),
    Pack(
        "busi_breast_us",
        "663 JPEGs of breast ultrasound, longest side 128",
        "BUSI (Al-Dhabyani et al. 2020, Data in Brief 28:104863)",
        "CC BY 4.0, as MedMNIST releases it again",
    ),
    Pack(
        "brain_tumor_t1ce",
        "866 JPEGs of contrast-enhanced T1 slices, 128×128",
        "J. Cheng: figshare, doi 10.6084/m9.figshare.1512427",
        "CC BY 4.0",
    ),
    Pack(
        "ct_planes_nysbu",
        "96 JPEGs of CT slices in three planes",
        "COVID-19-NY-SBU (Saltz et al. 2021): cancerimagingarchive.net",
        "CC BY 4.0",
    ),
    Pack(
        "mr_volumes",
        "47 NIfTI volumes of at most 96×96×32",
        "github.com: muschellij2/open_ms_data, BrainLesion/tutorials (TCGA-LGG), spinalcordtoolbox/sct_testing_data, "
        "neurolabusc/VolumeRenderingData and dcm_qa_*, wasserth/TotalSegmentator",
        "per row: CC BY, CC BY 3.0, MIT, BSD-2-Clause, Apache-2.0",
    ),
    Pack("ct_volumes", "2 NIfTI volumes in HU", "github.com/wasserth/TotalSegmentator", "Apache-2.0"),
    Pack("dicom_series_ct", "one CT series of 20 slices", "github.com/wasserth/TotalSegmentator", "Apache-2.0"),
    Pack("dicom_series_mr", "one T1 series of 20 slices", "github.com/datalad/example-dicom-structural", "PDDL 1.0"),
)
