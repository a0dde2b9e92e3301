"""A batch gives each request what it gets alone, and one request cannot fail another."""

import asyncio
import contextlib

import pytest
import torch
from helpers import IMAGE, small_model

from radfm.serving import limits
from radfm.serving.answers import Prompt, Sampling
from radfm.serving.engine import Engine
from radfm.serving.errors import ApiError
from radfm.serving.metrics import Metrics

# Prompts of other lengths, with none, one and two scans.
TEXTS = [[5, 6, 7], [*IMAGE, 8], [*IMAGE, *IMAGE, 9, 10, 11, 12], [13], [*IMAGE, 14, 15], [20] * 30]


class Tokenizer:
    """Pads as any tokenizer does and spells ids, so that an answer shows its tokens."""

    def pad(self, encoding, **kwargs):
        from transformers import BatchEncoding

        rows = encoding["input_ids"]
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type="pt")

    def decode(self, ids, skip_special_tokens):
        return "".join(f"<{token}>" for token in ids)


@pytest.fixture(scope="module")
def model():
    model = small_model()
    model.generation_config.eos_token_id = None
    return model


@contextlib.asynccontextmanager
async def running(model, **options):
    engine = Engine(model, Tokenizer(), Metrics(), **options)
    yield engine
    if engine._thread.is_alive():
        engine.stop(30)


def prompt(ids: list[int], features: torch.Tensor) -> Prompt:
    return Prompt(ids, [features] * ids.count(IMAGE[0]))


def sampling(**changes) -> Sampling:
    return Sampling(**{"n": 1, "max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0, **changes})


async def answers(engine, asked, wanted) -> list[str]:
    texts = [""] * wanted.n
    async for piece in engine.answer(asked, wanted):
        texts[piece.index] += piece.text
    return texts


@pytest.fixture(scope="module")
def features(model):
    torch.manual_seed(1)
    with torch.inference_mode():
        return model.get_image_features([torch.rand(1, 64, 64, 8)]).pooler_output[0]


def count_of(histogram) -> float:
    """How many values a histogram of Prometheus has seen."""
    return next(
        sample.value for metric in histogram.collect() for sample in metric.samples if sample.name.endswith("_count")
    )


def ask_together(model, features, wanted, **options):
    """What each of `TEXTS` is answered when all wait before the engine starts, and the sizes of the batches."""

    async def run():
        async with running(model, **options) as engine:
            tasks = [asyncio.ensure_future(answers(engine, prompt(ids, features), wanted)) for ids in TEXTS]
            await asyncio.sleep(0)
            engine.start()
            texts = await asyncio.gather(*tasks)
            samples = {
                s.name: s.value for m in engine._metrics.answered.collect() for s in m.samples if "bucket" not in s.name
            }
            return texts, samples["radfm_decode_batch_rows_count"]

    return asyncio.run(run())


@pytest.mark.parametrize(
    "wanted", [sampling(), sampling(temperature=1.0, seed=5, n=2), sampling(temperature=0.7, top_p=0.8)]
)
def test_a_batch_answers_each_prompt_as_it_is_answered_alone(wanted, model, features):
    together, batches = ask_together(model, features, wanted)
    alone, one_by_one = ask_together(model, features, wanted, batch_tokens=1)
    assert (batches, one_by_one) == (1, len(TEXTS))
    assert together == alone
    assert all(text.count("<") == 12 for texts in together for text in texts)


def test_a_greedy_answer_is_that_of_generate(model, features):
    together, _ = ask_together(model, features, sampling())
    for ids, (text,) in zip(TEXTS, together, strict=True):
        inputs = torch.tensor([ids])
        scans = [features] * ids.count(IMAGE[0]) or None
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), image_features=scans, max_new_tokens=12)
        assert text == "".join(f"<{token}>" for token in output[0, len(ids) :].tolist())


def test_scans_are_encoded_together_within_the_limit_on_patches(model, monkeypatch):
    monkeypatch.setattr(limits, "BATCH_PATCHES", 40)
    torch.manual_seed(2)
    scans = [torch.rand(1, 64, 64, depth) for depth in (1, 4, 8, 32, 1)]  # 16, 16, 32, 128 and 16 patches

    async def run():
        async with running(model) as engine:
            tasks = [asyncio.ensure_future(engine.encode(scan)) for scan in scans]
            await asyncio.sleep(0)
            engine.start()
            encoded = await asyncio.gather(*tasks)
            return encoded, count_of(engine._metrics.encoded)

    encoded, batches = asyncio.run(run())
    assert batches == 4  # two images, then the volumes alone, then an image
    with torch.inference_mode():
        for scan, of_scan in zip(scans, encoded, strict=True):
            torch.testing.assert_close(of_scan, model.get_image_features([scan]).pooler_output[0])


def test_a_request_that_fails_leaves_the_rest_of_its_batch_alone(model, features, capsys):
    wrong = Prompt([*IMAGE, 3], [])  # a place for a scan, and none

    async def run():
        async with running(model) as engine:
            asked = [prompt(TEXTS[0], features), wrong, prompt(TEXTS[2], features)]
            tasks = [asyncio.ensure_future(answers(engine, each, sampling())) for each in asked]
            await asyncio.sleep(0)
            engine.start()
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, failed, last = asyncio.run(run())
    together, _ = ask_together(model, features, sampling())
    assert (first, last) == (together[0], together[2])
    assert isinstance(failed, ApiError) and failed.status == 500
    assert "places for" not in failed.message and capsys.readouterr().err.startswith("ValueError at ")


def test_an_answer_that_nobody_waits_for_ends(model, features):
    async def run():
        async with running(model) as engine:
            engine.start()
            pieces = engine.answer(prompt(TEXTS[0], features), sampling(max_tokens=100_000))
            await anext(pieces)
            await pieces.aclose()
            # The next one is answered: the thread is not busy with the first.
            return await answers(engine, prompt(TEXTS[3], features), sampling())

    assert asyncio.run(run())[0].count("<") == 12


def test_a_stopped_engine_ends_answers_with_an_error(model, features):
    async def run():
        async with running(model) as engine:
            engine.start()
            pieces = engine.answer(prompt(TEXTS[0], features), sampling(max_tokens=100_000))
            await anext(pieces)
            engine.stop(30)
            assert not engine._thread.is_alive()
            with pytest.raises(ApiError) as stopped:
                async for _ in pieces:
                    pass
            assert stopped.value.status == 503

    asyncio.run(run())
