"""The loss: its weights, what it divides by, and that plain `Trainer` gives the same number."""

import pytest
import torch
from helpers import IMAGE, TEXT, VISION, small_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import MASKED_LOGIT, RadFMForConditionalGeneration

SCAN = torch.rand(1, 32, 32, 8, generator=torch.Generator().manual_seed(0))
NO_DROPOUT = {**VISION, "hidden_dropout": 0.0, "attention_dropout": 0.0}


def token_nll(model, ids, **inputs):
    """nll of each next token (T − 1,), by a softmax over the vocabulary without the image ids."""
    logits = model(input_ids=ids, **inputs).logits[0, :-1, :100].float()
    return -torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None].clamp(max=99))[:, 0]


def row(*ids, weights=None, labels=None):
    """A batch of one text with one scan."""
    text = torch.tensor([[1, *IMAGE, *ids]])
    weights = [0.0] * (1 + len(IMAGE)) + list(weights or [1.0] * len(ids))
    batch = {"input_ids": text, "pixel_values": [SCAN], "labels": text.clone() if labels is None else torch.tensor([labels])}
    return {**batch, "loss_weights": torch.tensor([weights])}


def test_loss_is_the_weighted_mean_of_the_next_tokens(model):
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    nll = token_nll(model, ids)
    weights = torch.tensor([[9.0, 0, 1, 3, 1]])
    wanted = (nll * weights[0, 1:]).sum() / weights[0, 1:].sum()
    torch.testing.assert_close(model(input_ids=ids, labels=ids, loss_weights=weights).loss, wanted)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, nll.mean())


def test_image_ids_as_labels_cost_nothing(model):
    ids = torch.tensor([[1, *IMAGE, 5, 6]])
    masked = ids.masked_fill(ids >= 100, -100)
    torch.testing.assert_close(
        model(input_ids=ids, labels=ids, pixel_values=[SCAN]).loss,
        model(input_ids=ids, labels=masked, pixel_values=[SCAN]).loss,
    )


def test_image_ids_have_no_part_in_the_softmax(model):
    model.lm_head.weight.data[100:] = 100
    logits = model(input_ids=torch.tensor([[1, 5, 6]])).logits
    assert (logits[..., 100:] == MASKED_LOGIT).all()
    assert torch.equal(logits.softmax(-1)[..., :100], logits[..., :100].softmax(-1))
    assert torch.equal(logits.half().softmax(-1)[..., 100:], torch.zeros(1, 3, 3).half())


def test_label_smoothing_is_finite(model):
    ids = torch.tensor([[1, *IMAGE, 5, 6]])
    loss = LabelSmoother(0.1)(
        model(input_ids=ids, pixel_values=[SCAN]), ids.masked_fill(ids >= 100, -100), shift_labels=True
    )
    assert loss.isfinite()


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_whole_batch(model):
    rows = [row(5, 6, 7, 8, weights=[1, 1, 3, 1]), row(9, 10, weights=[3, 0])]
    total = sum(r["loss_weights"][:, 1:].sum() for r in rows)
    parts = [model(**r, loss_weight_sum=total).loss for r in rows]
    nll = torch.cat([token_nll(model, r["input_ids"], pixel_values=[SCAN]) for r in rows])
    weights = torch.cat([r["loss_weights"][0, 1:] for r in rows])
    torch.testing.assert_close(sum(parts), (nll * weights).sum() / weights.sum())


def test_num_items_in_batch_is_a_count_of_labels(model):
    """Without weights the losses of micro-batches add up to the plain mean; with weights each counts by its labels."""
    rows = [torch.tensor([[1, 5, 6, 7, 8]]), torch.tensor([[1, 9, 10]])]
    nll = torch.cat([token_nll(model, ids) for ids in rows])
    parts = [model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(6)).loss for ids in rows]
    torch.testing.assert_close(sum(parts), nll.mean())
    weights = [torch.tensor([[0.0, 1, 1, 3, 1]]), torch.tensor([[0.0, 3, 0]])]
    means = [model(input_ids=i, labels=i, loss_weights=w).loss for i, w in zip(rows, weights, strict=True)]
    parts = [
        model(input_ids=i, labels=i, loss_weights=w, num_items_in_batch=6).loss for i, w in zip(rows, weights, strict=True)
    ]
    torch.testing.assert_close(sum(parts), means[0] * 4 / 6 + means[1] * 2 / 6)


@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 0}, {"loss_weight_sum": 0.0}, {"loss_weight_sum": 7.0}])
def test_a_batch_without_weight_has_a_loss_and_a_gradient_of_zero(model, extra):
    batch = row(5, 6, weights=[0, 0], labels=[-100] * 9)
    loss = model(**batch, **extra).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
    assert model.lm_head.weight.grad is not None


def test_shifted_labels_take_precedence_over_labels(model):
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    weights = torch.tensor([[0.0, 1, 1, 3, 1]])
    shifted = {"shift_labels": torch.tensor([[5, 6, 7, 8, -100]]), "loss_weights": torch.tensor([[1.0, 1, 3, 1, 0]])}
    wanted = model(input_ids=ids, labels=ids, loss_weights=weights).loss
    torch.testing.assert_close(model(input_ids=ids, **shifted).loss, wanted)
    torch.testing.assert_close(model(input_ids=ids, labels=torch.full_like(ids, 3), **shifted).loss, wanted)
    del shifted["loss_weights"]
    torch.testing.assert_close(model(input_ids=ids, **shifted).loss, model(input_ids=ids, labels=ids).loss)


def train(folder, rows, **arguments):
    """Logged losses of plain `Trainer`, one row a micro-batch, with SGD, and the trained model."""
    torch.manual_seed(0)
    model = RadFMForConditionalGeneration(
        RadFMConfig(vision_config=NO_DROPOUT, text_config=dict(TEXT), image_start_token_id=100, image_end_token_id=101,
                    image_token_id=102)
    )  # fmt: skip
    settings = {
        "max_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True,
        "remove_unused_columns": False, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    trainer = Trainer(
        model, TrainingArguments(str(folder), **{**settings, **arguments}), train_dataset=rows, data_collator=lambda r: r[0]
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


@pytest.mark.parametrize("kept", ["labels", "loss_weights"])
def test_one_batch_through_trainer_has_the_loss_of_the_model(tmp_path, kept):
    """With image ids among the labels, with and without weights."""
    batch = row(5, 6, 7, 8, weights=[1, 3, 1, 1])
    if kept == "labels":
        del batch["loss_weights"]
    model = small_model(vision_config=NO_DROPOUT)
    losses, _ = train(tmp_path, [batch])
    assert losses == [pytest.approx(model(**batch).loss.item(), abs=2e-4)]


def test_trainer_accumulates_micro_batches_in_proportion_to_their_labels(tmp_path):
    """One step of SGD over two micro-batches is one step along the gradient of their mean, weighted by labels."""
    rows = [row(5, 6, 7, 8, weights=[1, 3, 1, 1]), row(9, 10, weights=[3, 1])]
    losses, trained = train(tmp_path, rows, gradient_accumulation_steps=2)
    model = small_model(vision_config=NO_DROPOUT).train()
    labels = [(r["labels"][:, 1:] != -100).sum() for r in rows]
    loss = sum(model(**r).loss * n for r, n in zip(rows, labels, strict=True)) / sum(labels)
    loss.backward()
    assert losses == [pytest.approx(loss.item(), abs=2e-4)]
    for (name, after), before in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.5 * before.grad, rtol=0, atol=1e-6, msg=name)
