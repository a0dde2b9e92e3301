"""Tests of transformers that cannot apply to RadFM: class of the tests → pattern of the name → reason."""

PACKED = "the patches of all scans are packed in one tensor: there is no batch axis"
NO_SCANS = "takes the scans away and leaves their placeholders, which RadFM refuses; RadFMTextTest runs it on texts"
SETTINGS = "passes settings that RadFM's processors do not have, such as do_rescale, and refuse by name"
LIST = "pixel_values is a list of tensors"
NO_VIDEO = "passes videos, which RadFM refuses"
TRUST = "loads a folder by the Auto classes without trust_remote_code; tests/model/test_processing.py loads with it"
INTERNET = "fetches an image from the internet"

EXCLUDED: dict[str, dict[str, str]] = {
    "RadFMModelTest": {
        "test_eager_matches_sdpa_inference.*": NO_SCANS,
        "test_model_rope_scaling_from_config.*": "draws ids at random, the placeholder of a scan among them",
        "test_get_image_features_output.*": PACKED,
        "test_bc_cache_name_forward": "wants a warning for `past_key_values`, the only name of the cache before 5.24",
        "test_generation_tester_mixin_inheritance": "the sdist has no suite for `generate`; its laws are in tests/model",
    },
    "RadFMVisionModelTest": {
        "test_attention_outputs": PACKED,
        "test_hidden_states_output": PACKED,
        "test_retain_grad_hidden_states_attentions": PACKED,
        "test_model_get_set_embeddings": "the input embedding of the tower is a patch embedding, no nn.Embedding",
    },
    "RadFMProcessorTest": {
        "test_apply_chat_template_image_.*": SETTINGS,
        "test_args_overlap_kwargs": SETTINGS,
        "test_doubly_passed_kwargs_0_images": SETTINGS,
        "test_kwargs_overrides_default_subprocessor_kwargs_0_images": SETTINGS,
        "test_structured_kwargs_nested_from_dict_0_images": SETTINGS,
        "test_unstructured_kwargs.*_0_images": SETTINGS,
        "test_save_load_pretrained_additional_features": SETTINGS,
        "test_processor_from_and_save_pretrained_as_nested_dict": TRUST,
        "test_processor_from_pretrained_vs_from_components": TRUST,
        "test_subprocessor_defaults_.*": TRUST,
        "test_tokenizer_decode_defaults": TRUST,
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": NO_VIDEO,
        "test_model_input_names": NO_VIDEO,
        "test_processor_text_has_no_visual": INTERNET,
    },
    "RadFMImageProcessingTest": {
        "test_call_(numpy|pil|pytorch)": LIST,
        "test_call_numpy_4_channels": SETTINGS,
        "test_image_processor_from_dict_with_kwargs_has_attributes": SETTINGS,
        "test_image_processor_save_load_with_autoimageprocessor": TRUST,
        "test_new_models_require_torchvision_backend": "RadFM does without torchvision",
    },
}
