"""Train the demo checkpoint: `python -m radfm.training.demo --help`."""

from radfm.configuration_radfm import RadFMVisionConfig

VISION = RadFMVisionConfig(
    image_size=96,
    max_slices=32,
    patch_size=24,
    patch_depth=4,
    num_channels=1,
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=6,
    head_dim=32,
    intermediate_size=768,
    attention_dropout=0.0,
    perceiver_num_hidden_layers=2,
    perceiver_num_attention_heads=6,
    perceiver_head_dim=32,
    perceiver_intermediate_size=768,
)
DECODER = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
