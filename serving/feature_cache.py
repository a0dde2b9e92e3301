"""Image tokens of scans by the hash of their content: a scan that is asked about again is not read and encoded again."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class EncodedScan:
    """A scan as the decoder takes it.

    Args:
        features: (image tokens, width of the decoder), on the CPU.
        description: modality, shape, spacing and warnings, as the response shows them.
    """

    features: torch.Tensor
    description: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """The memory that the features take."""
        return self.features.numel() * self.features.element_size()


@dataclass
class _Work:
    """A scan that is being read and encoded, and how many requests wait for it."""

    task: "asyncio.Task[EncodedScan]"
    waiting: int = 0


class FeatureCache:
    """Encoded scans, least recently used out first. Used by one event loop.

    Args:
        max_bytes: of all features together.
        count: called with "hit" or "miss".
    """

    def __init__(self, max_bytes: int, count: Callable[[str], None] = lambda outcome: None):
        self._max_bytes, self._count = max_bytes, count
        self._scans: OrderedDict[str, EncodedScan] = OrderedDict()
        self._work: dict[str, _Work] = {}
        self.num_bytes = 0

    async def get(self, key: str, encode: Callable[[], Awaitable[EncodedScan]]) -> EncodedScan:
        """The scan of a key, by `encode` where it is not there.

        Requests that ask for the same scan at the same time share one `encode`; it is cancelled when all of them are gone.
        Errors of `encode` are raised to each of them and not kept.
        """
        if key in self._scans:
            self._count("hit")
            self._scans.move_to_end(key)
            return self._scans[key]
        work = self._work.get(key)
        self._count("miss" if work is None else "hit")
        if work is None:
            work = self._work[key] = _Work(asyncio.ensure_future(encode()))
            work.task.add_done_callback(lambda task: self._keep(key, task))
        work.waiting += 1
        try:
            return await asyncio.shield(work.task)
        finally:
            work.waiting -= 1
            if work.waiting == 0 and not work.task.done():
                work.task.cancel()
                self._work.pop(key, None)  # who asks from now on starts anew

    def _keep(self, key: str, task: "asyncio.Task[EncodedScan]") -> None:
        if self._work.get(key) is not None and self._work[key].task is task:
            del self._work[key]
        if task.cancelled() or task.exception() is not None or task.result().num_bytes > self._max_bytes:
            return
        self._scans[key] = task.result()
        self.num_bytes += task.result().num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._scans.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
