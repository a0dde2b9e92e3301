"""The plan of micro-batches: bounds hold, no row is lost or doubled, counts are equal, the order is repeatable."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radfm.training.batches import BatchPlan, Cost, PlanSampler
from radfm.training.recipe import RecipeError

COSTS = st.lists(st.builds(Cost, st.integers(1, 64), st.integers(1, 100)), min_size=1, max_size=60)


def make_plan(costs, ranks=2, accumulation=2, epochs=3, seed=0, **bounds):
    bounds = {"max_patches": 128, "max_tokens": 400, "max_rows": 8, **bounds}
    ids = [f"r{i}" for i in range(len(costs))]
    return BatchPlan(costs, ids=ids, ranks=ranks, accumulation=accumulation, epochs=epochs, seed=seed, **bounds)


@settings(max_examples=150, deadline=None)
@given(COSTS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_bounds_counts_and_rows(costs, ranks, accumulation, seed):
    plan = make_plan(costs, ranks, accumulation, epochs=3, seed=seed)
    for epoch in range(3):
        batches = plan.epoch(epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(len(costs))), "no row lost or doubled"
        assert len(batches) == ranks * plan.batches_per_rank and plan.batches_per_rank % accumulation == 0
        for batch in filter(None, batches):
            assert sum(costs[row].patches for row in batch) <= 128 and len(batch) <= 8
            assert len(batch) * max(costs[row].tokens for row in batch) <= 400


def test_order_is_a_function_of_seed_and_epoch():
    costs = [Cost(4, 10)] * 40
    first, again, other = make_plan(costs), make_plan(costs), make_plan(costs, seed=1)
    assert first.epoch(1) == again.epoch(1) != first.epoch(0)
    assert other.epoch(1) != first.epoch(1)


def test_ranks_share_a_plan_and_read_the_epoch_at_each_pass():
    plan, epoch = make_plan([Cost(4, 10)] * 37), [0]
    samplers = [PlanSampler(plan, rank, 2, lambda: epoch[0]) for rank in range(2)]
    for epoch[0] in range(3):
        passes = [list(sampler) for sampler in samplers]
        assert len(passes[0]) == len(passes[1]) == len(samplers[0]) == plan.batches_per_rank
        rows = [row for batches in passes for batch in batches for _, row in batch]
        assert sorted(rows) == list(range(37))
        assert {e for batches in passes for batch in batches for e, _ in batch} == {epoch[0]}


def test_a_row_beyond_a_bound_is_named():
    with pytest.raises(RecipeError, match=r"batches\.max_patches=128: record r1 alone has 500 patches"):
        make_plan([Cost(1, 1), Cost(500, 1)])
    with pytest.raises(RecipeError, match=r"batches\.max_tokens=400: record r0 alone has 401 tokens"):
        make_plan([Cost(1, 401)])
