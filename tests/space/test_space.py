"""The Space without a browser: reading apart, what is told and drawn, the overlay's geometry, the API, what is left."""

import ast
import asyncio
import base64
import json
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import ROOT

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.scan_radfm import Scan, to_radiological_view

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[space]'")
pytestmark = pytest.mark.skipif(not (ROOT / "model.safetensors").exists(), reason="needs the demo checkpoint in the root")

import app  # noqa: E402
import overlay  # noqa: E402
import reader_process  # noqa: E402
import viewer  # noqa: E402

READER = reader_process.Reader(str(ROOT.parent), "radfm.load_scan_radfm")


@pytest.fixture(scope="module")
def served():
    """The Space as it runs, with uploads that go after ten seconds: its address."""
    before = app.UPLOAD_SECONDS, app.SWEEP_SECONDS
    app.UPLOAD_SECONDS, app.SWEEP_SECONDS = 10, 1
    blocks, address = app.serve(wait=False)
    yield address
    blocks.close()
    app.UPLOAD_SECONDS, app.SWEEP_SECONDS = before


@pytest.fixture
def ask(served):
    from gradio_client import Client, handle_file

    client = Client(served, verbose=False)
    return lambda files, question: client.predict([handle_file(str(file)) for file in files], question, api_name="/ask")


def left_over() -> list[Path]:
    return [path for path in app.WORK.rglob("*") if path.is_file()]


def a_module(folder: Path, body: str) -> reader_process.Reader:
    """A reader whose `load_scan` does something bad."""
    code = f"import os, time\nclass ScanError(ValueError): pass\ndef load_scan(source, **choice):\n    {body}\n"
    (folder / "bad_reader.py").write_text(code)
    return reader_process.Reader(str(folder), "bad_reader")


def test_a_series_is_read_apart(series_zips, tmp_path):
    scans, refused = reader_process.read([series_zips / "dicom_series_ct.zip"], tmp_path / "out", READER)
    here = load_scan(series_zips / "dicom_series_ct.zip")
    apart = scans[0].load(Scan)
    assert refused == [] and scans[0].name == "dicom_series_ct.zip"
    assert np.array_equal(apart.voxels, here.voxels) and np.allclose(apart.affine, here.affine)
    assert (apart.modality, apart.spacing, list(apart.windows)) == (here.modality, here.spacing, list(here.windows))


def test_dropped_files_are_grouped_by_series(dicom_files, nifti_files, tmp_path, series_zips):
    with zipfile.ZipFile(series_zips / "dicom_series_ct.zip") as archive:
        archive.extractall(tmp_path / "ct")
    files = sorted(path for path in (tmp_path / "ct").rglob("*") if path.is_file())
    drop = tmp_path / "drop"
    drop.mkdir()
    for file in [*files, dicom_files / "693_J2KI.dcm", nifti_files / "anatomical.nii"]:
        (drop / file.name).write_bytes(file.read_bytes())
    scans, refused = reader_process.read(sorted(drop.iterdir()), tmp_path / "out", READER)
    assert refused == []
    assert sorted(scan.about["shape"][-1] for scan in scans) == [1, 20, 25]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("os.abort()", "is damaged in a way that its decoder did not survive"),
        ("os.kill(os.getpid(), 9)", "too much time or memory"),
        ("time.sleep(60)", "took longer than 2 seconds"),
        ("return bytearray(1 << 40)", "needs more memory"),
        ("raise ScanError(f'{source}: is no scan.')", "x.dcm: is no scan."),
    ],
)
def test_whatever_a_decoder_does_there_is_a_sentence(body, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_process, "SECONDS", 2)
    (tmp_path / "x.dcm").write_bytes(b"x")
    scans, refused = reader_process.read([tmp_path / "x.dcm"], tmp_path / "out", a_module(tmp_path, body))
    assert scans == [] and len(refused) == 1
    assert refused[0].startswith("x.dcm: ") and sentence in refused[0] and str(tmp_path) not in refused[0]


def a_volume() -> Scan:
    """A volume whose axes are neither in order nor all in direction, and oblique."""
    voxels = np.random.default_rng(0).normal(size=(1, 30, 20, 24)).astype(np.float32)
    turn = nibabel.eulerangles.euler2mat(0.1, -0.05, 0.08)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -2.0], [1.5, 0, 0], [0, -1.0, 0]])
    affine[:3, 3] = 10, -20, 30
    return Scan(voxels, affine, (1.5, 1.0, 2.0), "MR")


def flipped(scan: Scan) -> Scan:
    """The same anatomy, stored the other way round along the first and last axis."""
    affine = scan.affine.copy()
    for axis in (0, 2):
        affine[:3, 3] += affine[:3, axis] * (scan.voxels.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    return replace(scan, voxels=scan.voxels[:, ::-1, :, ::-1], affine=affine)


def test_a_flipped_copy_shows_the_same_anatomy_at_the_same_letters(tmp_path):
    shown = []
    for number, scan in enumerate((a_volume(), flipped(a_volume()))):
        viewer.write_nifti(scan, tmp_path / f"{number}.nii.gz")
        shown.append(
            (
                nibabel.load(tmp_path / f"{number}.nii.gz"),
                viewer.letters(to_radiological_view(scan)),
                viewer.plane(to_radiological_view(scan)),
            )
        )
    (image, *words), (other, *other_words) = shown
    assert words == other_words
    canonical, other_canonical = nibabel.as_closest_canonical(image), nibabel.as_closest_canonical(other)
    assert np.allclose(canonical.affine, other_canonical.affine, atol=1e-4)
    assert np.array_equal(canonical.get_fdata(), other_canonical.get_fdata())


@pytest.mark.parametrize(
    "settings", [{"keep_aspect": True}, {}, {"crop_to_body": True}, {"spacing": (1.0, 1.0, 2.0)}, {"preset": "published"}]
)
def test_the_overlay_lies_where_the_patch_was(settings, tmp_path):
    """A bright block in a scan lights up a patch in `pixel_values`; the overlay of that patch holds the block."""
    scan = a_volume()
    scan.voxels[:] = 0.2
    scan.voxels[0, 13:16, 9:11, 11:13] = 9
    processor = RadFMImageProcessor(image_size=24, max_slices=16, patch_depth=4, num_channels=1, **settings)
    pixels = processor([scan])["pixel_values"][0][0].numpy()
    rows, columns, slices = (n // patch for n, patch in zip(pixels.shape, (4, 4, 4), strict=True))
    patches = pixels.reshape(rows, 4, columns, 4, slices, 4).mean((1, 3, 5))
    values, affine = overlay.on_the_scan((patches == patches.max()).astype(np.float32) + 1e-3, scan, processor)
    overlay.write(values, affine, tmp_path / "overlay.nii.gz")
    image = nibabel.load(tmp_path / "overlay.nii.gz")
    assert image.shape == scan.voxels.shape[1:] and np.allclose(image.affine, scan.affine, atol=1e-4)
    lit = np.argwhere(image.get_fdata() > 0.9 * image.get_fdata().max())
    assert len(lit) and np.all(np.abs(lit.mean(0) - [14, 9.5, 11.5]) < [4, 3, 4])


def test_the_overlay_of_a_flipped_copy_is_the_flipped_overlay():
    scan = a_volume()
    processor = RadFMImageProcessor(image_size=24, max_slices=16, patch_depth=4, num_channels=1, keep_aspect=True)
    attention = np.random.default_rng(1).random((6, 6, 4)).astype(np.float32)
    values, _ = overlay.on_the_scan(attention, scan, processor)
    other, _ = overlay.on_the_scan(attention, flipped(scan), processor)
    assert np.array_equal(values, other[::-1, :, ::-1])


def test_a_picture_lies_as_it_is_drawn(tmp_path):
    voxels = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    viewer.write_nifti(Scan(voxels), tmp_path / "picture.nii.gz")
    image = nibabel.load(tmp_path / "picture.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("P", "L", "S") and np.array_equal(
        image.get_fdata()[..., 0], voxels[0, ..., 0]
    )


def test_slices_for_browsers_without_webgl(tmp_path):
    scan = to_radiological_view(a_volume())
    files = viewer.draw_slices(scan, (-2, 2), tmp_path / "slices")
    assert len(files) == scan.voxels.shape[-1] and all(file.stat().st_size for file in files)


def test_facts_say_nothing_about_the_patient(dicom_files, tmp_path):
    import pydicom

    dataset = pydicom.dcmread(dicom_files / "693_J2KI.dcm")
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "SECRET-7", "19700101"
    dataset.save_as(tmp_path / "x.dcm")
    scans, _ = reader_process.read([tmp_path / "x.dcm"], tmp_path / "out", READER)
    told = json.dumps([scans[0].about, viewer.facts("x.dcm", scans[0].about)])
    assert not any(word in told for word in ("Doe", "Jane", "SECRET", "1970"))


def test_the_api_answers_with_json(ask, dicom_files, nifti_files):
    said = ask([dicom_files / "693_J2KI.dcm"], "Which imaging modality is this?")
    assert set(said) == {"model", "question", "answer", "yes", "scans", "seconds"}
    assert said["answer"] == "CT" and said["scans"][0]["name"] == "693_J2KI.dcm" and said["scans"][0]["modality"] == "CT"
    said = ask([dicom_files / "693_J2KI.dcm", nifti_files / "anatomical.nii"], "Is [1] a CT scan? Answer yes or no.")
    assert said["answer"] in ("yes", "no") and 0 <= said["yes"] <= 1 and len(said["scans"]) == 2


def test_an_mcp_client_asks_about_a_zipped_series(served, series_zips):
    mcp = pytest.importorskip("mcp", reason="needs the MCP client: pip install 'gradio[mcp]'")
    from mcp.client.streamable_http import streamablehttp_client

    # Gradio fetches no address of this machine itself, which a data URL is not.
    series = base64.b64encode((series_zips / "dicom_series_ct.zip").read_bytes()).decode()
    given = {"scan": f"data:application/zip;base64,{series}", "question": "Which imaging modality is this?"}
    bad = {**given, "scan": given["scan"][: given["scan"].index(",") + 1001]}

    async def talk():
        async with (
            streamablehttp_client(f"{served}gradio_api/mcp/") as (incoming, outgoing, _),
            mcp.ClientSession(incoming, outgoing) as client,
        ):
            await client.initialize()
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool("ask_about_scan", asked) for asked in (given, bad)]

    tools, (answered, refused) = asyncio.run(talk())
    assert [tool.name for tool in tools] == ["ask_about_scan"]
    assert json.loads(answered.content[0].text)["answer"] == "CT"
    assert refused.isError and "the zip archive is damaged" in refused.content[0].text


def test_the_api_refuses_with_a_sentence(ask, tmp_path):
    from gradio_client.exceptions import AppError

    (tmp_path / "letter.txt").write_text("Dear colleague")
    with pytest.raises(AppError, match=r"letter\.txt: is no scan"):
        ask([tmp_path / "letter.txt"], "What is this?")
    with pytest.raises(AppError, match="Drop a scan first"):
        ask([], "What is this?")


def test_many_at_once_are_all_answered_and_nothing_is_left(ask, series_zips, tmp_path):
    """Eight visitors at once, one with a broken zip: an answer or a sentence for each; then the disk is empty."""
    good = (series_zips / "dicom_series_mr.zip").read_bytes()
    (tmp_path / "broken.zip").write_bytes(good[: len(good) // 2])

    def one(number: int) -> str:
        try:
            return ask([tmp_path / "broken.zip" if number == 3 else series_zips / "dicom_series_mr.zip"], "Is it 2D or 3D?")[
                "answer"
            ]
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(one, range(8)))
    assert "broken.zip: the zip archive is damaged" in said.pop(3) and set(said) == {"3D"}
    deadline = time.monotonic() + 30
    while left_over() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left_over() == [], [path.read_bytes()[:80] for path in left_over()]


def test_a_zip_that_unpacks_to_too_much_is_refused(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("RADFM_READ_UNPACKED", str(1 << 20))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(8 << 20))
    with pytest.raises(Exception, match=r"bomb\.zip: unpacks to more than"):
        ask([tmp_path / "bomb.zip"], "What is this?")


def test_a_model_that_is_not_there_is_told():
    from inference import Answers
    from remote_code import AnswerError, Repository

    repository = Repository(str(ROOT / "tests"))
    with pytest.raises(AnswerError, match="cannot be loaded: set RADFM_MODEL"):
        _ = repository.reader
    with pytest.raises(AnswerError, match="cannot be loaded: set RADFM_MODEL"):
        _ = Answers(repository).loaded


def test_two_threads_that_parse_at_once_are_no_reason_to_go_without_a_model(monkeypatch):
    """Python 3.11's own fault, which nobody can time, raised here in its place."""
    from inference import Answers
    from remote_code import Repository

    parse, raised = ast.parse, []

    def miscounts(*args, **kwargs):
        if not raised:
            raised.append(True)
            raise SystemError("AST constructor recursion depth mismatch (before=45, after=168)")
        return parse(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", miscounts)
        answers = Answers(Repository(str(ROOT)))
    model, _ = answers.loaded
    assert raised and model.config.model_type == "radfm"


def test_a_follow_up_encodes_nothing_again(dicom_files, tmp_path, monkeypatch):
    from inference import Answers
    from remote_code import Repository
    from sessions import Session

    repository = Repository(str(ROOT))
    answers, session = Answers(repository), Session(tmp_path / "session")
    assert session.read([dicom_files / "693_J2KI.dcm"], repository.reader) == []
    *_, turn = session.ask("Which imaging modality is this?", answers, repository.scan_class)
    assert turn.answer == "CT" and turn.question == "`1 · 693_J2KI.dcm` Which imaging modality is this?"
    monkeypatch.setattr(answers, "_encode", None)
    *_, turn = session.ask("Is this a CT scan? Answer yes or no.", answers, repository.scan_class)
    assert turn.answer == "yes" and turn.yes > 0.5 and turn.question == "Is this a CT scan? Answer yes or no."
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    session.close()
    assert not session.folder.exists()


def test_a_model_that_is_none_is_one_line_and_status_2(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "radfm.cli", "demo", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "holds no model" in run.stderr
