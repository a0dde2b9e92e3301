"""transformers' Trainer with the paper's weighted loss over accumulated batches, the batch plan, and checks of each step."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, seed_worker

from .batches import BatchPlan, PlanSampler
from .faults import TrainingError, is_out_of_memory
from .parts import freeze_decoder, keep_frozen_parts_in_eval
from .stream import StreamedBatches, save_places, stream_file


class RadFMTrainer(Trainer):
    """Trainer for batches of `Collator`.

    What it overrides, and why:
        _get_num_items_in_batch: the divisor is the sum of `loss_weights` over all micro-batches and ranks, not a count.
        compute_loss: hands the divisor to the model as `loss_weight_sum`; keeps frozen parts in eval mode.
        get_train_dataloader: batches come from the plan or a stream, which accelerate must not deal out again.
        training_step: stops before an update from a loss that is not finite, or when memory is short, and names the records.
        save_model, _save: under FSDP2 the result is whole, and has the code of the model's class.
        _save_checkpoint: keeps the place in a stream.
        _save_rng_state: rank 0 ends a checkpoint, with Trainer's state, when all ranks have written theirs.
        log: adds scans and tokens per second, and the share of time spent waiting for data.
    """

    def __init__(self, *args: Any, plan: BatchPlan | None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.plan = plan
        self._throughput = Throughput()

    def get_train_dataloader(self) -> DataLoader[Any]:
        if isinstance(self.train_dataset, StreamedBatches):
            return self._stream_dataloader(self.train_dataset)
        assert self.plan is not None
        ranks, rank = self.args.world_size, self.args.process_index
        # The epoch is taken from the state: `set_epoch` does not reach the sampler after a resume.
        sampler = PlanSampler(self.plan, rank, ranks, lambda: math.floor((self.state.epoch or 0) + 1e-6))
        workers = self.args.dataloader_num_workers
        loader: Any = DataLoader(
            cast("Dataset[Any]", self.train_dataset),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=workers, rank=rank),
        )
        loader = self.accelerator.prepare(loader)
        shard = loader.batch_sampler
        if shard is not sampler:
            # accelerate's BatchSamplerShard would deal a rank's batches out a second time, and would drop every batch whose
            # number of rows is not `batch_size`; with None it takes batches of any number of rows.
            shard.num_processes, shard.process_index, shard.batch_size = 1, 0, None
        return loader

    def _stream_dataloader(self, stream: StreamedBatches) -> DataLoader[Any]:
        """Not prepared by accelerate, which would let rank 0 read for all; `training_step` moves the tensors."""
        workers, rank = self.args.dataloader_num_workers, self.args.process_index
        return DataLoader(
            stream,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=workers, rank=rank),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        with self._throughput.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = sum(batch["loss_weights"][:, 1:].sum() for batch in batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training:
            keep_frozen_parts_in_eval(model)
        if "loss_weights" in inputs and num_items_in_batch is not None:
            inputs = {**inputs, "loss_weight_sum": num_items_in_batch}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        record_ids = inputs.pop("record_ids")
        if isinstance(self.train_dataset, StreamedBatches):
            place = inputs.pop("place")
            self.train_dataset.places[place.worker] = place
            self.train_dataset.micro_batches += 1
        self._throughput.count(len(inputs["pixel_values"]), int(inputs["attention_mask"].sum()))
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"Out of memory on records {_names(record_ids)}: lower batches.max_patches or batches.max_tokens."
            ) from error
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss of step {self.state.global_step + 1} is {float(loss)} on records {_names(record_ids)}: lower "
                "training.learning_rate, or leave these records out. No update was made with it."
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        sharded = self.is_fsdp_enabled and "FULL_STATE_DICT" not in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        if sharded and not _internal_call:  # Trainer would write nothing; a checkpoint keeps its shards for the resume
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.model is not None
        with original_classes(self.model):
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if isinstance(self.train_dataset, StreamedBatches):
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            file = folder / stream_file(self.args.process_index)
            save_places(file, self.train_dataset.places, self.train_dataset.micro_batches)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Without it, a checkpoint that looks whole may lack the random state of a rank that was lost meanwhile.
        self.accelerator.wait_for_everyone()

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("record_ids", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._throughput.rates())
        super().log(logs, start_time)


@contextmanager
def original_classes(model: nn.Module) -> Iterator[None]:
    """Undo, while a model is saved, that FSDP2 replaces each class by a subclass: `save_pretrained` writes the code
    and the name of the model's class.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    classes = [type(module) for module in sharded]
    for module in sharded:
        module.__class__ = type(module).__bases__[1]  # (FSDPModule, the original class)
    try:
        yield
    finally:
        for module, fsdp_class in zip(sharded, classes, strict=True):
            module.__class__ = fsdp_class


def _unchanged(batch: Any) -> Any:
    return batch


def _names(record_ids: list[str]) -> str:
    shown = ", ".join(record_ids[:5])
    return shown if len(record_ids) <= 5 else f"{shown} and {len(record_ids) - 5} more"


class Throughput:
    """Scans and tokens per second, and the share of the time in which the model waited for data, since the last log."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start, self._waited, self._scans, self._tokens = time.perf_counter(), 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside this context counts as waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, scans: int, tokens: int) -> None:
        """Add a micro-batch."""
        self._scans, self._tokens = self._scans + scans, self._tokens + tokens

    def rates(self) -> dict[str, float]:
        """The rates since the last call."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rates = {
            "scans_per_second": round(self._scans / seconds, 2),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "waiting_for_data": round(self._waited / seconds, 3),
        }
        self._reset()
        return rates


class FreezeDecoder(TrainerCallback):
    """Stage 1 of the paper: the decoder is frozen at the start.

    Args:
        share: of all steps, for a stream, which has no epochs; None counts `epochs`.
        epochs: how many the decoder is frozen.
    """

    def __init__(self, share: float | None, epochs: float):
        self.share, self.epochs = share, epochs
        self._frozen: bool | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **_: Any
    ) -> None:
        if self.share is not None:
            frozen = state.global_step < self.share * state.max_steps
        else:
            frozen = (state.epoch or 0) < self.epochs
        if model is not None and frozen != self._frozen:
            freeze_decoder(model, frozen)
            self._frozen = frozen
