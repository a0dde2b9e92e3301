"""Figures of papers in PubMed Central: PMC-OA, PMC-CaseReport, PMC-Inline, ROCOv2.

These sets overlap: every figure has the identity `pmc:PMC…_figure` where the source tells paper and figure.
"""

import json
from collections.abc import Iterator
from typing import Any

from ..folder import MEMBER, Folder, read_json
from ..labels import list_literal
from ..source import Draft, Rows, Source

# Characters of text before the first and after the last figure of an interleaved passage.
CONTEXT_BEFORE, ANSWER_AFTER, MAX_FIGURES = 1500, 1000, 3


def read_pmc_oa(folder: Folder) -> Rows:
    """`pmc_oa.jsonl` (image, caption) or `pmc_oa_beta.jsonl` (with pmcid, url_name), images packed or not.

    The caption of a compound figure stands with each of its subfigures: extra.compound_caption says so in the beta,
    where the subfigure's file name is not the figure's.
    """
    columns = {"image": "image", "caption": "caption", "pmcid_": "pmcid", "url_name_": "url_name"}
    for row in folder.table("pmc_oa_beta.jsonl", "pmc_oa.jsonl", **columns):
        if not (row["caption"] or "").strip():
            continue
        stem = row["image"].rsplit("/", 1)[-1].rsplit(".", 1)[0]
        figure = (row["url_name"] or stem).rsplit(".", 1)[0]
        yield Draft(
            key=stem,
            images=(folder.locate(row["image"]),),
            task="caption",
            answer=" ".join(row["caption"].split()),
            identities=(f"pmc:{stem}", f"pmc:{figure}"),
            extra={"compound_caption": True} if row["url_name"] and figure != stem else {},
        )


def read_case_report(folder: Folder) -> Rows:
    """Parquet or CSV by split: PMC_id, context, question, answer, inline, img_ref (a list literal); figures `PMC…_id.jpg`.

    "Q:" and "A:" in front of the columns are taken off. A context of more than five sentences is cut to its first two
    and last two: the published code keeps four of each at random lengths. Rows without figures are left out.
    """
    columns = {"paper": "PMC_id", "context": "context", "q": "question", "answer": "answer", "figures": "img_ref"}
    for split, patterns in (
        ("train", ("**/*train*.parquet", "**/*train*.csv")),
        ("test", ("**/*test*.parquet", "**/*test*.csv")),
    ):
        for path in folder.find_all(*patterns):
            for index, row in enumerate(folder.table(path.relative_to(folder.root).as_posix(), **columns)):
                names = [f"{row['paper']}_{figure}" for figure in list_literal(row["figures"])]
                answer = _without(row["answer"], "A:")
                if not names or not answer:
                    continue
                context = shorten(row["context"])
                question = _without(row["q"], "Q:")
                yield Draft(
                    key=f"{row['paper']}-{split}-{index}",
                    images=tuple(folder.locate(f"{name}.jpg") for name in names),
                    task="vqa",
                    question=f"{context} {question}".strip(),
                    answer=answer,
                    patient=row["paper"],
                    split=split,
                    identities=tuple(f"pmc:{name}" for name in names),
                )


def _without(text: str | None, mark: str) -> str:
    return (text or "").strip().removeprefix(mark).strip()


def shorten(context: str | None, keep: int = 4) -> str:
    """The first and the last sentences of a case's history where there are more than both together.

    >>> shorten("One. Two. Three.", keep=1)
    'One. Three.'
    """
    sentences = [sentence.strip() for sentence in " ".join((context or "").split()).split(". ") if sentence.strip()]
    if len(sentences) > 2 * keep:
        sentences = sentences[:keep] + sentences[-keep:]
    return ". ".join(sentences)


def read_inline(folder: Folder) -> Rows:
    """`PMC….json`, one a paper, in folders or in the Hub's zip archives: text, and img_ref with the offsets of each mention.

    One figure is mentioned several times: the first mention counts. A passage holds up to three figures that are
    mentioned close to each other; the user's part ends with the last figure's mark, and the answer is the text that
    follows. The published code reads another form, a list of sentences with their figures: it is taken too.
    """
    for paper, content in _papers(folder):
        text, mentions = _text_and_mentions(content)
        for number, passage in enumerate(_passages(mentions)):
            start = _sentence_start(text, max(passage[0][0] - CONTEXT_BEFORE, 0))
            parts: list[str | None] = []
            for offset, _ in passage:
                parts += [text[start:offset], None]
                start = offset
            answer = _whole_sentences(text[start : start + ANSWER_AFTER])
            if not answer.strip():
                continue
            names = [f"{paper}_{figure}" for _, figure in passage]
            yield Draft(
                key=paper,
                number=number,
                images=tuple(folder.locate(f"{name}.jpg") for name in names),
                task="interleaved",
                question=tuple(part for part in parts if part is None or part.strip()),
                answer=answer,
                patient=paper,
                identities=tuple(f"pmc:{name}" for name in names),
            )


def _papers(folder: Folder) -> Iterator[tuple[str, Any]]:
    for path in folder.find_all("**/PMC*.json"):
        yield path.stem, read_json(path)
    for path in folder.find_all("*.zip"):
        import zipfile

        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    yield name.rsplit("/", 1)[-1].removesuffix(".json"), json.loads(archive.read(name))


def _text_and_mentions(content: Any) -> tuple[str, list[tuple[int, str]]]:
    """The paper's text, and (offset, figure id) of each figure's first mention, in order."""
    if isinstance(content, list):
        text, mentions = "", []
        for sentence in content:
            mentions += [(len(text), figure) for figure in sentence["img_ref"]]
            text += sentence["text"].strip() + " "
    else:
        text = content["text"]
        mentions = [(int(reference["start"]), reference["id"]) for reference in content["img_ref"]]
    first: dict[str, int] = {}
    for offset, figure in sorted(mentions):
        first.setdefault(figure, offset)
    return text, sorted((offset, figure) for figure, offset in first.items())


def _passages(mentions: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    passage: list[tuple[int, str]] = []
    for mention in mentions:
        if passage and (len(passage) == MAX_FIGURES or mention[0] - passage[0][0] > CONTEXT_BEFORE):
            yield passage
            passage = []
        passage.append(mention)
    if passage:
        yield passage


def _sentence_start(text: str, offset: int) -> int:
    if offset == 0:
        return 0
    after = text.find(". ", offset)
    return offset if after < 0 else after + 2


def _whole_sentences(text: str) -> str:
    end = text.rfind(". ")
    return text[: end + 1] if end > 0 and len(text) >= ANSWER_AFTER else text


def read_roco_v2(folder: Folder) -> Rows:
    """The Hub's Parquet files (image, image_id, caption), or {split}_captions.csv (ID, Caption) beside {split}/ID.jpg."""
    for split, names in (("train", ("train",)), ("validation", ("validation", "valid")), ("test", ("test",))):
        for path in folder.find_all(*(f"**/{name}-*.parquet" for name in names)):
            reference = path.relative_to(folder.root).as_posix()
            import pyarrow.parquet

            rows = pyarrow.parquet.ParquetFile(path).iter_batches(columns=["image_id", "caption"])
            for index, row in enumerate(row for batch in rows for row in batch.to_pylist()):
                yield _roco_draft(row["image_id"], f"{reference}{MEMBER}image{MEMBER}{index}", row["caption"], split)
        for path in folder.find_all(*(f"{name}_captions.csv" for name in names)):
            for row in folder.table(path.name, image=("ID", "image_id"), caption="Caption"):
                yield _roco_draft(row["image"], folder.locate(f"{row['image']}.jpg"), row["caption"], split)


def _roco_draft(image: str, reference: str, caption: str, split: str) -> Draft:
    return Draft(
        key=image,
        images=(reference,),
        task="caption",
        answer=" ".join(caption.split()),
        split=split,
        identities=(f"roco2:{image}",),
    )


SOURCES = (
    Source(
        name="pmc-oa",
        title="PMC-OA: figures with captions",
        size="1.6M images",
        url="https://huggingface.co/datasets/axiong/pmc_oa_beta",
        licence="each paper's own CC licence",
        access="open",
        tasks=("caption",),
        layout="pmc_oa.jsonl or pmc_oa_beta.jsonl, and images.zip or its content",
        read=read_pmc_oa,
        public_keys=True,
        radiology=False,
        paper=True,
    ),
    Source(
        name="pmc-casereport",
        title="PMC-CaseReport: questions on case reports",
        size="317K train, 121K test questions (filtered)",
        url="https://huggingface.co/datasets/chaoyi-wu/PMC-CaseReport",
        licence="each paper's own CC licence",
        access="open",
        tasks=("vqa",),
        layout="Parquet or CSV files by split, and the figures PMC…_id.jpg",
        read=read_case_report,
        public_keys=True,
        radiology=False,
    ),
    Source(
        name="pmc-inline",
        title="PMC-Inline: text of papers with its figures in place",
        size="11M images; text 36 GB",
        url="https://huggingface.co/datasets/chaoyi-wu/PMC-Inline",
        licence="each paper's own CC licence",
        access="open",
        tasks=("interleaved",),
        layout="PMC-Inline_N.zip or PMC….json files, and the figures PMC…_id.jpg",
        read=read_inline,
        public_keys=True,
        radiology=False,
        paper=True,
    ),
    Source(
        name="rocov2",
        title="ROCOv2: radiological figures with captions",
        size="79,789 images",
        url="https://zenodo.org/records/10821435",
        licence="CC BY-NC-SA 4.0",
        access="nc",
        tasks=("caption",),
        layout="the Parquet files of the Hub, or {split}_captions.csv and {split}/",
        read=read_roco_v2,
        public_keys=True,
    ),
)
