"""`radfm push`: which files go up, what is refused, and that the same command goes on after a failure."""

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT, small_model
from huggingface_hub import constants, lfs
from safetensors.torch import save_file
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.hub.errors import explain
from radfm.modeling_radfm import RadFMForConditionalGeneration


@pytest.fixture
def push(empty_hub, monkeypatch, tmp_path_factory):
    """`radfm push` against a Hub of this test; exit status, and what it printed."""
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", empty_hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("no-token") / "token"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts

    def run(*words):
        done = CliRunner().invoke(app, ["push", *map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model folder as Trainer leaves it, with what must not go up."""
    folder = tmp_path_factory.mktemp("saved")
    small_model().save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "recipe.yaml", "notes.txt", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not for the Hub")
    (folder / ".venv" / "lib").mkdir(parents=True)
    (folder / ".venv" / "lib" / "config.json").write_text("{}")
    (folder / "checkpoint-1").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-1")
    return folder


def names_of(hub, kind="models", repo_id="me/radfm", revision="main"):
    return set(hub.repository(kind, repo_id).files(revision))


def test_a_dry_run_lists_every_file_with_its_size_and_uploads_nothing(saved, push, empty_hub):
    status, listed = push("model", saved, "me/radfm", "--dry-run")
    assert status == 0 and empty_hub.requests == []
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed.splitlines()[:-1]}
    assert push("model", saved, "me/radfm")[0] == 0
    assert sizes == {name: len(content) for name, content in empty_hub.repository("models", "me/radfm").files().items()}


def test_only_files_of_the_allow_list_go_up(saved, push, empty_hub):
    assert push("model", saved, "me/radfm")[0] == 0
    code = {file.name for file in saved.glob("*_radfm.py")}
    assert {"modeling_radfm.py", "configuration_radfm.py"} <= code
    assert names_of(empty_hub) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "LICENSE",
        "README.md",
        *code,
    }


def test_a_branch_is_created_and_a_repository_private(saved, push, empty_hub):
    assert push("model", saved, "me/radfm", "--private", "--revision", "trial")[0] == 0
    repository = empty_hub.repository("models", "me/radfm")
    assert repository.private and "model.safetensors" in repository.files("trial") and repository.files("main") == {}


def test_a_public_repository_is_not_pushed_to_as_a_private_one(saved, push, empty_hub):
    assert push("model", saved, "me/radfm")[0] == 0
    status, said = push("model", saved, "me/radfm", "--private")
    assert status == 2 and "is public" in said


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(saved, push, empty_hub, tmp_path):
    shards = shards_of(saved, tmp_path / "shards")
    assert push("model", tmp_path / "shards", "me/radfm")[0] == 0
    assert {shard.name for shard in shards} <= names_of(empty_hub)
    assert push("model", saved, "me/radfm")[0] == 0
    assert [name for name in names_of(empty_hub) if name.startswith("model-") or name.endswith("index.json")] == []


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = tmp_path / "lora"
    folder.mkdir()
    save_file({"base_model.model.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def write_adapter(folder, **config):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "auto_mapping": {"a": "b"}, **config}))


def test_an_adapter_of_a_local_base_is_refused_with_the_remedy(adapter, saved, push, empty_hub):
    write_adapter(adapter, base_model_name_or_path=str(saved), revision=None)
    status, said = push("model", adapter, "me/lora")
    assert status == 2 and str(saved) in said and "--base OWNER/NAME@COMMIT" in said
    assert empty_hub.repositories == {}


def test_an_adapter_of_an_unpinned_base_is_refused_with_the_commit_of_today(adapter, saved, push, empty_hub):
    assert push("model", saved, "me/radfm")[0] == 0
    commit = empty_hub.repository("models", "me/radfm").branches["main"]
    write_adapter(adapter, base_model_name_or_path="me/radfm", revision=None)
    status, said = push("model", adapter, "me/lora")
    assert status == 2 and f"--base me/radfm@{commit}" in said
    assert push("model", adapter, "me/lora", "--base", f"me/radfm@{commit}")[0] == 0
    pushed = json.loads(empty_hub.repository("models", "me/lora").files()["adapter_config.json"])
    assert (pushed["base_model_name_or_path"], pushed["revision"], pushed["auto_mapping"]) == ("me/radfm", commit, None)


def test_a_readme_of_ones_own_is_kept_if_it_names_a_licence(saved, push, empty_hub, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(saved, folder)
    (folder / "README.md").write_text("# Mine\n")
    status, said = push("model", folder, "me/radfm")
    assert status == 2 and "names no licence" in said
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n![picture](scan.png)\n")
    (folder / "scan.png").write_bytes(b"a picture")
    assert push("model", folder, "me/radfm")[0] == 0
    files = empty_hub.repository("models", "me/radfm").files()
    assert b"# Mine" in files["README.md"] and files["scan.png"] == b"a picture"


def test_a_path_of_this_machine_is_refused(saved, push, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(saved, folder)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\nTrained on {tmp_path}.\n")
    status, said = push("model", folder, "me/radfm")
    assert status == 2 and str(tmp_path) in said and "README.md" in said


def test_folders_in_configs_are_removed(saved, push, empty_hub, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = str(tmp_path)
    config["auto_map"] = {key: f"someone/else--{value}" for key, value in config["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert push("model", folder, "me/radfm")[0] == 0
    pushed = json.loads(empty_hub.repository("models", "me/radfm").files()["config.json"])
    assert "_name_or_path" not in pushed["text_config"]
    assert pushed["auto_map"]["AutoModel"] == "modeling_radfm.RadFMForConditionalGeneration"


def test_code_that_a_folder_lacks_comes_from_this_package(saved, push, empty_hub, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.py"))
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    assert push("model", folder, "me/radfm")[0] == 0
    files = empty_hub.repository("models", "me/radfm").files()
    assert files["modeling_radfm.py"] == (ROOT / "modeling_radfm.py").read_bytes()
    assert json.loads(files["config.json"])["auto_map"]["AutoConfig"] == "configuration_radfm.RadFMConfig"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "holds no model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "radfm"}'), "no weights in safetensors"),
    ],
)
def test_a_folder_without_a_model_is_refused(make, words, push, tmp_path):
    make(tmp_path)
    status, said = push("model", tmp_path, "me/radfm")
    assert status == 2 and words in said


def test_another_model_is_refused(saved, push, tmp_path):
    shutil.copy(saved / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    status, said = push("model", tmp_path, "me/radfm")
    assert status == 2 and "model_type is llama" in said


@pytest.mark.parametrize("repo_id", ["radfm", "me/", "a/b/c", "me/-bad-"])
def test_what_is_no_repository_id_is_refused(repo_id, saved, push):
    status, said = push("model", saved, repo_id)
    assert status == 2 and "is no repository id" in said


# Failures of the Hub, the network and the disk --------------------------------------------------------------------------


def test_without_a_token_the_sentence_says_how_to_sign_in(saved, push, empty_hub):
    empty_hub.token = "hf_right"
    for words in ([], ["--token", "hf_wrong"]):
        status, said = push("model", saved, "me/radfm", *words)
        assert status == 2 and "401" in said and "hf auth login" in said and len(said.splitlines()) == 1
    assert push("model", saved, "me/radfm", "--token", "hf_right")[0] == 0


@pytest.mark.parametrize(
    ("words", "failure", "sentence"),
    [
        (["kernels", ROOT / "kernels", "me/kernels"], 403, "ask for kernel creation"),
        (["model", "saved", "me/radfm"], 403, "token may not write there"),
        (["model", "saved", "me/radfm"], 402, "402"),
        (["model", "saved", "me/radfm"], 429, "takes no more requests"),
        (["model", "saved", "me/radfm"], 503, "out of order (503)"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence_and_the_same_command_goes_on(words, failure, sentence, saved, push, empty_hub):
    words = [saved if word == "saved" else word for word in words]
    empty_hub.fail("POST", "/api/repos/create", failure, "No.", times=1 if failure < 429 else 20)
    status, said = push(*words)
    assert status == 2 and sentence in said and len(said.splitlines()) == 1
    empty_hub.failures.clear()
    assert push(*words)[0] == 0


def test_a_space_on_a_free_account_is_one_sentence(saved, push, empty_hub):
    assert push("model", saved, "me/radfm")[0] == 0
    empty_hub.fail("POST", "/api/repos/create", 402, "Payment required")
    status, said = push("space", ROOT / "space", "me/space", "--model", "me/radfm")
    assert status == 2 and "PRO account" in said and "ZeroGPU" in said and len(said.splitlines()) == 1
    assert push("space", ROOT / "space", "me/space", "--model", "me/radfm")[0] == 0


def shards_of(saved, folder):
    """The model in several files of weights."""
    shutil.copytree(saved, folder)
    RadFMForConditionalGeneration.from_pretrained(saved).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    return sorted(folder.glob("*.safetensors"))


def test_after_a_broken_connection_only_the_rest_is_sent(saved, push, empty_hub, tmp_path, monkeypatch):
    shards = shards_of(saved, tmp_path / "shards")
    assert len(shards) > 2
    upload, one_at_a_time = lfs._upload_single_part, threading.Lock()

    def break_after_the_first(operation, upload_url):
        with one_at_a_time:
            upload(operation, upload_url)
            empty_hub.stop()

    monkeypatch.setattr(lfs, "_upload_single_part", break_after_the_first)
    status, said = push("model", tmp_path / "shards", "me/radfm")
    assert status == 2 and "the same command goes on" in said
    assert "connection to the Hub broke" in said
    arrived = len(empty_hub.objects)
    assert names_of(empty_hub) == set() and arrived == 1
    empty_hub.start()
    empty_hub.requests.clear()
    monkeypatch.setattr(lfs, "_upload_single_part", upload)
    assert push("model", tmp_path / "shards", "me/radfm")[0] == 0
    sends = [request for request in empty_hub.requests if request.startswith("PUT /lfs-upload/")]
    assert len(sends) == len(shards) - arrived
    assert {shard.name for shard in shards} <= names_of(empty_hub)


@pytest.mark.parametrize("reason", ["the client has been closed", "'NoneType' object has no attribute 'request'"])
def test_an_upload_whose_connection_another_one_closed_says_so(reason):
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = AttributeError(reason) if "NoneType" in reason else RuntimeError(reason)
    assert explain(error, "me/radfm", "model") == (
        f"The connection to the Hub broke ({reason}): the same command goes on where this one stopped."
    )


def test_a_full_disk_is_one_sentence(saved, push, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr(lfs, "_upload_single_part", full)
    status, said = push("model", saved, "me/radfm")
    assert status == 2 and "disk is full" in said and "the same command goes on" in said


def test_the_hub_switched_off_is_one_sentence(saved, push, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, said = push("model", saved, "me/radfm")
    assert status == 2 and "HF_HUB_OFFLINE" in said and len(said.splitlines()) == 1


# Kernels, data sets, the Space ------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A finished data set of one shard, as its manifest and report describe it."""

    def write(*sources):
        folder = tmp_path / "built"
        (folder / "2d").mkdir(parents=True, exist_ok=True)
        (folder / "2d" / "train-00000.parquet").write_bytes(b"rows")
        files = {"2d/train-00000.parquet": {"bytes": 4, "rows": 1}}
        manifest = {"sources": list(sources), "files": files, "records": 1, "logical_hash": "0"}
        report = {"statistics": {}, "dropped": {}, "unreadable": {"count": 1, "scans": [{"id": "/home/me/scan.dcm"}]}}
        for name, content in (("manifest", manifest), ("report", report), ("croissant", {})):
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return write


def test_sources_that_may_not_be_passed_on_never_become_public(dataset, push, empty_hub):
    folder = dataset("csv", "mimic-cxr")
    status, said = push("dataset", folder, "me/scans")
    assert status == 2 and "mimic-cxr" in said and "--private" in said and empty_hub.repositories == {}
    assert push("dataset", folder, "me/scans", "--private")[0] == 0
    repository = empty_hub.repository("datasets", "me/scans")
    assert repository.private
    assert set(repository.files()) == {"2d/train-00000.parquet", "README.md", "manifest.json", "croissant.json"}


def test_a_shard_that_was_changed_is_refused(dataset, push):
    folder = dataset("csv")
    (folder / "2d" / "train-00000.parquet").write_bytes(b"other rows")
    status, said = push("dataset", folder, "me/scans")
    assert status == 2 and "train-00000.parquet" in said and "build the data set again" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["dataset"], "is no finished data set"), (["kernels"], "is no kernel project"), (["space"], "is no Space")],
)
def test_a_folder_of_another_kind_is_refused(words, sentence, push, tmp_path):
    more = ["--model", "me/radfm"] if words == ["space"] else []
    status, said = push(*words, tmp_path, "me/name", *more)
    assert status == 2 and sentence in said


def test_a_space_of_a_model_that_is_not_there_is_refused(push, empty_hub):
    status, said = push("space", ROOT / "space", "me/space", "--model", "me/nothing")
    assert status == 2 and "me/nothing: the Hub has no such model" in said and empty_hub.repositories == {}


def test_a_space_of_a_private_model_preloads_nothing(saved, push, empty_hub):
    assert push("model", saved, "me/radfm", "--private")[0] == 0
    assert push("space", ROOT / "space", "me/space", "--model", "me/radfm")[0] == 0
    files = empty_hub.repository("spaces", "me/space").files()
    assert b"preload_from_hub" not in files["README.md"] and "app.py" in files and "__init__.py" not in files
    assert not [name for name in files if "__pycache__" in name]
