"""Laws of the model: what a scan may change, what a batch may not, and what every way of running it agrees on."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import IMAGE, TEXT, VISION, small_model
from safetensors.torch import load_file, save_file
from transformers import CompileConfig, TextStreamer, Trainer, TrainingArguments

from radfm.configuration_radfm import AUTO_CLASSES
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMModel, RadFMVisionModel

IMAGE_2D, VOLUME, WIDE = (1, 32, 32, 1), (1, 32, 48, 8), (3, 16, 32, 4)


def scan(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def prompt(*parts):
    """Token ids of one row; "image" stands for a scan's marks."""
    ids = [1]
    for part in parts:
        ids += IMAGE if part == "image" else part
    return torch.tensor([ids])


def left_padded(rows):
    length = max(row.shape[1] for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, length - row.shape[1] :] = row[0]
        mask[r, length - row.shape[1] :] = 1
    return {"input_ids": ids, "attention_mask": mask}


MIXED = [
    (prompt("image", [5, 6, 7]), [scan(IMAGE_2D, 1)]),
    (prompt([9], "image", [8], "image", [7, 7]), [scan(VOLUME, 2), scan(IMAGE_2D, 3)]),
    (prompt([11, 12]), []),
    (prompt("image", [13]), [scan(WIDE, 4)]),
]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_batch_gives_what_its_rows_give_alone(implementation):
    model = small_model()
    model.set_attn_implementation(implementation)
    batch = left_padded([ids for ids, _ in MIXED])
    scans = [one for _, of_row in MIXED for one in of_row]
    logits = model(**batch, pixel_values=scans).logits
    tokens = model.generate(**batch, pixel_values=scans, max_new_tokens=8, do_sample=False)
    for r, (ids, of_row) in enumerate(MIXED):
        alone = model(input_ids=ids, pixel_values=of_row or None).logits[0]
        assert (logits[r, -ids.shape[1] :] - alone).abs().max() < 5e-5
        said = model.generate(input_ids=ids, pixel_values=of_row or None, max_new_tokens=8, do_sample=False)
        said = said[0, ids.shape[1] :]
        assert torch.equal(tokens[r, batch["input_ids"].shape[1] :][: len(said)], said)


@torch.no_grad()
def test_a_scan_is_encoded_as_if_it_were_alone(model):
    scans = [scan(IMAGE_2D, 1), scan(VOLUME, 2), scan(WIDE, 3), scan(IMAGE_2D, 4), scan((1, 64, 16, 32), 5)]
    tower = model.model.vision_tower
    together = tower(scans)
    for i, one in enumerate(scans):
        alone = tower([one])
        patches = together.last_hidden_state[together.cu_seqlens[i] : together.cu_seqlens[i + 1]]
        torch.testing.assert_close(patches, alone.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_later_scan_never_changes_an_earlier_token(model):
    ids, first = prompt([9], "image", [8], "image", [7]), scan(VOLUME, 2)
    a = model(input_ids=ids, pixel_values=[first, scan(IMAGE_2D, 3)]).logits
    b = model(input_ids=ids, pixel_values=[first, scan(IMAGE_2D, 4)]).logits
    second = 1 + 1 + len(IMAGE) + 1 + 1
    assert torch.equal(a[:, :second], b[:, :second])
    assert not torch.equal(a[:, second:], b[:, second:])


@torch.no_grad()
def test_scans_follow_the_order_of_their_placeholders(model):
    ids, one, other = prompt("image", [8], "image"), scan(VOLUME, 2), scan(VOLUME, 3)
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda *a: seen.append(a[2]["inputs_embeds"]), with_kwargs=True
    )
    model(input_ids=ids, pixel_values=[one, other])
    model(input_ids=ids, pixel_values=[other, one])
    hook.remove()
    first, second = slice(2, 6), slice(9, 13)
    torch.testing.assert_close(seen[0][:, first], seen[1][:, second])
    torch.testing.assert_close(seen[0][:, second], seen[1][:, first])


@torch.no_grad()
def test_folding_grey_and_flat_scans_is_exact():
    model = small_model().double()
    tower = model.model.vision_tower
    grey, flat = scan((1, 32, 32, 8)).double(), scan((1, 32, 32, 1)).double()
    for folded, full in (
        (grey, grey.repeat(3, 1, 1, 1)),
        (flat, flat.repeat(3, 1, 1, 4)),
        (flat.repeat(3, 1, 1, 1), flat.repeat(3, 1, 1, 4)),
    ):
        folded, full = tower([folded]).last_hidden_state, tower([full]).last_hidden_state
        # LayerNorm's statistics are taken in float32.
        torch.testing.assert_close(folded, full, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cached_decoding_equals_uncached(model):
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    options = {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(input_ids=ids, pixel_values=scans, **options)
    assert torch.equal(cached, model.generate(input_ids=ids, pixel_values=scans, use_cache=False, **options))
    static = model.generate(input_ids=ids, pixel_values=scans, cache_implementation="static", **options)
    assert torch.equal(cached, static)


@torch.no_grad()
def test_questions_about_encoded_scans_need_no_pixels(model):
    scans = [scan(VOLUME), scan(IMAGE_2D)]
    features = model.get_image_features(scans).pooler_output
    assert [tuple(f.shape) for f in features] == [(4, 64)] * 2
    for question in ([5], [6, 7]):
        ids = prompt("image", "image", question)
        torch.testing.assert_close(
            model(input_ids=ids, image_features=features).logits, model(input_ids=ids, pixel_values=scans).logits
        )
        for options in ({"do_sample": False}, {"num_beams": 3, "num_return_sequences": 2}):
            with_features = model.generate(input_ids=ids, image_features=features, max_new_tokens=6, **options)
            assert torch.equal(with_features, model.generate(input_ids=ids, pixel_values=scans, max_new_tokens=6, **options))


@torch.no_grad()
def test_embeddings_in_place_of_a_text_are_answered_too(model):
    text = torch.tensor([[*IMAGE, 5, 6]])
    features = model.get_image_features([torch.rand(1, 32, 32, 8)]).pooler_output
    embeds = model.get_input_embeddings()(text)
    embeds[text == model.config.image_token_id] = features[0]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    asked = model.generate(input_ids=text, image_features=features, **options)
    assert model.generate(inputs_embeds=embeds, **options).tolist() == asked[:, text.shape[1] :].tolist()


@torch.no_grad()
def test_beams_and_samples_of_a_ragged_batch(model):
    batch = left_padded([ids for ids, _ in MIXED])
    scans = [one for _, of_row in MIXED for one in of_row]
    beams = model.generate(**batch, pixel_values=scans, max_new_tokens=6, num_beams=3, do_sample=False)
    for r, (ids, of_row) in enumerate(MIXED):
        alone = model.generate(input_ids=ids, pixel_values=of_row or None, max_new_tokens=6, num_beams=3, do_sample=False)
        said = alone[0, ids.shape[1] :]
        assert torch.equal(beams[r, batch["input_ids"].shape[1] :][: len(said)], said)
    sampled = model.generate(**batch, pixel_values=scans, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert len(sampled) == 2 * len(MIXED)


@torch.no_grad()
def test_assisted_decoding_says_the_same(model):
    assistant = small_model()
    assistant.model.language_model.layers[1] = copy.deepcopy(assistant.model.language_model.layers[0])
    assistant.model.language_model.layers[1].self_attn.layer_idx = 1
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    options = {"max_new_tokens": 8, "do_sample": False}
    alone = model.generate(input_ids=ids, pixel_values=scans, **options)
    assert torch.equal(alone, model.generate(input_ids=ids, pixel_values=scans, assistant_model=assistant, **options))
    assert torch.equal(alone, model.generate(input_ids=ids, pixel_values=scans, prompt_lookup_num_tokens=2, **options))


@torch.no_grad()
def test_inputs_embeds_with_placeholders_take_scans_too(model):
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(
        model(inputs_embeds=embeds, pixel_values=scans).logits, model(input_ids=ids, pixel_values=scans).logits
    )


@pytest.mark.parametrize(
    ("scans", "sentence"), [(1, "places for 2 scans .* and 1 scans"), (3, "2 scans .* and 3"), (0, "2 scans .* and 0")]
)
def test_scans_and_places_must_agree(model, scans, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(input_ids=prompt("image", "image"), pixel_values=[scan(IMAGE_2D)] * scans)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 32, 32, 1), "2 channels; the vision tower takes 1"),
        ((1, 30, 32, 1), "cannot be cut into patches of 16×16×4"),
        ((1, 32, 32, 6), "depth 1 .* or a multiple of 4"),
        ((1, 80, 32, 1), "larger than the position tables: at most 64"),
        ((32, 32, 1), r"four axes"),
    ],
)
def test_a_scan_that_does_not_fit_is_refused_in_words(model, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.model.vision_tower([scan(shape)])


def test_pixels_and_features_at_once_are_refused(model):
    with pytest.raises(ValueError, match="not as both"):
        model(input_ids=prompt("image"), pixel_values=[scan(IMAGE_2D)], image_features=[torch.zeros(4, 64)])


def test_every_weight_learns():
    model = small_model().train()
    ids = prompt("image", [5, 6], "image", [7], "image")
    model(input_ids=ids, labels=ids, pixel_values=[scan(VOLUME), scan(WIDE), scan(IMAGE_2D)]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = small_model(vision_config={**VISION, "hidden_dropout": 0.0, "attention_dropout": 0.0}).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = prompt("image", [5, 6])
        model(input_ids=ids, labels=ids, pixel_values=[scan(VOLUME)], use_cache=False).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@torch.no_grad()
def test_saving_and_loading_changes_nothing(model, tmp_path):
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    wanted = model(input_ids=ids, pixel_values=scans).logits
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = RadFMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids, pixel_values=scans).logits, wanted)
    half = RadFMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (half(input_ids=ids, pixel_values=scans).logits[..., :100].float() - wanted[..., :100]).abs().max() < 0.1


@torch.no_grad()
def test_parts_load_from_a_whole_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    tower, info = RadFMVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    wanted = model.model.vision_tower([scan(VOLUME)]).pooler_output[0]
    assert torch.equal(tower([scan(VOLUME)]).pooler_output[0], wanted)
    tower.save_pretrained(tmp_path / "tower")
    tower = RadFMVisionModel.from_pretrained(tmp_path / "tower")
    assert torch.equal(tower([scan(VOLUME)]).pooler_output[0], wanted)
    body, info = RadFMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    ids = prompt("image", [5])
    assert torch.equal(
        body(input_ids=ids, pixel_values=[scan(VOLUME)]).last_hidden_state,
        model.model(input_ids=ids, pixel_values=[scan(VOLUME)]).last_hidden_state,
    )


@torch.no_grad()
def test_tied_embeddings_stay_tied(tmp_path):
    model = small_model(text_config={**TEXT, "tie_word_embeddings": True})
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = RadFMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    ids = prompt("image", [5])
    assert torch.equal(
        again(input_ids=ids, pixel_values=[scan(VOLUME)]).logits,
        model(input_ids=ids, pixel_values=[scan(VOLUME)]).logits,
    )


@torch.no_grad()
def test_resized_embeddings_keep_what_was_said(model, tmp_path):
    ids, scans = prompt("image", [5]), [scan(VOLUME)]
    before = model(input_ids=ids, pixel_values=scans).logits
    model.resize_token_embeddings(110)
    assert model.config.text_config.vocab_size == 110
    torch.testing.assert_close(model(input_ids=ids, pixel_values=scans).logits[..., :103], before)
    model.save_pretrained(tmp_path)
    again = RadFMForConditionalGeneration.from_pretrained(tmp_path)
    assert again(input_ids=ids, labels=ids, pixel_values=scans).logits.shape[-1] == 110


@torch.no_grad()
def test_device_map_places_the_parts(model, tmp_path):
    model.save_pretrained(tmp_path)
    placed = RadFMForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    ids = prompt("image", [5])
    assert torch.equal(
        placed(input_ids=ids, pixel_values=[scan(VOLUME)]).logits,
        model(input_ids=ids, pixel_values=[scan(VOLUME)]).logits,
    )


def test_a_model_made_under_inference_mode_sees(model):
    with torch.inference_mode():
        made = small_model()
        got = made.model.vision_tower([scan(IMAGE_2D)]).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(got, model.model.vision_tower([scan(IMAGE_2D)]).last_hidden_state, rtol=0, atol=1e-6)


@torch.no_grad()
def test_embeddings_that_were_given_stay_as_they_are(model):
    ids = prompt("image", [5])
    given = model.get_input_embeddings()(ids)
    before = given.clone()
    wanted = model(input_ids=ids, pixel_values=[scan(IMAGE_2D)]).logits
    torch.testing.assert_close(model(inputs_embeds=given, pixel_values=[scan(IMAGE_2D)]).logits, wanted)
    assert torch.equal(given, before)


@torch.no_grad()
def test_each_part_has_its_own_attention_implementation(model, tmp_path):
    model.save_pretrained(tmp_path)
    parts = {"vision_config": "eager", "text_config": "sdpa"}
    again = RadFMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=parts)
    assert again.model.vision_tower.config._attn_implementation == "eager"
    assert again.model.language_model.config._attn_implementation == "sdpa"
    again.set_attn_implementation({"vision_config": "sdpa", "text_config": "eager"})
    assert again.model.vision_tower.config._attn_implementation == "sdpa"
    assert again.model.language_model.config._attn_implementation == "eager"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card and the flash-attn package")
@torch.no_grad()
def test_flash_attention_agrees_with_sdpa():
    pytest.importorskip("flash_attn", reason="needs the flash-attn package")
    scans = [scan(shape, seed).cuda().bfloat16() for seed, shape in enumerate((IMAGE_2D, VOLUME, WIDE))]
    model = small_model().cuda().bfloat16()
    wanted = model.model.vision_tower(scans).last_hidden_state
    model.set_attn_implementation("flash_attention_2")
    torch.testing.assert_close(model.model.vision_tower(scans).last_hidden_state, wanted, atol=5e-2, rtol=5e-2)


@torch.no_grad()
def test_the_compiled_vision_tower_gives_the_same(model):
    tower = model.model.vision_tower
    compiled = torch.compile(tower, backend="aot_eager", dynamic=False)
    scans = [scan(VOLUME, 2), scan(IMAGE_2D, 3)]
    torch.testing.assert_close(compiled(scans).last_hidden_state, tower(scans).last_hidden_state, atol=1e-5, rtol=0)


def test_words_stream_as_they_are_said(model):
    class Recorder(TextStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    recorder, ids = Recorder(), prompt("image", [5])
    said = model.generate(
        input_ids=ids,
        pixel_values=[scan(VOLUME)],
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        streamer=recorder,
    )
    assert [t for tokens in recorder.tokens[1:] for t in tokens] == said[0, ids.shape[1] :].tolist()
    assert len(recorder.tokens) == 6 and recorder.ended


def test_an_adapter_trains_and_comes_back(model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv", "key_value"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    adapted(input_ids=ids, labels=ids, pixel_values=scans).loss.backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora" in name)
    wanted = adapted.eval()(input_ids=ids, pixel_values=scans).logits
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small_model(), tmp_path)
    torch.testing.assert_close(again(input_ids=ids, pixel_values=scans).logits, wanted)


@torch.no_grad()
def test_patch_i_of_n_has_entry_i_plus_1_times_n_of_the_table_minus_1(model):
    """The indices of the published code, counted out for tables of 4 rows and columns and 8 depths."""
    embedding = model.model.vision_tower.patch_embedding
    for table in embedding.position_tables():
        table.weight.copy_(torch.arange(table.num_embeddings)[:, None].expand_as(table.weight))
    positions = embedding.positions((2, 3, 4), torch.device("cpu")).view(2, 3, 4, 3, -1)[..., 0]
    assert positions[:, 0, 0, 0].tolist() == [1, 3]
    assert positions[0, :, 0, 1].tolist() == [0, 1, 2]
    assert positions[0, 0, :, 2].tolist() == [1, 3, 5, 7]


@torch.no_grad()
def test_hidden_states_and_attentions_of_each_scan_are_those_of_the_scan_alone(model):
    tower, scans = model.model.vision_tower, [scan(VOLUME, 2), scan(IMAGE_2D, 1), scan(VOLUME, 3)]
    model.set_attn_implementation("eager")
    outputs = tower(scans, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    for i, one in enumerate(scans):
        alone = tower([one], output_hidden_states=True, output_attentions=True)
        start, end = outputs.cu_seqlens[i : i + 2]
        for together, single in zip(outputs.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(together[start:end], single, atol=1e-5, rtol=0)
        for of_layer, single in zip(outputs.attentions, alone.attentions, strict=True):
            assert of_layer[i].shape == (2, end - start, end - start)
            torch.testing.assert_close(of_layer[i], single[0], atol=1e-5, rtol=0)
    assert tower(scans).hidden_states is None and tower(scans).attentions is None
    tower.config.output_hidden_states = True
    assert len(tower(scans).hidden_states) == 3


@torch.no_grad()
def test_attentions_without_eager_are_none_and_a_line_says_so(model, monkeypatch):
    lines = []
    monkeypatch.setattr("radfm.modeling_radfm.logger.warning_once", lines.append)
    assert model.model.vision_tower([scan(IMAGE_2D)], output_attentions=True).attentions is None
    assert lines == ["Attention weights of the vision tower need attn_implementation='eager': they are None."]


@torch.no_grad()
def test_the_output_of_the_vision_tower_comes_along(model):
    ids, scans = prompt("image", [5]), [scan(VOLUME)]
    outputs = model(input_ids=ids, pixel_values=scans, output_hidden_states=True)
    wanted = model.get_image_features(scans, output_hidden_states=True)
    torch.testing.assert_close(outputs.image_outputs.pooler_output, wanted.pooler_output)
    torch.testing.assert_close(outputs.image_outputs.hidden_states, wanted.hidden_states)
    assert model(input_ids=prompt([5])).image_outputs is None


@torch.no_grad()
def test_lists_of_scans_for_each_text_are_one_list(model):
    """`pipeline(batch_size=2)` hands over the scans of each text in a list of its own."""
    batch = left_padded([ids for ids, _ in MIXED])
    nested = [of_row for _, of_row in MIXED]
    flat = [one for of_row in nested for one in of_row]
    assert torch.equal(model(**batch, pixel_values=nested).logits, model(**batch, pixel_values=flat).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    generated = model.generate(**batch, pixel_values=nested, **options)
    assert torch.equal(generated, model.generate(**batch, pixel_values=flat, **options))
    text = prompt([5, 6])
    assert torch.equal(
        model.generate(input_ids=text, pixel_values=[[]], **options), model.generate(input_ids=text, **options)
    )


@torch.no_grad()
def test_a_decoding_step_with_a_static_cache_compiles_without_a_break(model):
    ids, scans = prompt("image", [5, 6]), [scan(VOLUME)]
    assert model._can_compile_fullgraph
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    wanted = model.generate(input_ids=ids, pixel_values=scans, **options)
    compiled = CompileConfig(fullgraph=True, backend="eager")
    compiled._compile_all_devices = True  # a CPU compiles only where it is told to
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        output_ids = model.generate(
            input_ids=ids, pixel_values=scans, cache_implementation="static", compile_config=compiled, **options
        )
    assert torch.equal(output_ids, wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_head_that_shares_its_weights_is_sharded_with_them():
    model = small_model(text_config={**TEXT, "tie_word_embeddings": True})
    assert "lm_head" in model.tp_plan and "model.language_model.embed_tokens" in model.tp_plan


def test_a_weight_that_no_part_of_the_model_has_is_reported(model, tmp_path):
    """The vision tower may skip the decoder's weights in a checkpoint of a whole model; the whole model may not."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.language_model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = RadFMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"model.language_model.layers.7.mlp.up_proj.weight"}


@torch.no_grad()
def test_trainer_evaluates_batches_of_which_some_have_no_scan(model, tmp_path):
    rows = [{"input_ids": ids, "labels": ids, **({"pixel_values": scans} if scans else {})} for ids, scans in MIXED]
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=1, use_cpu=True, report_to=[], disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, data_collator=lambda rows: rows[0], compute_metrics=lambda p: {"shape": p.predictions.shape}
    )
    metrics = trainer.evaluate(rows)
    losses = [model(**row).loss.item() for row in rows]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert metrics["eval_shape"] == (4, max(ids.shape[1] for ids, _ in MIXED), 103)


LOADING = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

loaded = []
for folder, name in json.loads(sys.argv[1]):
    model, info = globals()[name].from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    loaded.append(type(model).__name__)
print(json.dumps(loaded))
"""


def test_saved_models_load_by_the_auto_classes_with_the_code_that_was_saved(model, tmp_path):
    """The whole model by each of them, its parts by `AutoModel`, in a process of its own."""
    parts = {"whole": model, "body": model.model, "tower": model.model.vision_tower}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    wanted = [("whole", name) for name in AUTO_CLASSES] + [("body", "AutoModel"), ("tower", "AutoModel")]
    run = subprocess.run(
        [sys.executable, "-I", "-c", LOADING, json.dumps([(str(tmp_path / folder), name) for folder, name in wanted])],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == [type(parts[folder]).__name__ for folder, _ in wanted]
