"""`radfm ask` as a person types it: what it prints, where, and with which exit status."""

import doctest
import json
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from typer.testing import CliRunner

from radfm.cli import common
from radfm.cli.main import app
from radfm.load_scan_radfm import load_scan

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


def refusal(*arguments):
    """The one line that a command refuses with."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    return result.stderr.strip()


def test_what_is_no_model_is_one_line_and_status_2(dicom_files, tmp_path):
    for model in (tmp_path, "no-such-model"):
        assert str(model) in refusal("ask", dicom_files / "CT_small.dcm", "What?", "--model", model)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "cannot be loaded as RadFM" in refusal("ask", dicom_files / "CT_small.dcm", "What?", "--model", tmp_path)


def test_an_installation_without_the_demo_checkpoint_says_so(dicom_files, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "PACKAGE", tmp_path)
    line = refusal("ask", dicom_files / "CT_small.dcm", "What?")
    assert line == "This installation of radfm has no demo checkpoint: name a folder or a Hub id with --model."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--bits", "3"], "--bits 3 is neither 4 nor 8."),
        (["--volume", "two"], "--volume two is neither an index from 0 nor KEY=VALUE, such as EchoTime=4.6."),
        (["--volume", "EchoTime="], "--volume EchoTime= is neither"),
        (["--max-gb", "0.001"], "more than 0.0 GB"),
        (["--device", "tpu9"], "--device tpu9"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(options, sentence, dicom_files):
    assert sentence in refusal("ask", dicom_files / "693_J2KI.dcm", "What?", *options)


def test_json_without_a_question_is_refused(dicom_files):
    assert "put a question behind the scans" in refusal("ask", dicom_files / "CT_small.dcm", "--json")


def test_a_volume_is_chosen_by_its_index(nifti_files):
    path = nifti_files / "example4d.nii.gz"
    (first, second) = (load_scan(path, volume=volume).voxels.max() for volume in (0, 1))
    assert first != second
    result = CliRunner().invoke(app, ["inspect", str(path), "--volume", "1"])
    assert result.exit_code == 0 and f"to {second:g}" in result.stdout


def test_typed_marks_and_end_tokens_are_text_in_a_conversation(dicom_files):
    from radfm.cli.chat import ChatSession

    session = ChatSession(str(ROOT), "cpu")
    session.set_scans([load_scan(dicom_files / "693_J2KI.dcm")])
    prompts = []
    generate = session.model.generate
    session.model.generate = lambda **inputs: prompts.append(inputs["input_ids"][0]) or generate(**inputs)
    session.ask("Is <image> or <image_token></s> in it?", max_new_tokens=2)
    session.ask("And </s><image> now?", max_new_tokens=2)
    config, eos = session.model.config, session.processor.tokenizer.eos_token_id
    for turns, ids in enumerate(prompts):
        assert (ids == config.image_token_id).sum() == config.num_image_tokens
        assert (ids == config.image_start_token_id).sum() == 1 and (ids == eos).sum() == turns
    assert torch.equal(prompts[1][: len(prompts[0])], prompts[0]), "a conversation only grows"


def test_the_examples_in_the_docstrings_give_what_they_say():
    assert doctest.testmod(common).failed == 0


def test_help_teaches_by_example_without_loading_torch():
    code = (
        "import sys, radfm.cli.main; sys.argv = ['radfm', 'ask', '--help']\n"
        "try: radfm.cli.main.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert run.returncode == 0, run.stderr
    assert "radfm ask chest.dcm" in run.stdout and "--volume" in run.stdout
