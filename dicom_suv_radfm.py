"""PET → standardised uptake values by body weight (g/ml), by the vendor-neutral rules of QIBA.

Source: RSNA QIBA FDG-PET/CT profile, appendix G, "SUV vendor-neutral pseudo-code"
(https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)); elements in PS3.3 C.8.9.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from .dicom_elements_radfm import Header, get_items, get_number, get_text, get_texts
from .dicom_file_radfm import GE_PET, GE_SCAN_DATETIME, PHILIPS_ACTIVITY, PHILIPS_PET, PHILIPS_SUV

NO_DATE = datetime(1900, 1, 1)


def find_suv_factor(headers: Sequence[Header]) -> float | None:
    """What the values of a PET series are multiplied by to give SUV; None where the headers do not allow it.

    Args:
        headers: of all files of the series; the earliest acquisition among them counts.
    """
    first = headers[0]
    units = get_text(first, "Units")
    if units == "GML":  # SUV by body weight already
        return 1.0
    activity = 1.0
    if units == "CNTS":
        if "Philips" not in get_text(first, PHILIPS_PET):
            return None
        factor = get_number(first, PHILIPS_SUV)
        if factor:
            return factor
        activity = get_number(first, PHILIPS_ACTIVITY) or 0.0
    elif units != "BQML":
        return None
    corrections = get_texts(first, "CorrectedImage")
    if not activity or (corrections and not {"DECY", "ATTN"} <= set(corrections)):
        return None
    weight = get_number(first, "PatientWeight")
    drug = next(iter(get_items(first, "RadiopharmaceuticalInformationSequence")), None)
    dose = get_number(drug, "RadionuclideTotalDose") if drug is not None else None
    if drug is None or not weight or not dose:
        return None
    share = _remaining_share(headers, drug)
    return None if share is None else activity * weight * 1000 / (dose * share)


def _remaining_share(headers: Sequence[Header], drug: Header) -> float | None:
    """How much of the dose is left at the time to which the image is decay-corrected."""
    correction = get_text(headers[0], "DecayCorrection")
    if correction == "ADMIN":
        return 1.0
    half_life, started = get_number(drug, "RadionuclideHalfLife"), _start_of_scan(headers)
    if correction != "START" or not half_life or half_life < 0 or started is None:
        return None
    injected = _parse(get_text(drug, "RadiopharmaceuticalStartDateTime"))
    if injected is None:
        # A time without a date: the last such time before the scan.
        injected = _parse(f"{started:%Y%m%d}" + get_text(drug, "RadiopharmaceuticalStartTime"))
        if injected is None:
            return None
        if injected > started:
            injected -= timedelta(days=1)
    elif started.year == NO_DATE.year:
        started = started.replace(year=injected.year, month=injected.month, day=injected.day)
        if started < injected:
            started += timedelta(days=1)
    seconds = (started - injected).total_seconds()
    return 2 ** (-seconds / half_life) if seconds >= 0 else None


def _start_of_scan(headers: Sequence[Header]) -> datetime | None:
    """The series' time where it is not after the acquisition: a series made later has the time of its reconstruction."""
    acquired = [moment for header in headers if (moment := _moment(header, "Acquisition")) is not None]
    series = _moment(headers[0], "Series")
    if series is not None and (not acquired or series <= min(acquired)):
        return series
    if "GEMS" in get_text(headers[0], GE_PET):
        scan = _parse(get_text(headers[0], GE_SCAN_DATETIME))
        if scan is not None:
            return scan
    return min(acquired) if acquired else None


def _moment(header: Header, kind: str) -> datetime | None:
    whole = _parse(get_text(header, f"{kind}DateTime")) if kind == "Acquisition" else None
    date = get_text(header, f"{kind}Date") or get_text(header, "SeriesDate") or get_text(header, "AcquisitionDate")
    time = get_text(header, f"{kind}Time")
    if whole is not None or not time:
        return whole
    return _parse((date or f"{NO_DATE:%Y%m%d}") + time)


def _parse(text: str) -> datetime | None:
    """A DICOM date and time, its fraction and offset from UTC left out (PS3.5 6.2, DT)."""
    digits = text.replace(":", "").split(".")[0].split("+")[0].split("-")[0].strip()
    for form, length in (("%Y%m%d%H%M%S", 14), ("%Y%m%d%H%M", 12)):
        if len(digits) == length:
            try:
                return datetime.strptime(digits, form)
            except ValueError:
                return None
    return None
