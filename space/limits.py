"""What one request, one visitor and all visitors together may take. `_number` reads an environment variable."""

import os

MIB, GIB = 1 << 20, 1 << 30


def _number(name: str, default: int) -> int:
    return int(os.environ.get(f"RADFM_{name}", default))


# Reading one scan, in its child process.
READ_SECONDS = _number("READ_SECONDS", 90)
READ_MEMORY = _number("READ_MEMORY", 6 * GIB)
READ_UNPACKED = _number("READ_UNPACKED", 1 * GIB)

# One request over HTTP.
UPLOAD_BYTES = _number("UPLOAD_BYTES", 1 * GIB)
UPLOAD_SECONDS = _number("UPLOAD_SECONDS", 600)
BODY_BYTES = 64 << 10
# Uploads are deleted after this many seconds, with the next sweep: longer than a full queue takes.
UPLOAD_KEPT_SECONDS, SWEEP_SECONDS = 600, 15

# One question. A question is short; a scan takes 34 tokens of a context of about 2,000.
QUESTION_CHARACTERS = 2_000
QUESTION_PLACES = 16

# One visitor.
SESSION_SCANS = 16
SESSION_TURNS = 100
SESSION_BYTES = _number("SESSION_BYTES", 4 * GIB)
SESSION_IDLE_SECONDS = 3600.0

# All visitors together.
SESSIONS = _number("SESSIONS", 256)
STORE_BYTES = _number("STORE_BYTES", 20 * GIB)
# What is always left free on the disk, so that the machine works on.
DISK_RESERVE = 256 * MIB
# Scans and their image tokens that no session holds are kept this long, for who asks about the same file again.
STORE_IDLE_SECONDS = 600.0
QUEUE = _number("QUEUE", 64)

# Standard error of the child and the messages of exceptions are shown: for developers, because both may hold names.
DEBUG = bool(os.environ.get("RADFM_DEBUG"))
