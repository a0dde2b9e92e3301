"""Who belongs together: salted hashes of patients and studies, and the split that a hash decides."""

import hashlib

SPLIT_SHARES = (("train", 0.95), ("validation", 0.02), ("test", 0.03))


def digest(*parts: str) -> bytes:
    """SHA-256 of the parts, each preceded by its length, so that no two lists of parts are one text."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()


def salted_hash(salt: str, namespace: str, name: str) -> str:
    """16 hexadecimal digits for the id of a patient, study or file.

    `namespace` names whose ids these are, so that two sources with the same patients (RSNA and NIH) share a namespace and
    others with equal numbers do not. Ids are short: who knows the salt can try them all, so the hash hides an id from a
    reader and not from an attacker.

    >>> salted_hash("s", "nih", "13") == salted_hash("s", "nih", "13") != salted_hash("s", "chexpert", "13")
    True
    """
    return digest(salt, namespace, name).hex()[:16]


def split_of_group(salt: str, group: str) -> str:
    """The split of a group where its source publishes none: 95 % train, 2 % validation, 3 % test, by hash."""
    point = int.from_bytes(digest(salt, "split", group)[:8], "big") / 2**64
    for split, share in SPLIT_SHARES:
        if point < share:
            return split
        point -= share
    return SPLIT_SHARES[-1][0]
