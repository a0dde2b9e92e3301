"""The error of 16, 8 and 4 bits: how far logits move from float32, and how many greedy tokens and answers stay the same.

    python benchmarks/quantisation.py tests/data/published-small demo-data/

Two models: the published code's small reference (random weights, `reference/published-small`), and the demo checkpoint asked
about scans that it never saw (the data set of `make demo-checkpoint`). Prints a Markdown table.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from radfm.cli.chat import load_model
from radfm.conversion.convert import convert
from radfm.conversion.memory import BYTES
from radfm.conversion.parity import compare_greedy_tokens, compare_stages, read_cases
from radfm.conversion.tensors import DTYPES
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.training.demo.evaluate import QUESTIONS, GreedyAnswerer, known_labels
from radfm.training.demo.scans import DemoScan, read_scans

ROOT = Path(__file__).parent.parent
WAYS = tuple(BYTES)
SCANS = 400


def load(folder: Path, way: str) -> RadFMForConditionalGeneration:
    if way in DTYPES:
        return RadFMForConditionalGeneration.from_pretrained(folder, dtype=DTYPES[way]).eval()
    return load_model(str(folder), "cpu", int(way[0]))


def small_reference(folder: Path) -> dict[str, tuple[float, float, float]]:
    """For each precision: largest logit error, RMS error relative to the standard deviation, share of equal tokens."""
    meta = json.loads((folder / "cases.json").read_text())
    language = {k: v for k, v in meta["config"]["language"].items() if not k.endswith("token_id")}
    results = {}
    with tempfile.TemporaryDirectory() as converted:
        convert(folder, Path(converted), text_config={"model_type": "llama", **language})
        for way in WAYS:
            model, errors, logits, equal = load(Path(converted), way), [], [], []
            for case in read_cases(folder):
                for stage, got, stored in compare_stages(model, case):
                    if stage == "logits":
                        errors.append((got.float() - stored).flatten())
                        logits.append(stored.flatten())
                for generated, stored_ids in compare_greedy_tokens(model, case):
                    equal += [a == b for a, b in zip(generated, stored_ids, strict=False)]
                    equal += [False] * abs(len(stored_ids) - len(generated))
            results[way] = (*_error(torch.cat(errors), torch.cat(logits)), sum(equal) / len(equal))
    return results


def _error(errors: torch.Tensor, logits: torch.Tensor) -> tuple[float, float]:
    return errors.abs().max().item(), (errors.square().mean().sqrt() / logits.std()).item()


def select_questions(folder: Path, processor: RadFMProcessor) -> tuple[list[DemoScan], list[str]]:
    """Held-out scans, spread over the packs, and for each a question whose answer is known."""
    with tempfile.TemporaryDirectory() as cache:
        scans = read_scans(str(folder), "validation", processor.image_processor, Path(cache))
    held_out = [scan for scan in scans if scan.kind != "slices"]
    samples = held_out[:: max(len(held_out) // SCANS, 1)]
    label_names = ("finding", "modality", "body_part", "plane")
    questions = []
    for number, sample in enumerate(samples):
        possible = [label_name for label_name in label_names if label_name in known_labels(sample)]
        questions.append(QUESTIONS[possible[number % len(possible)]])
    return samples, questions


@torch.inference_mode()
def next_token_logits(
    model: RadFMForConditionalGeneration,
    processor: RadFMProcessor,
    samples: list[DemoScan],
    questions: list[str],
    answers: list[str],
) -> torch.Tensor:
    """Logits (tokens of all answers, vocabulary) of each answer's next token, with teacher forcing."""
    rows = []
    for sample, question, answer in zip(samples, questions, answers, strict=True):
        prompt = processor(text=processor.full_image_sequence + question, return_tensors="pt")["input_ids"].shape[1]
        inputs = processor(text=f"{processor.full_image_sequence}{question} {answer}", return_tensors="pt")
        logits = model(**inputs, pixel_values=[sample.pixels.float() / 255]).logits[0, prompt - 1 :]
        rows.append(logits[:, : model.config.image_start_token_id].float())
    return torch.cat(rows)


def demo(folder: Path) -> dict[str, tuple[float, float, float, float]]:
    """As `small_reference` on the demo checkpoint, and the share of whole answers that stay the same."""
    processor = RadFMProcessor.from_pretrained(ROOT)
    samples, questions = select_questions(folder, processor)
    found, answers, logits = {}, [], torch.empty(0)
    for way in WAYS:
        model = load(ROOT, way)
        texts = GreedyAnswerer(model, processor)(samples, questions)
        if way == WAYS[0]:
            answers, logits = texts, next_token_logits(model, processor, samples, questions, texts)
        got = next_token_logits(model, processor, samples, questions, answers)
        same = (got.argmax(-1) == logits.argmax(-1)).float().mean().item()
        whole = sum(a == b for a, b in zip(texts, answers, strict=True)) / len(answers)
        found[way] = (*_error(got - logits, logits), same, whole)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="the published model's small reference: tests/data/published-small")
    parser.add_argument("data", type=Path, help="the data set of the demo checkpoint")
    arguments = parser.parse_args()
    small, trained = small_reference(arguments.reference), demo(arguments.data)
    print("| way | small reference: logit error (largest) | equal greedy tokens | demo: logit error (largest) "
          "| equal greedy tokens | equal answers |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        largest, spread, same = small[way]
        their_largest, their_spread, their_same, whole = trained[way]
        print(
            f"| {way} | {spread:.2%} ({largest:.2g}) | {same:.1%} | {their_spread:.2%} ({their_largest:.2g}) "
            f"| {their_same:.1%} | {whole:.1%} |"
        )


if __name__ == "__main__":
    main()
