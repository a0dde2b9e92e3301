"""One DICOM file: what of its header is read, and where its pixels start (PS3.10 7, PS3.5 7 and A)."""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .dicom_elements_radfm import Header, as_dataset, get_integer, get_text, has_element
from .dicom_header_radfm import HEAD_BYTES, PlainHeader, plain_header, tags_of
from .scan_radfm import ScanError

try:
    import pydicom
except ImportError:
    if not TYPE_CHECKING:
        pydicom = None

DEFLATED = b"1.2.840.10008.1.2.1.99"
# Private elements whose meaning is public: the scan's start (GE), the slices of a mosaic (Siemens), the SUV factor and the
# activity concentration factor (Philips), each behind the element that reserves its block (PS3.5 7.8.1).
GE_PET, SIEMENS_MR, PHILIPS_PET = 0x00090010, 0x00190010, 0x70530010
GE_SCAN_DATETIME, SIEMENS_MOSAIC_SLICES, PHILIPS_SUV, PHILIPS_ACTIVITY = 0x0009100D, 0x0019100A, 0x70531000, 0x70531009
PRIVATE = {GE_PET, GE_SCAN_DATETIME, SIEMENS_MR, SIEMENS_MOSAIC_SLICES, PHILIPS_PET, PHILIPS_SUV, PHILIPS_ACTIVITY}
# All that is read of a header. A patient's weight is among it for SUV, and goes no further.
WHAT = """
    SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID SeriesNumber
    SeriesDescription InstanceNumber FrameOfReferenceUID ComplexImageComponent
"""
WHERE = """
    SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient SliceLocation PixelSpacing
    ImagerPixelSpacing NominalScannedPixelSpacing SequenceOfUltrasoundRegions GridFrameOffsetVector
    DetectorInformationSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionIndexSequence
"""
WHICH_VOLUME = """
    EchoTime EchoNumbers InversionTime FlipAngle TriggerTime TemporalPositionIdentifier AcquisitionNumber DiffusionBValue
    DiffusionGradientOrientation KVP NominalPercentageOfCardiacPhase StackID AcquisitionDate AcquisitionTime
    AcquisitionDateTime ContentTime SeriesDate SeriesTime TimeSliceVector TimeSlotVector EnergyWindowVector DetectorVector
    PhaseVector RRIntervalVector SliceVector
"""
HOW_STORED = """
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation ExtendedOffsetTable ExtendedOffsetTableLengths RedPaletteColorLookupTableDescriptor
    GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableData BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
"""
WHAT_VALUES = """
    PixelPaddingValue PixelPaddingRangeLimit WindowCenter WindowWidth VOILUTFunction RescaleIntercept RescaleSlope
    ModalityLUTSequence VOILUTSequence DoseGridScaling DoseUnits Units DecayCorrection CorrectedImage PatientWeight
    RadiopharmaceuticalInformationSequence
"""
TAGS = tags_of(f"{WHAT} {WHERE} {WHICH_VOLUME} {HOW_STORED} {WHAT_VALUES}".split()) | PRIVATE
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
PREAMBLE = 132


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM file.

    Args:
        name: its path, or the path of the archive and its name in there.
        header: the elements of `TAGS` that it has.
        path_or_bytes: where its pixels are read from; None where `header` is the whole dataset.
        pixels_at: the byte at which its pixel element starts; -1: there is none, or it is in `header`.
    """

    name: str
    header: Header
    path_or_bytes: Path | bytes | None
    pixels_at: int = -1

    @property
    def has_image(self) -> bool:
        """Whether there is an image, and of what size."""
        sized = get_integer(self.header, "Rows") > 0 and get_integer(self.header, "Columns") > 0
        return sized and (self.pixels_at >= 0 or any(has_element(self.header, w) for w in PIXEL_ELEMENTS))

    @property
    def frames(self) -> int:
        """How many images the file holds."""
        return max(get_integer(self.header, "NumberOfFrames", 1), 1)

    @property
    def transfer_syntax(self) -> str:
        """UID of the transfer syntax; as the file was found to be written where it does not say."""
        if isinstance(self.header, PlainHeader):
            return self.header.transfer_syntax
        stated = getattr(getattr(self.header, "file_meta", None), "TransferSyntaxUID", None)
        implicit, little = getattr(self.header, "original_encoding", (True, True))
        return str(stated or NATIVE[0 if implicit else 1 if little else 2])

    def error(self, reason: str) -> ScanError:
        """A `ScanError` that names the file."""
        return ScanError(f"{self.name}: {reason}")

    def read_dataset(self) -> "pydicom.Dataset":
        """The whole header, without the pixels. Raises `ScanError`."""
        if self.path_or_bytes is None:
            return as_dataset(self.header)
        return _read(self.name, self.path_or_bytes, stop_before_pixels=True)[0]

    def open(self) -> BinaryIO:
        """The file's bytes as a stream."""
        assert self.path_or_bytes is not None
        return open_bytes(self.path_or_bytes)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM's: with a preamble, or without one (first group 0002 or 0008).

    >>> looks_like_dicom(bytes(128) + b"DICM"), looks_like_dicom(b"no scan")
    (True, False)
    """
    return head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def read_instance(name: str, source: Path | bytes, max_bytes: int) -> Instance:
    """The header of one file; its pixels stay where they are. Raises `ScanError`."""
    with open_bytes(source) as file:
        head = b""
        for length in HEAD_BYTES:
            head += file.read(length - len(head))
            plain = plain_header(head, TAGS)
            if plain is not None:
                return Instance(name, plain[0], source, plain[1])
        if DEFLATED in head[:1024]:
            file.seek(0)
            _refuse_deflate_bomb(name, file.read(), max_bytes)
            return Instance(name, _read(name, source)[0], None)
    header, at = _read(name, source, stop_before_pixels=True, specific_tags=sorted(TAGS))
    return Instance(name, header, source, at)


def open_bytes(source: Path | bytes) -> BinaryIO:
    """A file, or bytes as if they were one."""
    return open(source, "rb") if isinstance(source, Path) else io.BytesIO(source)


def describe_instance(instance: Instance) -> str:
    """Number and description of an instance's series."""
    words = (get_text(instance.header, "SeriesNumber"), get_text(instance.header, "SeriesDescription"))
    return " ".join(word for word in words if word) or "series without a name"


def _read(name: str, source: Path | bytes, **options: object) -> tuple["pydicom.Dataset", int]:
    try:
        with open_bytes(source) as file:
            force = looks_like_dicom(file.read(PREAMBLE))
            file.seek(0)
            dataset = pydicom.dcmread(file, force=force, **options)  # type: ignore[arg-type]
            at = file.tell()
            return dataset, at if file.read(4) else -1
    except Exception as error:  # pydicom raises whatever a damaged header leads it to
        raise ScanError(f"{name}: is no scan that can be read: not DICOM, NIfTI, NumPy or a picture.") from error


def _refuse_deflate_bomb(name: str, content: bytes, max_bytes: int) -> None:
    # The group length of the file meta information (PS3.10, 7.1) says where the deflated dataset starts.
    start = 144 + int.from_bytes(content[140:144], "little")
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], max_bytes + 1)
    except zlib.error as error:
        raise ScanError(f"{name}: its deflated dataset is damaged.") from error
    if len(unpacked) > max_bytes:
        raise ScanError(f"{name}: unpacks to more than {max_bytes / 1e9:.1f} GB.")
