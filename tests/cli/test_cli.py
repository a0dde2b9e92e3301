"""`radfm ask` as a person types it: what it prints, where, and with which exit status."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = [
    pytest.mark.slow,  # an interpreter for each command, which imports torch and transformers: a minute
    pytest.mark.skipif(not (ROOT / "model.safetensors").exists(), reason="needs the demo checkpoint in the root"),
]


def radfm(*words, answers=""):
    command = [sys.executable, "-m", "radfm.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, input=answers, cwd=ROOT.parent)


def test_an_answer_on_standard_output_and_nothing_else(dicom_files):
    run = radfm("ask", dicom_files / "693_J2KI.dcm", "Which imaging modality is this?")
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "CT", "")


def test_json_is_one_object(dicom_files):
    scan = dicom_files / "examples_overlay.dcm"
    run = radfm("ask", scan, "Which imaging modality is this?", "--json")
    answer = json.loads(run.stdout)
    assert answer["answer"] == "MRI" and answer["question"] == "Which imaging modality is this?"
    assert answer["scans"] == [
        {"path": str(scan), "modality": "MR", "shape": [1, 300, 484, 1], "spacing": answer["scans"][0]["spacing"]}
    ]
    assert set(answer) == {"model", "question", "answer", "scans", "seconds"}


def test_several_scans_in_one_question(dicom_files, nifti_files):
    run = radfm("ask", dicom_files / "693_J2KI.dcm", nifti_files / "anatomical.nii", "Is this scan 2D or 3D?", "--json")
    assert run.returncode == 0 and len(json.loads(run.stdout)["scans"]) == 2


def test_a_conversation_goes_on_until_an_empty_line(dicom_files):
    questions = "Which imaging modality is this?\nIs this scan 2D or 3D?\n\n"
    run = radfm("ask", dicom_files / "693_J2KI.dcm", answers=questions)
    assert run.returncode == 0
    assert [line.removeprefix("> ").strip() for line in run.stdout.splitlines()][:2] == ["CT", "2D"]


def test_the_plan_names_what_goes_in_and_what_is_lost(nifti_files):
    run = radfm("ask", nifti_files / "example4d.nii.gz", "--plan", "--device", "cpu")
    assert run.returncode == 0
    assert "128×96×24 voxels of 2×2×2.2 mm" in run.stdout
    assert "become one" in run.stdout and "32 image tokens" in run.stdout and "memory on cpu" in run.stdout
    assert "Only volume 0 of 2" in run.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ask", "absent.dcm", "What is this?"], "absent.dcm: there is no such file or folder."),
        (["ask", str(ROOT / "pyproject.toml"), "What?"], "pyproject.toml: is no scan that can be read"),
        (["ask", str(ROOT / "README.md")], "README.md: is no scan that can be read"),
    ],
)
def test_what_is_no_scan_is_one_line_and_status_2(words, sentence):
    run = radfm(*words)
    assert run.returncode == 2 and run.stdout == ""
    assert sentence in run.stderr and run.stderr.count("\n") == 1


def test_what_is_no_model_is_one_line_and_status_2(dicom_files, tmp_path):
    for model in (str(tmp_path), "no-such-model"):
        run = radfm("ask", dicom_files / "CT_small.dcm", "What?", "--model", model)
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and model in run.stderr


def test_help_teaches_by_example_without_loading_torch():
    code = (
        "import sys, radfm.cli.main; sys.argv = ['radfm', 'ask', '--help']\n"
        "try: radfm.cli.main.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert run.returncode == 0, run.stderr
    assert "radfm ask chest.dcm" in run.stdout
