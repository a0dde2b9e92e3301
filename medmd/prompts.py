"""Questions in many wordings. Which one a record gets follows from the seed and the record's id alone."""

from collections.abc import Sequence

from .groups import digest

OPEN = {
    "modality": (
        "Which imaging modality is this?",
        "What imaging modality was used?",
        "How was this scan acquired?",
        "Name the imaging modality.",
        "What kind of scan is shown here?",
        "With which modality was this examination performed?",
    ),
    "body_part": (
        "Which body part is shown?",
        "What part of the body was examined?",
        "Which anatomical region does this scan cover?",
        "Name the body part in this scan.",
        "What region of the body is imaged here?",
    ),
    "plane": (
        "In which plane was this scan taken?",
        "What is the imaging plane?",
        "Name the plane or projection.",
        "Which view is this?",
        "How is this scan oriented?",
    ),
    "sequence": (
        "Which MR sequence is this?",
        "What MR sequence was used?",
        "Name the MR sequence.",
        "What is the weighting of this MR scan?",
    ),
    "diagnosis": (
        "What is the diagnosis?",
        "Which findings does this scan show?",
        "What abnormalities are present, if any?",
        "List the findings.",
        "What do you see in this scan?",
        "Is anything abnormal, and if so, what?",
        "Name the pathology seen here.",
    ),
    "report": (
        "Write the radiology report.",
        "Please report on this examination.",
        "Describe the findings and give your impression.",
        "Generate a radiology report for this study.",
        "What would the radiologist's report say?",
        "Report this scan.",
    ),
    "findings_section": (
        "Describe the findings.",
        "Write the findings section of the report.",
        "What are the radiological findings?",
        "Give the findings of this study.",
    ),
    "impression_section": (
        "What is your impression?",
        "Write the impression of the report.",
        "Summarise this study in an impression.",
        "Give the conclusion of this study.",
    ),
    "caption": (
        "Describe this image.",
        "Write a caption for this figure.",
        "What does the figure show?",
        "Give a caption.",
        "Summarise what can be seen.",
    ),
    "rationale": (
        "Which radiographic features lead to the diagnosis?",
        "Explain the diagnosis from the scan.",
        "What is the diagnosis, and which imaging features support it?",
        "State the diagnosis and the radiological reasons for it.",
    ),
    "interleaved": ("Continue the text.", "How does the text go on?", "Write the next sentences."),
    # What MedPix knows of a case, by the names of its column `type`.
    "exam": ("What did the physical examination show?", "What are the exam findings of this patient?"),
    "ddx": ("What is the differential diagnosis?", "Which diagnoses come into question?"),
    "dx_how": ("How was the diagnosis confirmed?", "What confirmed the diagnosis?"),
    "treatment": ("How should this be treated and followed up?", "What treatment and follow-up are appropriate?"),
    "discussion": ("Discuss this case.", "What should be known about this condition?"),
}
CLOSED = {
    "modality": ("Is this {a} {value} scan?", "Is the modality {value}?", "Was this scan acquired with {value}?"),
    "body_part": ("Does this scan show the {value}?", "Is the {value} shown here?", "Is this a scan of the {value}?"),
    "plane": ("Is this {a} {value} view?", "Is the plane {value}?", "Is this scan {value}?"),
    "sequence": ("Is this {a} {value} sequence?", "Is the MR sequence {value}?"),
    "diagnosis": (
        "Is there {value}?",
        "Does this scan show {value}?",
        "Is {value} present?",
        "Are there signs of {value}?",
        "Can {value} be seen here?",
    ),
    "normal": ("Is this scan normal?", "Is this a normal study?", "Is this scan free of abnormality?"),
}
NORMAL = "normal"


def choose(options: Sequence[str], seed: int, *key: str) -> str:
    """One of the options, by hash of the seed and the key.

    >>> choose(("a", "b"), 0, "record") == choose(("a", "b"), 0, "record")
    True
    """
    return options[int.from_bytes(digest(str(seed), *key)[:8], "big") % len(options)]


def open_question(kind: str, seed: int, key: str) -> str:
    """A question of a kind of `OPEN`."""
    return choose(OPEN[kind], seed, "open", kind, key)


def closed_question(kind: str, value: str, seed: int, key: str) -> str:
    """A yes/no question about a value; about being normal where the value is `NORMAL`.

    >>> closed_question("modality", "MRI", 0, "record").replace("an MRI", "MRI").count("MRI")
    1
    """
    kind = "normal" if value == NORMAL else kind
    return choose(CLOSED[kind], seed, "closed", kind, key).format(a=article(value), value=value)


def article(value: str) -> str:
    """The indefinite article: by the sound of the first letter where the value is spelt out (an MRI, an X-ray).

    >>> [article(word) for word in ("MRI", "CT", "X-ray", "axial", "ultrasound", "frontal", "FLAIR")]
    ['an', 'a', 'an', 'an', 'an', 'a', 'a']
    """
    if value.startswith(("MR", "X-ray")):
        return "an"
    return "an" if value[:1].lower() in "aeiou" else "a"
