"""Scores on a model card, items as a data set, logs for other harnesses: read back with the libraries that read them."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from results import copy_reference, make_items, most_frequent, predict, write_results
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.radbench import publish
from radfm.radbench.exports import export
from radfm.radbench.items import BenchError, read_items
from radfm.radbench.scores import read_scores, score_run, write_json

OLD_CARD = """---
license: apache-2.0
tags: [radiology]
model-index:
- name: demo
  results:
  - task: {type: image-classification}
    dataset: {name: MedNIST, type: mednist}
    metrics: [{type: accuracy, value: 0.9}]
---

# Demo

Words that stay.
"""


@pytest.fixture
def results(tmp_path) -> Path:
    items = make_items(12)
    predictions = predict(items, copy_reference, likelihoods=True) + predict(items, most_frequent, "no image")
    out = write_results(tmp_path / "results", items, predictions, "lab/demo")
    score_run(out)
    return out


def test_the_card_takes_several_metrics_with_intervals_and_keeps_its_words(results, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text(OLD_CARD)
    publish.push(publish.plan_scores(results, str(folder), ""))
    card = ModelCard.load(folder / "README.md")
    assert "Words that stay." in card.text and card.data.tags == ["radiology"]
    by_name = {(result.dataset_config, result.metric_name): result for result in card.data.eval_results}
    mine = by_name["diagnosis_yes_no", "accuracy (lenient)"]
    assert mine.metric_value == 1.0 and mine.metric_type == "accuracy" and mine.metric_args["ci"][1] == 1.0
    assert mine.dataset_args["items_fingerprint"] == read_scores(results)["items_fingerprint"]
    assert any(result.dataset_name == "MedNIST" for result in card.data.eval_results)


def test_published_twice_nothing_is_there_twice(results, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text(OLD_CARD)
    publish.push(publish.plan_scores(results, str(folder), ""))
    once = (folder / "README.md").read_text()
    publish.push(publish.plan_scores(results, str(folder), ""))
    assert (folder / "README.md").read_text() == once


def test_eval_results_have_one_number_a_task(results):
    plan = publish.plan_scores(results, "lab/demo", "lab/radbench")
    entries = parse_eval_result_entries(yaml.safe_load(plan.files[".eval_results/radbench.yaml"]))
    assert len({entry.task_id for entry in entries}) == len(entries) == 5
    entry = next(entry for entry in entries if entry.task_id == "diagnosis_yes_no")
    assert entry.dataset_id == "lab/radbench" and entry.value == 1.0 and "95 % interval" in entry.notes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"value": 81.6}, "81.6"),
        ({"value": True}, "True"),
        ({"n": 0}, "no answers"),
        ({"interval": [0.9, 0.1]}, "interval"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(change, complaint, results):
    scores = read_scores(results)
    scores["scores"][0] |= change
    write_json(scores, results / "scores.json")
    with pytest.raises(BenchError, match=complaint):
        publish.plan_scores(results, "lab/demo", "")


def test_names_are_checked(results):
    with pytest.raises(BenchError, match="owner/name"):
        publish.plan_scores(results, "demo", "")
    with pytest.raises(BenchError, match="--dataset"):
        publish.plan_scores(results, "lab/demo", "radbench")
    with pytest.raises(BenchError, match="--dataset"):
        publish.plan_items(results, "")


def test_a_dry_run_prints_and_writes_nothing(results, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    command = ["bench", "publish", str(results), "--repo", str(folder), "--dataset", "lab/radbench", "--dry-run"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "model-index:" in result.output and ".eval_results/radbench.yaml" in result.output
    assert list(folder.iterdir()) == []


def test_items_go_out_with_a_card_and_come_back_as_they_were(results, tmp_path):
    plan = publish.plan_items(results, "lab/radbench")
    assert plan.private and "private" in plan.notes[0]  # the terms of an unknown source
    for name, content in plan.files.items():
        (tmp_path / name).write_text(content)
    assert read_items(tmp_path / "items.jsonl") == read_items(results / "items.jsonl")
    card = plan.files["README.md"]
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "items.jsonl" and "Fingerprint" in card
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 60 and rows[0]["messages"][0]["content"][0]["type"] == "image"


def test_a_long_file_is_cut_in_the_printed_plan():
    plan = publish.Plan("lab/x", "dataset", {"items.jsonl": "x" * 500 + "\n" + "y\n" * 1000})
    assert "961 lines more" in plan.text() and len(plan.text()) < 2_000


def test_lmms_eval_gets_a_line_a_sample(results, tmp_path):
    files = export(results, "lmms-eval", tmp_path / "logs")
    assert len(files) == 5
    rows = [json.loads(line) for line in (tmp_path / "logs" / "samples_radbench_vqa_choice.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["target"] == rows[0]["filtered_resps"][0] and rows[0]["accuracy (lenient)"] == 1.0


def test_inspect_reads_its_log(results, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="needs Inspect: pip install inspect-ai")
    export(results, "inspect", tmp_path / "logs")
    read = log.read_eval_log(str(tmp_path / "logs" / "radbench_report_open.eval"))
    assert read.status == "success" and len(read.samples) == 12
    assert read.results.scores[0].metrics["mean"].value == pytest.approx(1.0)


def test_a_format_that_nobody_reads_is_refused(results, tmp_path):
    with pytest.raises(BenchError, match="inspect, lmms-eval"):
        export(results, "csv", tmp_path)


class HubStub(BaseHTTPRequestHandler):
    """The five answers of a Hub that a first commit into a new repository needs; `seen` keeps what was sent."""

    seen: ClassVar[dict[str, bytes]] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        name = self.path.split("?")[0]
        self.seen[name] = body
        address = f"http://{self.headers['Host']}"
        if name.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            answer = {"files": files}
        elif "/commit/" in name:
            answer = {"success": True, "commitOid": "c" * 40, "commitUrl": f"{address}/lab/demo/commit/{'c' * 40}"}
        else:
            answer = {"url": f"{address}/lab/demo", "errors": [], "warnings": []}
        self._send(200, json.dumps(answer).encode())

    def do_HEAD(self):
        self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD  # noqa: N815

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_push_is_one_commit_with_card_and_results(results, monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubStub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        address = publish.push(publish.plan_scores(results, "lab/demo", "lab/radbench"))
    finally:
        server.shutdown()
    assert address.endswith("c" * 40)
    lines = [json.loads(line) for line in HubStub.seen["/api/models/lab/demo/commit/main"].splitlines()]
    files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
    assert set(files) == {"README.md", ".eval_results/radbench.yaml"} and b"model-index" in files["README.md"]
