"""A scan is encoded once for all who ask about it, and the cache stays within its bytes."""

import asyncio

import pytest
import torch

from radfm.serving.feature_cache import EncodedScan, FeatureCache

SCAN = EncodedScan(torch.zeros(4, 8), {})


def test_requests_at_the_same_time_share_one_encoding():
    async def run():
        cache, started = FeatureCache(10_000), []

        async def encode():
            started.append(1)
            await asyncio.sleep(0)
            return SCAN

        scans = await asyncio.gather(*(cache.get("a", encode) for _ in range(5)))
        assert scans == [SCAN] * 5
        assert await cache.get("a", encode) is SCAN
        assert len(started) == 1

    asyncio.run(run())


def test_the_least_recently_used_scans_go_first():
    async def run():
        cache, encoded = FeatureCache(2 * SCAN.num_bytes), []

        async def get(key):
            async def encode():
                encoded.append(key)
                return SCAN

            await cache.get(key, encode)

        for key in ("a", "b", "a", "c", "a", "b"):
            await get(key)
            assert cache.num_bytes <= 2 * SCAN.num_bytes
        assert encoded == ["a", "b", "c", "b"]

    asyncio.run(run())


def test_a_failure_is_raised_to_everybody_and_not_kept():
    async def run():
        cache, tries = FeatureCache(10_000), []

        async def encode():
            tries.append(1)
            raise ValueError("no scan")

        results = await asyncio.gather(*(cache.get("a", encode) for _ in range(2)), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]
        with pytest.raises(ValueError, match="no scan"):
            await cache.get("a", encode)
        assert len(tries) == 2

    asyncio.run(run())


def test_who_goes_away_ends_the_encoding_only_if_nobody_else_waits():
    async def run():
        cache, done = FeatureCache(10_000), asyncio.Event()
        ended = []

        async def encode():
            try:
                await done.wait()
                return SCAN
            finally:
                ended.append(1)

        first, second = (asyncio.ensure_future(cache.get("a", encode)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        assert not ended
        done.set()
        assert await second is SCAN

        done.clear()
        alone = asyncio.ensure_future(cache.get("b", encode))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.wait({alone})
        await asyncio.sleep(0)
        assert len(ended) == 2

    asyncio.run(run())
