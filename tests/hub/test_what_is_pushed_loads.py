"""Whatever way a RadFM was made, what is pushed loads by its id in a process that has never seen this package."""

import json
from pathlib import Path

import pytest
from strangers import ask, python_block

# Pushes models in one process, and loads each in a process of its own.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def pushed(hub, run_as_owner, published, tmp_path_factory):
    """Name of each way → None, or the error with which the push ended."""
    script = Path(__file__).parent / "push_every_way.py"
    output = run_as_owner(hub, script, tmp_path_factory.mktemp("ways"), published)
    return json.loads(output.splitlines()[-1])


def refuse_failed(pushed, way):
    assert pushed[way] is None, pushed[way]


@pytest.mark.parametrize(
    "way",
    [
        "clone", "auto_loaded", "hub_loaded", "installed_classes", "saved_folder", "trainer_full", "trainer_lora",
        "trainer_lora_installed", "adapter_folder", "merged_lora", "merged_folder", "quantised",
    ],
)  # fmt: skip
def test_a_demo_checkpoint_pushed_in_any_way_answers(way, pushed, run_as_stranger):
    refuse_failed(pushed, way)
    said = json.loads(run_as_stranger(ask(f"me/{way.replace('_', '-')}")).splitlines()[-1])
    assert said["class"] == "RadFMForConditionalGeneration" and "CT" in said["answer"]
    assert (said["adapters"] > 0) == (way in ("trainer_lora", "trainer_lora_installed", "adapter_folder"))
    assert (said["four_bit_layers"] > 0) == (way == "quantised")


def test_a_model_with_another_decoder_loads(pushed, run_as_stranger):
    refuse_failed(pushed, "other_decoder")
    said = json.loads(run_as_stranger(ask("me/other-decoder")).splitlines()[-1])
    assert (said["class"], said["decoder"]) == ("RadFMForConditionalGeneration", "llama of width 32")


@pytest.mark.parametrize("way", ["converted", "vision_part"])
def test_the_vision_tower_encodes_where_there_is_no_tokenizer(way, pushed, hub, run_as_stranger):
    refuse_failed(pushed, way)
    card = hub.repository("models", f"me/{way.replace('_', '-')}").files()["README.md"].decode()
    assert run_as_stranger(python_block(card)).startswith("torch.Size([")


@pytest.mark.parametrize("way", ["saved_folder", "adapter_folder"])
def test_the_example_of_the_card_runs(way, pushed, hub, run_as_stranger):
    refuse_failed(pushed, way)
    card = hub.repository("models", f"me/{way.replace('_', '-')}").files()["README.md"].decode()
    assert "CT" in run_as_stranger(python_block(card)).splitlines()[-1]
