"""Croissant metadata (MLCommons, version 1.1): which files there are and what their scalar columns mean.

Columns of lists (scans, messages) are left out: Croissant's reader cannot read records with lists of images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .schema import CONFIGS
from .source import Source

# The context that the format prescribes (docs.mlcommons.org/croissant, "JSON-LD Context").
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        term: f"cr:{term}"
        for term in (
            *(
                "citeAs",
                "column",
                "equivalentProperty",
                "extract",
                "field",
                "fileObject",
                "fileProperty",
                "fileSet",
                "format",
            ),
            *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references"),
            *("regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
}
SCALARS = {
    "id": "Unique id of the record.",
    "task": "What is asked for.",
    "answer_type": "open, closed (yes or no) or choice.",
    "modality": "Imaging modality, null where unknown.",
    "body_part": "Body part, null where unknown.",
    "plane": "Plane or projection, null where unknown.",
    "source": "The source.",
    "licence": "Licence of scans and texts.",
    "access": "Who may see the record: open, nc, form, credentialed.",
    "split": "train, validation or test.",
    "split_origin": "published (by the source) or ours (by hash of the group).",
    "group": "Salted hash of the patient.",
}


def croissant(manifest: Mapping[str, Any], sources: Sequence[Source]) -> dict[str, Any]:
    """The content of `croissant.json`."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "encodingFormat": "application/x-parquet",
            "contentSize": f"{file['bytes']} B",
            "sha256": file["sha256"],
        }
        for name, file in sorted(manifest["files"].items())
    ]
    record_sets = [
        {
            "@type": "cr:RecordSet",
            "@id": f"records/{name}",
            "name": f"records/{name}",
            "description": f"The scalar columns of {name}.",
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": f"records/{name}/{column}",
                    "name": column,
                    "description": description,
                    "dataType": "sc:Text",
                    "source": {"fileObject": {"@id": name}, "extract": {"column": column}},
                }
                for column, description in SCALARS.items()
            ],
        }
        for config in CONFIGS
        for name in sorted(manifest["files"])
        if name.startswith(f"{config}/")
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "radfm-medmd",
        "description": "Radiology scans with questions and answers from "
        + ", ".join(source.name for source in sources)
        + ".",
        "license": sorted({source.licence for source in sources}),
        "url": sorted({source.url for source in sources})[0],
        "version": "1.0.0",
        "datePublished": "2026-01-01",
        "citeAs": "arXiv:2308.02463",
        "distribution": files,
        "recordSet": record_sets,
    }
