"""Radiology reports: their sections, sentences that hide removed words, and whether they compare with an earlier study."""

import re

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /()&,-]{2,60}?)[ \t]*:", re.MULTILINE)
_ADDENDUM = re.compile(r"^\s*_{8,}\s*$", re.MULTILINE)
_REMOVED = re.compile(r"X{3,}|_{2,}")
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?](?=\d)[^.!?]*)*[.!?]*")
# Portals and residents spell headings in dozens of ways; a heading counts for the first name that it starts with or
# contains.
SECTIONS = (
    ("impression", ("IMPRESSION", "IMPRESSON", "IMPESSION", "CONCLUSION", "OPINION", "SUMMARY", "IMP")),
    ("findings", ("FINDINGS", "FINDING", "FIDINGS", "FINDNGS", "FINIDNGS", "REPORT")),
    ("indication", ("INDICATION", "CLINICAL", "HISTORY", "REASON")),
    ("comparison", ("COMPARISON", "COMPARISION", "COMPARE", "PRIOR")),
    ("technique", ("TECHNIQUE", "EXAM", "STUDY", "PROCEDURE", "VIEWS")),
)
_PRIOR = re.compile(
    r"\b(unchanged|interval|previous(ly)?|prior|compar(ed|ison)|again (seen|noted|demonstrated)|stable|worsen\w*|improv\w*|"
    r"has (resolved|increased|decreased|progressed)|new(ly)? since|no longer|persist\w*)\b",
    re.IGNORECASE,
)


def sections(text: str) -> dict[str, str]:
    """The sections of a report whose headings stand at the start of a line, in capitals, before a colon.

    What stands above a line of underscores is an addendum and left out, as MIMIC-CXR's authors advise. Of two
    sections with one name the last that is not empty counts.

    >>> sections(" FINDINGS:  Clear\\n lungs.\\n\\n IMPRESSON: Normal.")
    {'findings': 'Clear lungs.', 'impression': 'Normal.'}
    """
    text = _ADDENDUM.split(text)[-1]
    headings = list(_HEADING.finditer(text))
    found: dict[str, str] = {}
    for i, heading in enumerate(headings):
        end = headings[i + 1].start() if i + 1 < len(headings) else len(text)
        body = " ".join(text[heading.end() : end].split())
        name = _section_name(heading.group(1))
        if name and body:
            found[name] = body
    return found


def _section_name(heading: str) -> str | None:
    for name, spellings in SECTIONS:
        if any(heading.startswith(spelling) or f" {spelling}" in heading for spelling in spellings):
            return name
    return None


def without_removed_words(text: str | None) -> str:
    """The sentences in which nothing was blacked out (`XXXX` in OpenI, `___` in MIMIC-CXR).

    >>> without_removed_words("Heart size is normal. Seen on XXXX. There are 2.5 cm nodules.")
    'Heart size is normal. There are 2.5 cm nodules.'
    """
    sentences = [match.group().strip() for match in _SENTENCE.finditer(" ".join((text or "").split()))]
    return " ".join(sentence for sentence in sentences if sentence and not _REMOVED.search(sentence))


def mentions_prior(text: str) -> bool:
    """Whether a text compares with an earlier study, which the record does not show: `extra.mentions_prior` says so.

    >>> mentions_prior("Effusion is unchanged."), mentions_prior("Small effusion.")
    (True, False)
    """
    return _PRIOR.search(text) is not None


def compose(findings: str, impression: str) -> tuple[str, str]:
    """The report as an answer, and the kind of question that it answers; both empty where nothing is left.

    >>> compose("Clear lungs.", "")
    ('Clear lungs.', 'findings_section')
    """
    if findings and impression:
        return f"Findings: {findings} Impression: {impression}", "report"
    if findings:
        return findings, "findings_section"
    return (impression, "impression_section") if impression else ("", "")
