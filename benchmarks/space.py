"""The Space under many visitors: right answers, waiting times of page and API, memory and disk afterwards.

    python benchmarks/space.py --clients 50 --seconds 120     # half of them on the page, half through the API
    python benchmarks/space.py --clients 4 --sessions 500     # each visitor brings another file, asks once and leaves
    python benchmarks/space.py --clients 4 --sessions 500 --api

A visitor of the page does what its script does: takes the cookie, opens the page, uploads a scan, waits until it is read,
asks, and closes the page. With --seconds all visitors bring the same five files; with --sessions each file differs in a few
bytes that are no part of the scan, so that it is read and encoded anew. The right answers come from one visitor alone.
"""

import argparse
import asyncio
import itertools
import json
import re
import secrets
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel
from pydicom.data import get_testdata_file
from running_space import Space, running_space

NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
VISITS = [
    (Path(str(get_testdata_file("693_J2KI.dcm"))), "Which imaging modality is this?"),
    (Path(str(get_testdata_file("MR_small.dcm"))), "Which imaging modality is this?"),
    (Path(str(get_testdata_file("examples_rgb_color.dcm"))), "What kind of scan is this?"),
    (NIFTI / "example4d.nii.gz", "Which body part is shown?"),
    (NIFTI / "anatomical.nii", "Which imaging modality is this?"),
]
API = "/gradio_api"
# The Space deletes a visitor's folder once it notices that the page was closed, and sweeps every 15 s.
SECONDS_UNTIL_GONE = 60
# What no visitor looks at any more is kept for ten minutes (STORE_IDLE_SECONDS, UPLOAD_KEPT_SECONDS) and the next sweep.
KEPT_SECONDS = 660


@dataclass
class Tally:
    """What visitors met: seconds from the scan's upload to the answer, by kind of visitor, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"page": [], "API": []})
    wrong: list[str] = field(default_factory=list)


class Visitor:
    """One browser or program, with a cookie and a session of its own; leaving the context closes the page."""

    def __init__(self, address: str):
        self._client = httpx.AsyncClient(base_url=address, timeout=600, trust_env=False)
        self._session = secrets.token_hex(8)

    async def __aenter__(self) -> "Visitor":
        await self._client.get("/")
        self._config = (await self._client.get("/config")).json()
        self._alive = asyncio.create_task(self._stay())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._alive.cancel()
        await asyncio.gather(self._alive, return_exceptions=True)
        await self._client.aclose()

    async def _stay(self) -> None:
        """Keep the connection open by which Gradio knows that a page is still there."""
        async with self._client.stream("GET", f"{API}/heartbeat/{self._session}") as beats:
            async for _ in beats.aiter_lines():
                pass

    def _function(self, elem_id: str, event: str) -> int:
        ids = {c["props"].get("elem_id"): c["id"] for c in self._config["components"]}
        return next(d["id"] for d in self._config["dependencies"] if [ids.get(elem_id), event] in map(list, d["targets"]))

    async def _call(self, function: int, data: list[Any]) -> Any:
        """Wait in the queue for a function; its outputs."""
        body = {"fn_index": function, "data": data, "session_hash": self._session, "event_data": None, "trigger_id": None}
        joined = await self._client.post(f"{API}/queue/join", json=body)
        if joined.status_code != 200:
            raise RuntimeError(f"{joined.status_code} {joined.text[:100]}")
        event_id = joined.json()["event_id"]
        async with self._client.stream("GET", f"{API}/queue/data", params={"session_hash": self._session}) as events:
            async for line in events.aiter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if event.get("event_id") == event_id and event.get("msg") == "process_completed":
                    if not event.get("success"):
                        raise RuntimeError(str(event.get("output"))[:200])
                    return event["output"]["data"]
        raise RuntimeError("the server closed the queue")

    async def _upload(self, file: Path, content: bytes) -> dict[str, Any]:
        reply = await self._client.post(f"{API}/upload", files={"files": (file.name, content)})
        return {"path": reply.json()[0], "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    async def ask_on_page(self, file: Path, content: bytes, question: str) -> str:
        """Open the page, drop a scan and ask; the answer as the page shows it."""
        await self._call(next(d["id"] for d in self._config["dependencies"] if [t[1] for t in d["targets"]] == ["load"]), [])
        await self._call(self._function("drop", "upload"), [[await self._upload(file, content)]])
        chat, *_ = await self._call(self._function("question", "submit"), [question])
        return _last_text(chat)

    async def ask_api(self, file: Path, content: bytes, question: str) -> str:
        """Ask through the API."""
        function = next(d["id"] for d in self._config["dependencies"] if d.get("api_name") == "ask")
        (answer,) = await self._call(function, [[await self._upload(file, content)], question])
        return str(answer["answer"])


def _last_text(chat: list[dict[str, Any]]) -> str:
    content = chat[-1]["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return re.sub(r"\s+", " ", text).strip()


def add_number(file: Path, number: int) -> bytes:
    """The content of a file with a number in bytes that are no part of its scan.

    These are the preamble of DICOM (PS3.10, 7.1), the time in the header of gzip (RFC 1952) and NIfTI's `descrip`.
    """
    content = bytearray(file.read_bytes())
    place = {".dcm": 0, ".gz": 4, ".nii": 148}[file.suffix]
    content[place : place + 4] = number.to_bytes(4, "little")
    return bytes(content)


async def visit(address: str, kind: str, file: Path, question: str, number: int | None = None) -> tuple[str, float]:
    """One visit, with a file of its own where it has a number: the answer, and seconds."""
    content = file.read_bytes() if number is None else add_number(file, number)
    async with Visitor(address) as visitor:
        started = time.monotonic()
        answer = await (visitor.ask_on_page if kind == "page" else visitor.ask_api)(file, content, question)
        return answer, time.monotonic() - started


async def visit_and_compare(
    address: str, kind: str, place: int, right: dict[Any, str], tally: Tally, number: int | None = None
) -> None:
    """One visit with the file and question at a place of `VISITS`, noted in the tally."""
    file, question = VISITS[place % len(VISITS)]
    try:
        answer, seconds = await visit(address, kind, file, question, number)
    except (httpx.HTTPError, RuntimeError) as error:
        tally.wrong.append(f"{kind}: {type(error).__name__} {error}")
        return
    tally.seconds[kind].append(seconds)
    if answer != right[kind, file]:
        tally.wrong.append(f"{kind}, {file.name}: {answer!r} instead of {right[kind, file]!r}")


async def crowd(space: Space, clients: int, seconds: float, right: dict[Any, str], tally: Tally) -> None:
    """So many visitors at once, half of them on the page and half through the API, one visit after the other."""
    until = time.monotonic() + seconds

    async def keep_visiting(kind: str, start: int) -> None:
        for place in itertools.count(start):
            if time.monotonic() > until:
                return
            await visit_and_compare(space.address, kind, place, right, tally)

    await asyncio.gather(*(keep_visiting(("page", "API")[n % 2], n // 2) for n in range(clients)))


async def come_and_go(space: Space, kind: str, clients: int, sessions: int, right: dict[Any, str], tally: Tally) -> None:
    """So many visits, `clients` at a time; prints the level of memory and disk after each hundred."""
    numbers = iter(range(1, sessions + 1))

    async def keep_visiting() -> None:
        for number in numbers:
            await visit_and_compare(space.address, kind, number, right, tally, number)
            if number % 100 == 0:
                print(f"{number} sessions: {space.level()}", flush=True)

    await asyncio.gather(*(keep_visiting() for _ in range(clients)))
    until = time.monotonic() + SECONDS_UNTIL_GONE
    while space.visitors() and time.monotonic() < until:
        await asyncio.sleep(1)
    print(f"afterwards: {space.level()}, {space.visitors()} visitors", flush=True)
    await asyncio.sleep(KEPT_SECONDS)
    print(f"{KEPT_SECONDS // 60} minutes later: {space.level()}")


async def measure(space: Space, options: argparse.Namespace) -> None:
    """Print what the visitors met."""
    right = {
        (kind, file): (await visit(space.address, kind, file, question))[0]
        for kind in ("page", "API")
        for file, question in VISITS
    }
    print(f"before: {space.level()}", flush=True)
    tally = Tally()
    if options.sessions:
        kind = "API" if options.api else "page"
        await come_and_go(space, kind, options.clients, options.sessions, right, tally)
    else:
        await crowd(space, options.clients, options.seconds, right, tally)
    for kind, seconds in tally.seconds.items():
        if seconds:
            tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
            print(f"{kind}: {len(seconds)} visits, median {statistics.median(seconds):.1f} s, 90 % {tenths[8]:.1f} s")
    print(f"{space.level()}; {len(tally.wrong)} wrong {tally.wrong[:3]}")


def main() -> None:
    """Start the Space, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--api", action="store_true", help="with --sessions: through the API instead of the page")
    options = parser.parse_args()
    with running_space() as space:
        asyncio.run(measure(space, options))


if __name__ == "__main__":
    main()
