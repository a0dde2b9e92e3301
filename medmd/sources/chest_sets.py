"""Chest radiograph sets of their own: NLM's tuberculosis sets, Object-CXR, PadChest, OpenI, ReXGradient-160K."""

from typing import Any
from xml.etree import ElementTree

from ..folder import MEMBER, Folder, read_json
from ..labels import list_literal, mentioned
from ..reports import compose, mentions_prior, without_removed_words
from ..source import Draft, Rows, Source, Study

CHEST: dict[str, Any] = {"modality": "X-ray", "body_part": "chest"}


def read_nlm_tb(folder: Folder) -> Rows:
    """MontgomerySet/CXR_png and ChinaSet_AllFiles/CXR_png; a name that ends in _1 has tuberculosis, one in _0 is normal."""
    for path in folder.find_all("**/CXR_png/*_[01].png"):
        positive = path.stem.endswith("_1")
        reference = path.relative_to(folder.root).as_posix()
        yield Study(
            key=path.stem,
            images=(reference,),
            findings={"tuberculosis": int(positive)},
            normal=not positive,
            plane="frontal",
            patient=path.stem,
            **CHEST,
        )


def read_object_cxr(folder: Folder) -> Rows:
    """train.csv, dev.csv and, where it is there, test.csv: image_name, annotation; images in train/, dev/, test/.

    An empty annotation means that there is no foreign object; `;` separates objects. The grammar of one object (0
    box, 1 ellipse, 2 polygon in front of the numbers) is not confirmed, so it stays text in extra. Nothing is said of
    disease.
    """
    for split, names in (("train", ("train.csv",)), ("validation", ("dev.csv",)), ("test", ("test.csv",))):
        if not folder.find_all(*names):
            continue
        for row in folder.table(*names, image="image_name", annotation="annotation"):
            objects = [part for part in (row["annotation"] or "").split(";") if part.strip()]
            yield Study(
                key=row["image"],
                images=(folder.locate(f"{names[0].removesuffix('.csv')}/{row['image']}"),),
                findings={"foreign object": int(bool(objects))},
                plane="frontal",
                split=split,
                extra={"objects": objects} if objects else {},
                **CHEST,
            )


NO_LABELS = ("", "exclude", "unchanged", "suboptimal study")
# Broken at the portal: files that torchxrayvision's reader lists as unreadable are simply skipped and named by the build.
PADCHEST_VIEWS = {"PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral"}


def read_padchest(folder: Folder) -> Rows:
    """PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv, 16-bit PNG in folders 0 … 54 (ImageDir).

    Labels are a list literal with stray blanks and empty names. "exclude", "unchanged" and "suboptimal study" are no
    findings: where they are all there is, nothing is asked. Labels of most reports come from a network (MethodLabel):
    extra.labelled_by says so. The report is Spanish, stemmed and cut ("sin hallazg patolog"): no text that a model
    should learn to write, so it enters no record. Lists are of what was mentioned. The portal has no split.
    """
    columns = {
        "image": "ImageID",
        "folder": "ImageDir",
        "study": "StudyID",
        "patient": "PatientID",
        "view": "Projection",
        "method": "MethodLabel",
        "labels": "Labels",
    }
    for row in folder.table("PADCHEST_chest_x_ray_images_labels*.csv", **columns):
        labels = sorted({str(label).strip().lower() for label in list_literal(row["labels"])})
        if "exclude" in labels or not row["image"]:
            continue
        findings = [label for label in labels if label not in (*NO_LABELS, "normal")]
        normal = True if "normal" in labels and not findings else False if findings else None
        if normal is None:
            continue
        directory = row["folder"].removesuffix(".0")
        reference = f"{directory}/{row['image']}"
        yield Study(
            key=row["image"],
            images=(reference if folder.has(reference) else folder.locate(f"images/{reference}"),),
            findings=mentioned(findings),
            normal=normal,
            plane=PADCHEST_VIEWS.get(row["view"]),
            patient=row["patient"],
            study=row["study"],
            extra={"labelled_by": "physician" if row["method"] == "Physician" else "network"},
            **CHEST,
        )


def read_openi(folder: Folder) -> Rows:
    """ecgen-radiology/N.xml with NLMCXR_png/, or the Kaggle copy: indiana_{reports,projections}.csv, images/.

    Sentences with XXXX, where a name or number was removed, are left out; a report of which nothing remains, or
    without an image, is left out. All images of a report are one record. The licence forbids derivatives: the records
    may not be passed on.
    """
    if folder.find_all("indiana_reports.csv"):
        yield from _openi_from_kaggle(folder)
        return
    for path in sorted(folder.root.glob("**/ecgen-radiology/*.xml"), key=lambda path: int(path.stem)):
        root = ElementTree.parse(path).getroot()
        texts = {node.get("Label", "").lower(): node.text or "" for node in root.iter("AbstractText")}
        names = [f"{node.get('id')}.png" for node in root.iter("parentImage")]
        terms = sorted({(node.text or "").strip() for node in root.iter("automatic")} - {""})
        yield from _openi_drafts(path.stem, tuple(folder.locate(name) for name in names), texts, terms)


def _openi_from_kaggle(folder: Folder) -> Rows:
    images: dict[str, list[str]] = {}
    for row in folder.table("indiana_projections.csv", uid="uid", name="filename"):
        images.setdefault(str(row["uid"]), []).append(row["name"])
    parts = ("indication", "comparison", "findings", "impression")
    for row in folder.table("indiana_reports.csv", uid="uid", problems="Problems", **{name: name for name in parts}):
        names = images.get(str(row["uid"]), [])
        terms = sorted(term for term in (row["problems"] or "").split(";") if term)
        yield from _openi_drafts(
            str(row["uid"]), tuple(folder.locate(n) for n in names), {p: row[p] or "" for p in parts}, terms
        )


def _openi_drafts(uid: str, images: tuple[str, ...], texts: dict[str, str], terms: list[str]) -> Rows:
    cleaned = {name: without_removed_words(text) for name, text in texts.items()}
    answer, wording = compose(cleaned.get("findings", ""), cleaned.get("impression", ""))
    if answer and images:
        extra = {"mentions_prior": mentions_prior(answer), "mesh_terms": terms}
        yield Draft(f"CXR{uid}", images, "report", answer, wording=wording, patient=uid, study=uid, extra=extra, **CHEST)


def read_rexgradient(folder: Folder) -> Rows:
    """metadata/{train,valid,test}_metadata.json: ImagePath (list), Indication, Findings, Impression, PatientID.

    ReXrank's JSON, with image_path and a context, is taken as well. The names of the files are not confirmed.
    """
    for split, patterns in (("train", "train"), ("validation", "val"), ("test", "test")):
        for path in folder.find_all(f"metadata/{patterns}*.json", f"{patterns}*.json", f"**/*{patterns}*.json")[:1]:
            content = read_json(path)
            rows = content.items() if isinstance(content, dict) else ((str(i), row) for i, row in enumerate(content))
            for key, raw in rows:
                row = {name.lower().replace("_", ""): value for name, value in {**raw, **raw.get("context", {})}.items()}
                images = row["imagepath"] if isinstance(row["imagepath"], list) else [row["imagepath"]]
                findings, impression = (without_removed_words(row.get(name)) for name in ("findings", "impression"))
                answer, wording = compose(findings, impression)
                if answer:
                    yield Draft(
                        key=str(row.get("studyinstanceuid", key)),
                        images=tuple(_existing(folder, image) for image in images),
                        task="report",
                        answer=answer,
                        wording=wording,
                        patient=str(row["patientid"]) if row.get("patientid") else None,
                        study=str(row.get("studyinstanceuid", key)),
                        split=split,
                        extra={"mentions_prior": mentions_prior(answer), "indication": row.get("indication") or ""},
                        **CHEST,
                    )


def _existing(folder: Folder, image: str) -> str:
    """A path as the metadata have it (`../deid_png/…`), found below the folder."""
    tail = image.replace("\\", "/").lstrip("./")
    return tail if folder.has(tail) else folder.locate(tail) if MEMBER not in tail else tail


COMMON: dict[str, Any] = {"dimensions": "2D"}
SOURCES = (
    Source(
        name="nlm-tb",
        title="NLM tuberculosis sets: Montgomery County and Shenzhen",
        size="138 and 662 images",
        url="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html",
        licence="open (NLM asks for citation)",
        access="open",
        tasks=("diagnosis",),
        layout="MontgomerySet/CXR_png/ and ChinaSet_AllFiles/CXR_png/",
        read=read_nlm_tb,
        **COMMON,
    ),
    Source(
        name="object-cxr",
        title="Object-CXR: foreign objects on chest radiographs",
        size="10,000 images",
        url="https://web.archive.org/web/2020/https://jfhealthcare.github.io/object-CXR/",
        licence="CC BY-NC 4.0",
        access="nc",
        tasks=("diagnosis",),
        layout="train.csv, dev.csv and the folders train/, dev/ (or their zip archives)",
        read=read_object_cxr,
        **COMMON,
    ),
    Source(
        name="padchest",
        title="PadChest: chest radiographs with 174 labels",
        size="160,861 images; 1 TB",
        url="https://bimcv.cipf.es/bimcv-projects/padchest/",
        licence="BIMCV form",
        access="form",
        tasks=("diagnosis",),
        layout="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the folders 0/ … 54/",
        read=read_padchest,
        **COMMON,
    ),
    Source(
        name="openi",
        title="Open-i: Indiana University chest radiographs with reports",
        size="7,470 images, 3,955 reports",
        url="https://openi.nlm.nih.gov/faq",
        licence="CC BY-NC-ND 4.0",
        access="form",
        tasks=("report",),
        layout="ecgen-radiology/ and NLMCXR_png/, or indiana_reports.csv, indiana_projections.csv and images/",
        read=read_openi,
        **COMMON,
    ),
    Source(
        name="rexgradient",
        title="ReXGradient-160K: chest radiographs with reports",
        size="273,004 images of 160,000 studies",
        url="https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K",
        licence="gated, non-commercial",
        access="form",
        tasks=("report",),
        layout="metadata/*.json and deid_png/",
        read=read_rexgradient,
        **COMMON,
    ),
)
