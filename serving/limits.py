"""What one request and all requests together may take. `RADFM_NAME` in the environment sets NAME."""

import os

MIB, GIB = 1 << 20, 1 << 30


def _number(name: str, default: int) -> int:
    text = os.environ.get(f"RADFM_{name}", "")
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"RADFM_{name}={text} is no whole number above zero.")
    return int(text)


# Reading one scan, in its child process. Several are read at once.
READ_SECONDS = _number("READ_SECONDS", 90)
READ_MEMORY = _number("READ_MEMORY", 6 * GIB)
READ_UNPACKED = _number("READ_UNPACKED", GIB)
READERS = _number("READERS", min(os.cpu_count() or 1, 4))

# The body of one chat request, of all that are being received and read at the same time, and of one uploaded file.
REQUEST_BYTES = _number("REQUEST_BYTES", 256 * MIB)
BODIES_BYTES = _number("BODIES_BYTES", 2 * GIB)
UPLOAD_BYTES = _number("UPLOAD_BYTES", GIB)
# Uploads of /v1/files at the same time.
UPLOADS = _number("UPLOADS", 8)
# Seconds for a client to send a body, and for the server to answer it.
UPLOAD_SECONDS = _number("UPLOAD_SECONDS", 600)
ANSWER_SECONDS = _number("ANSWER_SECONDS", 300)

# Chat requests that are answered or wait; one more is told to come back.
QUEUE = _number("QUEUE", 128)
# Scans in one request, answers to one request (`n`), tokens of an answer where neither the request nor the model says.
SCANS = _number("SCANS", 16)
ANSWERS = _number("ANSWERS", 8)
NEW_TOKENS = 256

# Patches that the vision tower encodes at once; a scan with more is encoded alone.
BATCH_PATCHES = _number("BATCH_PATCHES", 16_384)
# Tokens of one batch of the decoder, prompts and answers together. On a GPU the free memory decides (engine.py).
BATCH_TOKENS = _number("BATCH_TOKENS", 32_768)
# Image tokens of scans that were asked about before.
CACHE_BYTES = _number("CACHE_BYTES", 256 * MIB)

# Files of /v1/files: all together, their number, how long they are kept by default and at most.
FILES_BYTES = _number("FILES_BYTES", 8 * GIB)
FILES = _number("FILES", 1000)
FILE_SECONDS = _number("FILE_SECONDS", 3600)
LONGEST_FILE_SECONDS = 24 * 3600
# What is always left free on the disk.
DISK_RESERVE = 256 * MIB

# Seconds for answers in progress when the server is stopped.
STOP_SECONDS = _number("STOP_SECONDS", 10)
# Longer than clients keep idle connections, so that no request meets one that is being closed: httpx, and so OpenAI's
# client, keeps them for 5 s, which is also uvicorn's default.
KEEP_ALIVE_SECONDS = 75

# Messages of exceptions and the standard error of reading children are shown: for developers, both may hold names.
DEBUG = bool(os.environ.get("RADFM_DEBUG"))
