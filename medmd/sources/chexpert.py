"""CheXpert: chest radiographs with 14 labels. Blank is "not mentioned", 0 "said to be absent", -1 "uncertain".

A study is called normal where No Finding is 1. A study without a 1 anywhere is asked about what it says to be absent,
not for a diagnosis.
"""

from ..folder import Folder
from ..labels import four_states
from ..source import Rows, Source, Study

NO_FINDING = "no finding"
FINDINGS = {
    name: name.lower()
    for name in (
        *(
            "Enlarged Cardiomediastinum",
            "Cardiomegaly",
            "Lung Opacity",
            "Lung Lesion",
            "Edema",
            "Consolidation",
            "Pneumonia",
        ),
        *("Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
    )
}
# "pleural other" names no thing that can be asked for; a device is no disease, and a study with nothing else is
# normal by the labeller.
NOT_ASKED = ("pleural other",)


def read(folder: Folder) -> Rows:
    """train.csv and valid.csv, and `{train,valid}/patientNNNNN/studyN/viewN_{frontal,lateral}.jpg`.

    Paths in the tables start with the folder name of one variant (CheXpert-v1.0 or -small), whichever was downloaded:
    they are matched from `train/` or `valid/` on.
    """
    columns = {"path": "Path", "side": "Frontal/Lateral"}
    for split, name in (("train", "train"), ("validation", "valid")):
        tables = folder.find_all(f"{name}.csv", f"*/{name}.csv")
        for table in tables[:1]:
            root = table.parent.relative_to(folder.root).as_posix()
            for row in folder.table(table.relative_to(folder.root).as_posix().removesuffix(".gz"), **columns):
                tail = row["path"][row["path"].index(f"{name}/") :]
                findings = four_states(row, {**FINDINGS, "No Finding": NO_FINDING})
                normal = True if findings.pop(NO_FINDING, None) == 1 else None
                for unasked in NOT_ASKED:
                    findings.pop(unasked, None)
                if any(value == 1 for value in findings.values()):
                    normal = False if normal is None else normal
                patient, study = tail.split("/")[1:3]
                yield Study(
                    key=tail,
                    images=(tail if root == "." else f"{root}/{tail}",),
                    findings=findings,
                    normal=normal,
                    modality="X-ray",
                    body_part="chest",
                    plane=row["side"].lower() or None,
                    patient=patient,
                    study=f"{patient}/{study}",
                    split=split,
                )


SOURCES = (
    Source(
        name="chexpert",
        title="CheXpert: chest radiographs with 14 labels",
        size="223,648 images of 64,740 patients",
        url="https://stanfordmlgroup.github.io/competitions/chexpert/",
        licence="Stanford University Dataset Research Use Agreement",
        access="form",
        tasks=("diagnosis",),
        layout="train.csv, valid.csv and the folders train/, valid/ (CheXpert-v1.0 or CheXpert-v1.0-small)",
        read=read,
    ),
)
