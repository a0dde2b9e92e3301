"""Which scans the index of difference hashes calls near."""

import random

from radfm.medmd.hashing import hash_distance
from radfm.medmd.near import MAX_DISTANCE, ScanIndex, _bands

BITS = 256


def with_flipped_bits(image_hash, count, rng):
    flipped = int(image_hash, 16)
    for bit in rng.sample(range(BITS), count):
        flipped ^= 1 << bit
    return format(flipped, f"0{BITS // 4}x")


def test_every_scan_within_the_distance_is_near_and_none_beyond_it():
    rng, index = random.Random(0), ScanIndex()
    hashes = [format(rng.getrandbits(BITS), f"0{BITS // 4}x") for _ in range(50)]
    for image_hash in hashes:
        index.add(image_hash, image_hash)
    for image_hash in hashes:
        for count in (0, 1, MAX_DISTANCE, MAX_DISTANCE + 1):
            other = with_flipped_bits(image_hash, count, rng)
            assert hash_distance(image_hash, other) == count
            assert list(index.near(other)) == ([image_hash] if count <= MAX_DISTANCE else [])


def test_scans_with_a_dark_border_share_no_band():
    # The rows of 16 bits at the top and bottom are 0, as in a CT slice; what lies between differs.
    rng = random.Random(0)
    hashes = [format(rng.getrandbits(BITS // 2) << BITS // 4, f"0{BITS // 4}x") for _ in range(200)]
    bands = [band for image_hash in hashes for band in _bands(image_hash)]
    assert len(bands) - len(set(bands)) < 0.05 * len(bands)
