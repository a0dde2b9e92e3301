"""What `torchrun` starts in the tests of several ranks: trainings one after the other, in one group of processes.

torchrun --nproc-per-node 2 rank_worker.py [--fsdp2 | --lose-rank-1] trainings.json    # arguments of `-m radfm.training`
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from accelerate import DistributedType, PartialState
from torch.distributed import destroy_process_group
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from radfm.training.__main__ import main
from radfm.training.trainer import RadFMTrainer


def configure_fsdp2() -> None:
    """FSDP2 on CPUs: accelerate shards on cards only, and takes DDP elsewhere without a word."""
    PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds=300))
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    training_step = RadFMTrainer.training_step

    def checked_step(self, model, *args, **kwargs):
        assert self.accelerator.distributed_type == DistributedType.FSDP and isinstance(model, FSDPModule), "no FSDP2"
        return training_step(self, model, *args, **kwargs)

    RadFMTrainer.training_step = checked_step


def lose_rank_1() -> None:
    """Kill rank 1 where it would write its random state, the last part of a checkpoint, once rank 0 has written its own."""

    def die(trainer: Trainer, folder: str) -> None:
        while not Path(folder, "rng_state_0.pth").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        Trainer._save_rng_state = die


if __name__ == "__main__":
    if sys.argv[1] == "--fsdp2":
        configure_fsdp2()
    elif sys.argv[1] == "--lose-rank-1":
        lose_rank_1()
    for arguments in json.loads(Path(sys.argv[-1]).read_text()):
        if status := main(arguments):
            sys.exit(status)
    destroy_process_group()
