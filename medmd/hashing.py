"""Hashes that find duplicates: of images by their grey values, of texts by their words."""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16  # dHash of 16 × 16 comparisons: 256 bits. 64 bits confuse chest radiographs with each other.


def difference_hash(image: Image.Image) -> str:
    """64 hexadecimal digits: whether each of 16 × 17 mean grey values is darker than its right neighbour.

    Resizing, recompression and a change of window leave most bits as they are.

    >>> wedge = Image.linear_gradient("L").rotate(90)
    >>> difference_hash(wedge) == difference_hash(wedge.resize((100, 80)))
    True
    """
    small = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def hash_distance(a: str, b: str) -> int:
    """How many of the bits differ.

    >>> hash_distance("ff00", "ff03")
    2
    """
    return (int(a, 16) ^ int(b, 16)).bit_count()


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's shape, type and values."""
    head = f"{array.shape}{array.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def min_hash(texts: Sequence[str], permutations: int = 128) -> np.ndarray:
    """(texts, permutations) uint32: MinHash signatures of the texts' word triples.

    The share of equal numbers of two signatures estimates the Jaccard similarity of the two texts.
    """
    from rensa import RMinHash

    signatures = np.empty((len(texts), permutations), dtype=np.uint32)
    for row, text in enumerate(texts):
        words = text.lower().split()
        triples = [" ".join(words[i : i + 3]) for i in range(max(len(words) - 2, 1))]
        sketch = RMinHash(num_perm=permutations, seed=0)
        sketch.update(triples)
        signatures[row] = sketch.digest()
    return signatures
