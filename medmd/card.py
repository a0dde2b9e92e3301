"""The dataset card: what the Hub shows, with the configs that its viewer and `load_dataset` read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .schema import CONFIGS, SPLITS
from .source import Source

ACCESS_WORDS = {
    "open": "open",
    "nc": "no commercial use",
    "form": "terms to sign at the portal; not to be passed on",
    "credentialed": "PhysioNet credentialed access; not to be passed on, nor records made of it",
}
STRICTEST = ("open", "nc", "form", "credentialed")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
TABLES = (
    ("source", "Source"),
    ("task", "Task"),
    ("modality", "Modality"),
    ("body_part", "Body part"),
    ("split", "Split"),
    ("config", "2D or 3D"),
    ("answer_type", "Kind of answer"),
    ("words per answer", "Words per answer, from"),
)
MAX_ROWS = 20


def card(manifest: Mapping[str, Any], report: Mapping[str, Any], sources: Sequence[Source], plots: Sequence[str]) -> str:
    """The text of `README.md`."""
    statistics = report["statistics"]
    total = statistics.get("total", {})
    access = max((source.access for source in sources), key=STRICTEST.index)
    lines = [
        *_front_matter(manifest, sources, access),
        "# A radiology dataset built with `radfm data`",
        "",
        f"{total.get('records', 0):,} records about {total.get('scans', 0):,} scans "
        f"({total.get('bytes of scans', 0) / 1e9:.2f} GB), made of {', '.join(source.name for source in sources)}. "
        "For research, not for diagnosis.",
        "",
        f"**Who may see it:** {ACCESS_WORDS[access]} (the strictest of its sources).",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("path/to/this/folder", "{_configs(manifest)[0]}", split="train", streaming=True)',
        "```",
        "",
        "A record is one exchange about one or several scans: `messages` and `images` as chat templates take them, "
        "`findings` with 1 present, 0 absent, -1 uncertain (not mentioned is not listed). `group` is a salted hash of the "
        "patient; no group is in two splits. Rows stand in a seeded random order: stream them with "
        "`shuffle(seed, buffer_size=1)`, which resumes exactly.",
        "",
        "## Sources",
        "",
        *_table(
            ("Source", "What", "Licence", "Access", "Portal"),
            ((s.name, s.title, s.licence, ACCESS_WORDS[s.access], s.url) for s in sources),
        ),
        "",
        "## Counts",
        "",
    ]
    for name, title in TABLES:
        counts = statistics.get(name, {})
        rows = list(counts.items())
        if name == "words per answer":
            rows.sort(key=lambda row: int(row[0]))
        shown = [(value, f"{count:,}") for value, count in rows[:MAX_ROWS]]
        if len(rows) > MAX_ROWS:
            shown.append((f"{len(rows) - MAX_ROWS} more", f"{sum(count for _, count in rows[MAX_ROWS:]):,}"))
        lines += [*_table((title, "Records"), shown), ""]
    lines += [f"![{plot}]({plot})" for plot in plots]
    lines += ["", "## What was left out", "", *_left_out(report), "", "## Identity", ""]
    lines += [
        f"Logical hash `{manifest['logical_hash']}`: the same for the same content, whatever the versions of the libraries. "
        "`manifest.json` has the SHA-256 of each file.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(manifest: Mapping[str, Any], sources: Sequence[Source], access: str) -> list[str]:
    licences = {source.licence for source in sources}
    licence = HUB_LICENCES.get(licences.pop(), "other") if len(licences) == 1 else "other"
    records = manifest["records"]
    size = next((name for limit, name in SIZES if records < limit), "n>10M")
    lines = [
        "---",
        f"license: {licence}",
        "language: [en]",
        "task_categories: [visual-question-answering, image-text-to-text]",
    ]
    lines += ["tags: [medical, radiology, radfm]", f"size_categories: ['{size}']"]
    if access in ("form", "credentialed"):
        lines += [
            "extra_gated_heading: The terms of the sources forbid to pass this dataset on; keep the repository private."
        ]
    lines.append("configs:")
    for config in _configs(manifest):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in SPLITS:
            if any(name.startswith(f"{config}/{split}-") for name in manifest["files"]):
                lines += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    return [*lines, "---", ""]


# The Hub's names of licences (its documentation, "Licenses").
HUB_LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-SA": "cc-by-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC0": "cc0-1.0",
    "Apache-2.0": "apache-2.0",
}


def _configs(manifest: Mapping[str, Any]) -> list[str]:
    return [config for config in CONFIGS if any(name.startswith(f"{config}/") for name in manifest["files"])]


def _left_out(report: Mapping[str, Any]) -> list[str]:
    unreadable = report["unreadable"]["count"]
    rows = [
        (source, reason, f"{count:,}") for source, reasons in report["dropped"].items() for reason, count in reasons.items()
    ]
    if unreadable:
        rows.append(("all", "scan cannot be read (`report.json` names each)", f"{unreadable:,}"))
    return _table(("Source", "Why", "Records"), rows) if rows else ["Nothing."]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]
