"""Tests of transformers that cannot apply to RadFM: class of the tests → pattern of the name → reason."""

PACKED = "the patches of all scans are packed in one tensor: there is no batch axis"
NO_SCANS = "takes the scans away and leaves their placeholders, which RadFM refuses; RadFMTextTest runs it on texts"

EXCLUDED = {
    "RadFMModelTest": {
        "test_eager_matches_sdpa_inference.*": NO_SCANS,
        "test_model_rope_scaling_from_config.*": NO_SCANS,
        "test_get_image_features_output.*": PACKED,
        "test_generation_tester_mixin_inheritance": "the sdist has no suite for `generate`; its laws are in tests/model",
    },
    "RadFMVisionModelTest": {
        "test_attention_outputs": PACKED,
        "test_hidden_states_output": PACKED,
        "test_retain_grad_hidden_states_attentions": PACKED,
        "test_model_get_set_embeddings": "the input embedding of the tower is a patch embedding, no nn.Embedding",
    },
}
