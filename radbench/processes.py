"""The processes that share a run: one, or those that `accelerate launch` (or torchrun) started."""

import os
from dataclasses import dataclass
from datetime import timedelta

# Processes wait for the slowest one at the end; a benchmark of a large model runs for days.
LONGEST_RUN = timedelta(days=14)


@dataclass(frozen=True)
class Processes:
    """This process among all of the run.

    Args:
        rank: from 0; process 0 writes what all share.
        count: how many there are.
        local_rank: from 0 on each machine; the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()


def join_processes() -> Processes:
    """This process's place; it meets the others where there are several, over gloo, so that waiting takes no GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=LONGEST_RUN)
    return Processes(state.process_index, state.num_processes, state.local_process_index)
