"""What in a record may name a patient: metadata of image files, words in NIfTI headers, telling fields and texts."""

import gzip
import re
from collections.abc import Iterator

import nibabel

from .image_metadata import DamagedImageError, metadata_of
from .schema import Record

FIELDS = re.compile(
    r"patient.?(name|id|birth|address|sex|age)|^name$|birth.?date|accession|mrn|referring|institution", re.IGNORECASE
)
TEXTS = (
    (re.compile(r"\b[A-Z][A-Za-z'-]+\^[A-Z][A-Za-z'-]+"), "a name as DICOM writes it"),
    (re.compile(r"\b(patient|pt)'?s? name\s*[:=]\s*\S+", re.IGNORECASE), "a patient's name"),
    (re.compile(r"\b(MRN|medical record number|accession( number)?)\s*[:#=]?\s*\d{4,}", re.IGNORECASE), "a record number"),
    (re.compile(r"\b(DOB|date of birth|born on)\s*[:=]?\s*\d", re.IGNORECASE), "a date of birth"),
    (re.compile(r"\b\d{3}-\d{2}-\d{4}\b"), "a social security number"),
)
NIFTI_TEXTS = ("descrip", "aux_file", "intent_name", "db_name")


def identities(record: Record) -> Iterator[str]:
    """What may name a patient, in words. Text that is burnt into pixels is not found."""
    for scan in record.images:
        try:
            if scan.path.endswith(".nii.gz"):
                yield from _nifti_words(scan.bytes)
            else:
                for name in metadata_of(scan.bytes):
                    yield f"{scan.path} has metadata ({name})"
        except (DamagedImageError, OSError, ValueError):
            continue  # a broken scan, which the check of scans names
    for key in record.extra:
        if FIELDS.search(key):
            yield f"extra has a field {key!r}"
    texts = [part.text or "" for message in record.messages for part in message.content]
    for text in (*texts, *(str(value) for value in record.extra.values())):
        for pattern, what in TEXTS:
            if pattern.search(text):
                yield f"a text has {what}"


def _nifti_words(content: bytes) -> Iterator[str]:
    header = nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).header
    for name in NIFTI_TEXTS:
        if bytes(header[name].item()).strip(b"\0 "):
            yield f"a volume's header has words in {name}"
    if header.extensions:
        yield "a volume's header has extensions"
