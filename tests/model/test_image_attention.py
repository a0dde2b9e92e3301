"""Where the Perceiver looks, against the weights of its own attention."""

import torch

from radfm import attention_radfm


def test_it_is_what_the_last_layer_attends_to(model, monkeypatch):
    """Scans of two shapes, given in another order than they are encoded in."""
    seen, eager = [], attention_radfm.eager_attention

    def spy(*args, **kwargs):
        output, weights = eager(*args, **kwargs)
        seen.append(weights)
        return output, weights

    monkeypatch.setattr(attention_radfm, "eager_attention", spy)
    model.set_attn_implementation("eager")
    scans = [torch.rand(1, 64, 48, 8), torch.rand(1, 32, 32, 1)]
    for scan, grid in zip(scans, model.image_attention(scans), strict=True):
        model.model.vision_tower([scan])
        expected = seen[-1][0].mean((0, 1))[: grid.numel()].view(grid.shape)
        torch.testing.assert_close(grid, expected)
        assert 0 < grid.sum() < 1
    assert [tuple(grid.shape) for grid in model.image_attention(scans)] == [(4, 3, 2), (2, 2, 1)]
