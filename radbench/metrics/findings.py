"""Findings and whether a text affirms them: what BLEU cannot see, "pleural effusion" against "no pleural effusion".

The reading follows NegEx (Chapman et al., J Biomed Inform 2001; 34:301): a cue before or behind a finding negates it within
the sentence, up to a word that ends its reach. `CASES` are sentences with the right reading: `check` shows which of them
this reader gets wrong, and reports print it, because no such reader is right everywhere.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..statistics import Measurement, divide

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"

# Finding → the phrases that name it, as regular expressions over lower-case text.
FINDINGS = {
    "abscess": r"abscess(?:es)?",
    "air space opacity": r"(?:air ?space |ground[- ]glass |patchy |hazy )?opacit(?:y|ies)|opacification",
    "aneurysm": r"aneurysms?",
    "ascites": r"ascites",
    "atelectasis": r"atelecta(?:sis|ses|tic)|collapse",
    "bronchiectasis": r"bronchiectasis",
    "calcification": r"(?:micro)?calcifications?",
    "cardiomegaly": r"cardiomegaly|enlarged (?:heart|cardiac silhouette)|(?:heart|cardiac silhouette) is enlarged",
    "consolidation": r"consolidations?",
    "cyst": r"cysts?",
    "dislocation": r"dislocations?",
    "edema": r"o?edema",
    "emphysema": r"emphysema",
    "fibrosis": r"fibrosis|fibrotic",
    "fracture": r"fractures?",
    "glioma": r"gliomas?",
    "hemorrhage": r"ha?emorrhages?|bleeding",
    "hepatomegaly": r"hepatomegaly",
    "hernia": r"hernias?|herniation",
    "hydrocephalus": r"hydrocephalus",
    "hydronephrosis": r"hydronephrosis",
    "infarct": r"infarct(?:s|ion|ions)?",
    "lymphadenopathy": r"lymphadenopathy|enlarged lymph nodes?",
    "mass": r"mass(?:es)?",
    "meningioma": r"meningiomas?",
    "metastasis": r"metasta(?:sis|ses|tic)",
    "midline shift": r"midline shift",
    "nodule": r"nodules?",
    "pituitary tumor": r"pituitary (?:tumou?rs?|adenomas?)",
    "pleural effusion": r"(?:pleural )?effusions?",
    "pleural thickening": r"pleural thickening",
    "pneumonia": r"pneumonias?",
    "pneumothorax": r"pneumothora(?:x|ces)",
    "scoliosis": r"scoliosis",
    "splenomegaly": r"splenomegaly",
    "stenosis": r"stenos(?:is|es)",
    "stone": r"stones?|calculus|calculi",
    "thrombus": r"thromb(?:us|i|osis)",
    "tumor": r"tumou?rs?|neoplasms?",
}
_NEGATION_BEFORE = (
    r"negative for|absence of|free of|resolution of|resolved|ruled? out|rules out|denies|without|neither|nor|not|no"
)
# "no change in" says that something is there; "not only" affirms.
_NO_NEGATION = r"no (?:significant |interval )*(?:change|increase|decrease)|not only|no longer than"
_NEGATION_BEHIND = (
    r"(?:(?:is|are|was|were|has|have|been) )*"
    r"(?:not (?:seen|identified|present|visible|demonstrated)|absent|resolved|excluded|ruled out|cleared)"
)
_UNCERTAIN_BEFORE = (
    r"possibl[ey]|probabl[ey]|may (?:represent|be|reflect)|might|suspicio(?:n|us) (?:of|for)|cannot exclude|"
    r"suggest(?:s|ive of|ing)?|versus|question of|likely|concern for"
)
_UNCERTAIN_BEHIND = r"(?:is|are)? ?(?:(?:possible|suspected|questionable|not excluded)|cannot be excluded|(?:is|are) likely)"
_END_OF_REACH = r";|:|\bbut\b|\bhowever\b|\balthough\b|\bexcept\b|\bapart from\b|\bwhile\b|\bwith\b"
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|(?<=[a-z])\.(?=[A-Z])")
_FINDING = re.compile("|".join(f"(?P<f{i}>\\b(?:{pattern})\\b)" for i, pattern in enumerate(FINDINGS.values())))
_NAMES = list(FINDINGS)


def read_findings(text: str) -> dict[str, str]:
    """The findings that a text names: present, absent or uncertain. Of two mentions present wins, then uncertain.

    Example:
        >>> read_findings("No pneumothorax. Small left pleural effusion; possible consolidation.")
        {'pneumothorax': 'absent', 'pleural effusion': 'present', 'consolidation': 'uncertain'}
    """
    order = (ABSENT, UNCERTAIN, PRESENT)
    found: dict[str, str] = {}
    for sentence in _SENTENCE.split(text):
        lower = re.sub(r"\s+", " ", sentence.lower())
        for match in _FINDING.finditer(lower):
            name = _NAMES[int((match.lastgroup or "f0")[1:])]
            polarity = _polarity(lower, *match.span())
            found[name] = max(found.get(name, ABSENT), polarity, key=order.index)
    return found


def _polarity(sentence: str, start: int, end: int) -> str:
    before = re.split(_END_OF_REACH, sentence[:start])[-1]
    behind = re.split(f"{_END_OF_REACH}|,", sentence[end:])[0]
    before = re.sub(_NO_NEGATION, " ", before)
    # What stands between a finding and a cue behind it: the rest of a list ("effusion or pneumothorax is not seen").
    cue_behind = r"^(?:[\w ]{0,40}\s)?\s*"
    if re.search(rf"{cue_behind}(?:{_UNCERTAIN_BEHIND})\b", behind) or re.search(rf"\b(?:{_UNCERTAIN_BEFORE})\b", before):
        return UNCERTAIN
    if re.search(rf"\b(?:{_NEGATION_BEFORE})\b", before) or re.search(rf"{cue_behind}(?:{_NEGATION_BEHIND})\b", behind):
        return ABSENT
    return PRESENT


class Case(NamedTuple):
    """A sentence, a finding in it, and how a radiologist reads it."""

    sentence: str
    finding: str
    polarity: str


CASES = (
    Case("Pleural effusion.", "pleural effusion", PRESENT),
    Case("No pleural effusion.", "pleural effusion", ABSENT),
    Case("There is no evidence of pneumothorax.", "pneumothorax", ABSENT),
    Case("Lungs are clear without consolidation or effusion.", "pleural effusion", ABSENT),
    Case("Neither pneumothorax nor effusion.", "pneumothorax", ABSENT),
    Case("Neither pneumothorax nor effusion.", "pleural effusion", ABSENT),
    Case("The effusion has resolved.", "pleural effusion", ABSENT),
    Case("Interval resolution of the effusion.", "pleural effusion", ABSENT),
    Case("No pneumothorax; small effusion.", "pleural effusion", PRESENT),
    Case("No pneumothorax, but a small effusion.", "pleural effusion", PRESENT),
    Case("No change in the right effusion.", "pleural effusion", PRESENT),
    Case("A fracture is not seen.", "fracture", ABSENT),
    Case("Pneumonia cannot be excluded.", "pneumonia", UNCERTAIN),
    Case("Opacity, suspicious for pneumonia.", "pneumonia", UNCERTAIN),
    Case("Fracture of the rib, no pneumothorax.", "fracture", PRESENT),
    # Wrong until a parser reads them: the cue and what it negates are told apart by meaning alone.
    Case("No pneumothorax, small effusion.", "pleural effusion", PRESENT),
    Case("The patient with no fever has pneumonia.", "pneumonia", PRESENT),
    Case("History of pneumonia.", "pneumonia", ABSENT),
    Case("Effusion seen before is gone.", "pleural effusion", ABSENT),
    Case("If there is a fracture, cast it.", "fracture", UNCERTAIN),
)


def check(cases: Sequence[Case] = CASES) -> list[tuple[Case, str]]:
    """Each case with the reading of `read_findings`; "not found" where it misses the finding."""
    return [(case, read_findings(case.sentence).get(case.finding, "not found")) for case in cases]


def finding_scores(answers: Sequence[str], references: Sequence[str]) -> list[Measurement]:
    """Precision, recall and F1 of (finding, polarity), over all findings of all answers.

    Example:
        >>> [m.score for m in finding_scores(["No effusion. Fracture."], ["Effusion. Fracture."])]
        [0.5, 0.5, 0.5]
    """
    read = [[set(read_findings(text).items()) for text in pair] for pair in zip(answers, references, strict=True)]
    rows = np.array([[len(a & r), len(a), len(r)] for a, r in read], float).reshape(-1, 3)
    right = sum(reading == case.polarity for case, reading in check())
    signature = (
        f"{len(FINDINGS)} findings with polarity|NegEx-like reader, right on {right} of its {len(CASES)} test sentences|"
        "sums over all answers"
    )
    return [
        Measurement("finding precision", rows, lambda s: divide(s[..., 0], s[..., 1]), signature, used=len(rows)),
        Measurement("finding recall", rows, lambda s: divide(s[..., 0], s[..., 2]), signature, used=len(rows)),
        Measurement("finding F1", rows, lambda s: divide(2 * s[..., 0], s[..., 1] + s[..., 2]), signature, used=len(rows)),
    ]
