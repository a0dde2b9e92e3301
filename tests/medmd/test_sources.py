"""Each source: from its portal's layout to records, and the label rules that the adapters' docstrings state."""

import json

import numpy as np
import pytest
from building import make_plan_of, make_portal, records_of, rows_of, text_of
from portals import PORTALS

from radfm.load_scan_radfm import load_scan
from radfm.medmd.folder import Folder
from radfm.medmd.groups import salted_hash
from radfm.medmd.questions import ask
from radfm.medmd.schema import DataError
from radfm.medmd.sources import all_sources, find_source

pytestmark = pytest.mark.slow  # reads a fixture of each portal


OF_PACKS = ("brain-tumor", "ct-planes", "mr-volumes", "ct-volumes", "dicom-series-ct", "dicom-series-mr")


def test_every_source_has_a_portal_here_but_packs_and_tables_of_own_scans():
    assert set(all_sources()) == {*PORTALS, *OF_PACKS, "demo", "csv", "jsonl"}


@pytest.mark.parametrize("name", sorted(PORTALS))
def test_a_download_becomes_valid_records_with_all_scans(name, tmp_path):
    records, skipped = records_of(tmp_path, name, make_portal(name, tmp_path))
    assert skipped == []
    assert records and all(record.source == name for record in records)
    assert {record.task for record in records} <= set(find_source(name).tasks)


@pytest.mark.parametrize("name", sorted(PORTALS))
def test_a_folder_without_the_table_is_refused_with_what_it_needs(name, tmp_path):
    with pytest.raises(DataError, match="holds"):
        make_plan_of(tmp_path, roots={name: tmp_path})


def test_an_unknown_source_is_refused_with_its_neighbours():
    with pytest.raises(DataError, match="vqa-rad"):
        find_source("vqarad")


@pytest.mark.parametrize("pack", OF_PACKS)
def test_packs_are_read_where_they_are_here(pack, packs, tmp_path):
    rows = rows_of(tmp_path, roots={pack: packs})
    assert rows and all(row["split_origin"] == "published" for row in rows)


def by(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def findings(row):
    return {finding["name"]: finding["value"] for finding in row["findings"]}


def first(rows, part):
    return next(row for row in rows if any(part in reference for reference in row["references"]))


def test_vqa_rad_keeps_its_test_and_takes_its_images_out_of_training(tmp_path):
    plan, dropped = make_plan_of(tmp_path, "vqa-rad")
    rows = [row for slice_ in plan.slices() for row in plan.rows(slice_)]
    assert {row["split"] for row in by(rows, references=["VQA_RAD Image Folder/synpic200.jpg"])} == {"test"}
    assert dropped == {"vqa-rad": {"scan is in test": 1}}
    assert text_of(by(rows, split="test")[0], "assistant") == "3"


def test_slake_leaves_its_chinese_half_out(tmp_path):
    rows = rows_of(tmp_path, "slake")
    assert len(rows) == 3
    assert all(text_of(row, "user").isascii() for row in rows)
    assert {row["modality"] for row in rows} == {"X-ray"}


def test_pmc_vqa_takes_the_misspelt_column_and_the_letter_off_the_choices(tmp_path):
    rows = rows_of(tmp_path, "pmc-vqa")
    row = first(rows, "PMC1_F2")
    assert row["choices"] == ["CT", "MRI", "US"]  # two choices had one text
    assert text_of(row, "assistant") == "MRI"
    assert first(rows, "PMC2_F1")["extra"] == {"clean": True}


def test_pmc_vqa_version_2_has_the_letter_in_the_column_answer(tmp_path):
    header = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split"
    for name, row in (("train_2.csv", "0,a.jpg,c,Which?,A: CT,B: MR,C: US,D: PET,B,train"), ("test_2.csv", "")):
        (tmp_path / name).write_text("\n".join(filter(None, (header, row))))
    rows = rows_of(tmp_path, roots={"pmc-vqa": tmp_path})
    assert [text_of(row, "assistant") for row in rows] == ["MR"]


def test_case_reports_lose_their_marks_and_rows_without_figures(tmp_path):
    rows = rows_of(tmp_path, "pmc-casereport")
    assert sorted(len(row["references"]) for row in rows) == [1, 2]
    assert {text_of(row, "assistant") for row in rows} == {"A stone."}
    assert all("Q:" not in text_of(row, "user") for row in rows)


def test_inline_papers_place_a_figure_at_its_first_mention_in_both_published_forms(tmp_path):
    rows = rows_of(tmp_path, "pmc-inline")
    offsets = first(rows, "PMC5_F1")
    assert [part["type"] for part in offsets["messages"][0]["content"]] == ["text", "image"]
    assert offsets["messages"][0]["content"][0]["text"].endswith("As ")
    assert text_of(offsets, "assistant").startswith("Fig. 1 shows, it is large.")
    assert text_of(first(rows, "PMC6_F2"), "assistant").startswith("Figure two. Behind it.")


def test_vindr_readers_have_to_agree_before_a_finding_is_asked_for(tmp_path):
    studies = {study.key: study for study in find_source("vindr-cxr").read(Folder(make_portal("vindr-cxr", tmp_path)))}
    assert studies["t1"].findings == {"cardiomegaly": 1, "nodule/mass": -1, "pneumonia": 0}
    assert (studies["t1"].normal, studies["t2"].normal) == (False, True)
    topic = {(draft.topic, draft.answer) for seed in range(50) for draft in ask(studies["t1"], seed) if draft.topic}
    expected = {("diagnosis: cardiomegaly", "yes"), ("diagnosis: pneumonia", "no"), ("diagnosis: normal", "no")}
    assert topic == expected


def test_vindr_spellings_are_corrected(tmp_path):
    names = {
        name for source in ("vindr-pcxr", "vindr-spinexr") for row in rows_of(tmp_path, source) for name in findings(row)
    }
    assert {"bronchopneumonia", "diaphragmatic hernia", "spondylolisthesis"} <= names
    assert not names & {"brocho-pneumonia", "diagphramatic hernia", "spondylolysthesis"}


def test_a_negative_radiograph_of_vindr_is_turned_right(tmp_path):
    records, _ = records_of(tmp_path, "vindr-cxr", make_portal("vindr-cxr", tmp_path))
    inverted = next(record for record in records if record.answer == "normal")
    from portals import pixels

    voxels = load_scan(inverted.images[0].bytes).voxels[0, :, :, 0]
    assert np.corrcoef(voxels.ravel(), pixels(1).ravel())[0, 1] < -0.99


def test_chexpert_blank_is_not_mentioned_and_0_is_absent(tmp_path):
    rows = rows_of(tmp_path, "chexpert")
    assert findings(first(rows, "patient00002/study2")) == {"edema": 1, "pneumonia": -1, "fracture": 0}
    assert findings(first(rows, "patient00001")) == {"fracture": 0}
    valid = first(rows, "patient64541")
    assert (valid["split"], findings(valid)) == ("validation", {"edema": 1, "pneumonia": 0, "fracture": 0})


def test_nih_is_never_asked_about_what_was_not_mentioned(tmp_path):
    rows = rows_of(tmp_path, "nih")
    for row in by(rows, answer_type="closed"):
        if text_of(row, "assistant") == "no":
            assert "normal" in text_of(row, "user") or "free of abnormality" in text_of(row, "user")
    boxed = first(rows, "00000003_000")
    assert boxed["split"] == "test"
    assert boxed["extra"]["boxes"] == [{"name": "infiltration", "box": [225.1, 547.0, 86.8, 79.2]}]


def test_rsna_without_opacity_is_normal_only_where_its_class_says_so(tmp_path):
    rows = rows_of(tmp_path, "rsna")
    answers = {row["references"][0][-5]: text_of(row, "assistant") for row in by(rows, answer_type="open")}
    assert answers == {"a": "lung opacity", "c": "normal"}


def test_a_patient_in_the_test_split_of_nih_leaves_rsna(tmp_path):
    plan, dropped = make_plan_of(tmp_path, "nih", "rsna")
    rows = [row for slice_ in plan.slices() for row in plan.rows(slice_)]
    assert dropped["rsna"]["patient is in test"] >= 1
    assert not [row for row in by(rows, source="rsna") if "a.dcm" in row["references"][0]]


def test_a_test_image_of_vqa_rad_leaves_medpix(tmp_path):
    plan, dropped = make_plan_of(tmp_path, "vqa-rad", "medpix")
    rows = [row for slice_ in plan.slices() for row in plan.rows(slice_)]
    assert dropped["medpix"] == {"scan is in test": 3}
    assert not [row for row in by(rows, source="medpix", split="train") if "synpic200" in row["references"][0]]


def test_covidx_knows_rsna_patients_by_both_spellings(tmp_path):
    rows = rows_of(tmp_path, "covidx")
    assert findings(first(rows, "a.png")) == {"COVID-19": 1}
    assert first(rows, "b.png")["extra"] == {"origin": "rsna"}
    assert first(rows, "b.png")["group"] == salted_hash("medmd", "nih", "rsna-id")


def test_padchest_takes_no_spanish_and_no_study_without_labels(tmp_path):
    rows = rows_of(tmp_path, "padchest")
    assert {row["references"][0] for row in rows} == {"0/a.png", "54/b.png"}
    assert "hallazg" not in json.dumps(rows) and "cifosis" not in json.dumps(rows)
    assert findings(first(rows, "b.png")) == {"kyphosis": 1}


def test_mimic_reports_lose_removed_words_and_addenda(tmp_path):
    rows = by(rows_of(tmp_path, "mimic-cxr"), task="report")
    texts = {text_of(row, "assistant"): row for row in rows}
    assert set(texts) == {
        "Findings: The lungs are clear. No effusion. Impression: No acute process.",
        "Effusion is unchanged.",
    }
    assert texts["Effusion is unchanged."]["extra"]["mentions_prior"] is True
    assert [len(row["references"]) for row in texts.values()] in ([2, 1], [1, 2])


def test_mimic_jpg_has_splits_labels_and_views_whether_packed_or_not(tmp_path):
    rows = rows_of(tmp_path, "mimic-cxr-jpg")
    assert {row["split"] for row in rows} == {"train", "validation"}
    study = by(rows, split="validation", task="report")[0]
    assert findings(study) == {"edema": -1, "pleural effusion": 1, "lung opacity": 0}
    assert study["plane"] == "frontal"


def test_openi_leaves_out_what_was_blacked_out(tmp_path):
    rows = rows_of(tmp_path, "openi")
    assert [text_of(row, "assistant") for row in rows] == ["Clear lungs."]
    assert len(rows[0]["references"]) == 2


def test_ct_rate_takes_one_reconstruction_and_no_volume_without_a_chest(tmp_path):
    rows = rows_of(tmp_path, "ct-rate")
    assert {row["references"][0].rsplit("/", 1)[1] for row in rows} == {"train_1_a_1.nii.gz", "valid_1_a_1.nii.gz"}
    assert all("_fixed/" in row["references"][0] for row in rows)


def test_questions_that_compare_scans_over_time_are_left_out_of_3d_rad(tmp_path):
    assert not [row for row in rows_of(tmp_path, "3d-rad") if "grow" in text_of(row, "user")]


def test_radchest_is_present_where_any_place_is(tmp_path):
    assert findings(first(rows_of(tmp_path, "radchest-ct"), "trn00001")) == {"lung nodule": 1, "calcification": 0}


def test_medpix_leaves_out_what_is_no_radiology(tmp_path):
    rows = rows_of(tmp_path, "medpix")
    assert not [row for row in rows if "synpic300" in row["references"][0]]
    assert {text_of(row, "assistant") for row in by(rows, task="modality")} == {"CT", "MRI"}
    assert {text_of(row, "assistant") for row in by(rows, task="plane")} == {"axial"}
    assert text_of(by(rows, task="diagnosis")[0], "user").startswith("Headache.")


def test_rad3d_reads_volumes_by_the_tail_of_the_cluster_path(tmp_path):
    rows = rows_of(tmp_path, "rad3d")
    assert {row["task"] for row in rows} == {"report", "rationale", "vqa", "modality"}
    assert text_of(by(rows, task="report")[0], "user").startswith("Age: 40 Cough. ")
    assert text_of(by(rows, task="rationale")[0], "assistant") == "Lung cancer. Spiculated margin."
    assert text_of(by(rows, task="report")[0], "assistant") == "Findings: A mass. Impression: Cancer."


def test_published_tables_are_known_by_their_columns(tmp_path):
    rows = rows_of(tmp_path, "radfm-csv")
    assert sorted(row["task"] for row in rows) == ["caption", "diagnosis", "report", "vqa", "vqa"]
    binary = by(rows, task="diagnosis")[0]
    assert (text_of(binary, "assistant"), findings(binary), binary["split"]) == ("no", {"edema": 0}, "test")


class TestPublishedFaultsAreNotRepeated:
    """Faults of the published data code, by their numbers in section 8 of the paper notes."""

    def test_16_a_no_question_names_something_else_than_the_truth(self, tmp_path):
        for row in by(rows_of(tmp_path, "mednist"), answer_type="closed"):
            truth = row[row["task"]]
            assert (truth in text_of(row, "user")) == (text_of(row, "assistant") == "yes"), text_of(row, "user")

    def test_17_a_broken_volume_is_named_and_not_replaced(self, tmp_path):
        root = make_portal("rad3d", tmp_path)
        (root / "npys_256" / "10002" / "1.npy").write_bytes(b"broken")
        records, skipped = records_of(tmp_path, "rad3d", root)
        assert [entry["reason"].split(":")[0] for entry in skipped] == ["npys_256/10002/1.npy"]
        assert all(record.images for record in records)

    def test_18_a_broken_image_is_named_and_not_replaced(self, tmp_path):
        root = make_portal("nih", tmp_path)
        (root / "images_001" / "images" / "00000001_000.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        _, skipped = records_of(tmp_path, "nih", root)
        assert skipped and all("00000001_000.png" in entry["reason"] for entry in skipped)

    def test_19_a_wrong_answer_does_not_change_the_candidates(self, tmp_path):
        from radfm.medmd.questions import VALUES

        before = dict(VALUES)
        rows_of(tmp_path, "mednist")
        assert before == VALUES and "CT" in VALUES["modality"]

    def test_23_a_case_of_many_images_keeps_a_mark_for_each(self, tmp_path):
        for row in rows_of(tmp_path, "medpix"):
            marks = [part for part in row["messages"][0]["content"] if part["type"] == "image"]
            assert len(marks) == len(row["references"])

    def test_24_spine_and_breast_are_not_asked_about_lungs(self, tmp_path):
        for source in ("vindr-spinexr", "vindr-mammo"):
            assert not [row for row in rows_of(tmp_path, source) if "lung" in text_of(row, "user")]

    def test_27_both_forms_of_papers_are_read(self, tmp_path):
        assert {row["references"][0] for row in rows_of(tmp_path, "pmc-inline")} == {
            "figures/PMC5_F1.jpg",
            "figures/PMC6_F2.jpg",
        }
