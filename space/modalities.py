"""Names of DICOM's modality codes (PS3.3 C.7.3.1.1.1) as people say them."""

MODALITIES = {
    "CT": "CT",
    "MR": "MRI",
    "DX": "X-ray",
    "CR": "X-ray",
    "MG": "mammogram",
    "US": "ultrasound",
    "PT": "PET",
    "NM": "nuclear medicine",
}
