"""The Space under many visitors: right answers, waiting times of page and API, memory and disk afterwards.

    python benchmarks/space.py --clients 50 --seconds 120     # half of them on the page, half through the API
    python benchmarks/space.py --clients 4 --sessions 500     # visitors who come, ask once and leave

A visitor of the page does what its script does: takes the cookie, opens the page, uploads a scan, waits until it is read,
asks, and closes the page. The answers were found with one visitor alone.
"""

import argparse
import asyncio
import itertools
import json
import re
import secrets
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel
import psutil
from pydicom.data import get_testdata_file

NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
VISITS = [
    (Path(str(get_testdata_file("693_J2KI.dcm"))), "Which imaging modality is this?"),
    (Path(str(get_testdata_file("MR_small.dcm"))), "Which imaging modality is this?"),
    (Path(str(get_testdata_file("examples_rgb_color.dcm"))), "What kind of scan is this?"),
    (NIFTI / "example4d.nii.gz", "Which body part is shown?"),
    (NIFTI / "anatomical.nii", "Which imaging modality is this?"),
]
API = "/gradio_api"


@dataclass
class Tally:
    """What visitors met: seconds from the scan's upload to the answer, by kind of visitor, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"page": [], "API": []})
    wrong: list[str] = field(default_factory=list)


class Visitor:
    """One browser or program, with a cookie and a session of its own."""

    def __init__(self, address: str):
        self._client = httpx.AsyncClient(base_url=address, timeout=600, trust_env=False)
        self._session = secrets.token_hex(8)

    async def __aenter__(self) -> "Visitor":
        await self._client.get("/")
        self._config = (await self._client.get("/config")).json()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

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

    async def _upload(self, file: Path) -> dict[str, Any]:
        with file.open("rb") as stream:
            reply = await self._client.post(f"{API}/upload", files={"files": (file.name, stream)})
        return {"path": reply.json()[0], "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    async def ask_on_page(self, file: Path, question: str) -> str:
        """Open the page, drop a scan and ask; the answer as the page shows it."""
        await self._call(next(d["id"] for d in self._config["dependencies"] if [t[1] for t in d["targets"]] == ["load"]), [])
        await self._call(self._function("drop", "upload"), [[await self._upload(file)]])
        chat, *_ = await self._call(self._function("question", "submit"), [question])
        return _last_text(chat)

    async def ask_api(self, file: Path, question: str) -> str:
        """Ask through the API."""
        function = next(d["id"] for d in self._config["dependencies"] if d.get("api_name") == "ask")
        (answer,) = await self._call(function, [[await self._upload(file)], question])
        return str(answer["answer"])

    async def leave(self) -> None:
        """What a closed tab sends."""
        await self._client.post(f"{API}/reset", json={"event_id": "", "session_hash": self._session, "fn_index": 0})


def _last_text(chat: list[dict[str, Any]]) -> str:
    content = chat[-1]["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return re.sub(r"\s+", " ", text).strip()


async def visit(address: str, kind: str, file: Path, question: str) -> tuple[str, float]:
    """One visit: the answer, and seconds."""
    async with Visitor(address) as visitor:
        started = time.monotonic()
        answer = await (visitor.ask_on_page if kind == "page" else visitor.ask_api)(file, question)
        seconds = time.monotonic() - started
        if kind == "page":
            await visitor.leave()
    return answer, seconds


async def keep_visiting(address: str, kind: str, start: int, right: dict[Any, str], tally: Tally, until: float) -> None:
    """Visits one after the other until the clock says so."""
    for number in itertools.count(start):
        if time.monotonic() > until:
            return
        file, question = VISITS[number % len(VISITS)]
        try:
            answer, seconds = await visit(address, kind, file, question)
        except (httpx.HTTPError, RuntimeError) as error:
            tally.wrong.append(f"{kind}: {type(error).__name__} {error}")
            continue
        tally.seconds[kind].append(seconds)
        if answer != right[kind, file]:
            tally.wrong.append(f"{kind}, {file.name}: {answer!r} instead of {right[kind, file]!r}")


def memory(process: psutil.Process) -> float:
    """Resident MiB of the Space and its children."""
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / (1 << 20)


async def measure(address: str, process: psutil.Process, options: argparse.Namespace) -> None:
    """Print what the visitors met."""
    right = {
        (kind, file): (await visit(address, kind, file, question))[0]
        for kind in ("page", "API")
        for file, question in VISITS
    }
    before, tally = memory(process), Tally()
    if options.sessions:
        numbers = iter(range(options.sessions))

        async def come_and_go() -> None:
            for number in numbers:
                file, question = VISITS[number % len(VISITS)]
                answer, seconds = await visit(address, "page", file, question)
                tally.seconds["page"].append(seconds)
                tally.wrong += [] if answer == right["page", file] else [f"{file.name}: {answer!r}"]
                if (number + 1) % 100 == 0:
                    print(f"{number + 1} sessions: {memory(process):.0f} MiB ({before:.0f} before)", flush=True)

        await asyncio.gather(*(come_and_go() for _ in range(options.clients)))
    else:
        until = time.monotonic() + options.seconds
        await asyncio.gather(
            *(keep_visiting(address, ("page", "API")[n % 2], n // 2, right, tally, until) for n in range(options.clients))
        )
    for kind, seconds in tally.seconds.items():
        if seconds:
            tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
            print(f"{kind}: {len(seconds)} visits, median {statistics.median(seconds):.1f} s, 90 % {tenths[8]:.1f} s")
    print(f"memory {before:.0f} MiB before, {memory(process):.0f} after; {len(tally.wrong)} wrong {tally.wrong[:3]}")


def main() -> None:
    """Start the Space, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--sessions", type=int, default=0)
    options = parser.parse_args()
    app = Path(__file__).parents[1] / "space" / "app.py"
    server = subprocess.Popen([sys.executable, "-u", str(app)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(line.split()[-1] for line in server.stdout if line.startswith("RadFM is at"))
        asyncio.run(measure(address.rstrip("/"), psutil.Process(server.pid), options))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
