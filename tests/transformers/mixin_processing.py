"""transformers' `ProcessorTesterMixin` and `ImageProcessingTestMixin`, with the processor of the demo checkpoint."""

import unittest
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_processing_common import ProcessorTesterMixin

from radfm.configuration_radfm import RadFMConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.processing_radfm import RadFMProcessor

ROOT = Path(__file__).parent.parent.parent

# Known to the Auto classes by name, as a class of transformers is; the mixins do not pass `trust_remote_code`.
AutoProcessor.register(RadFMConfig, RadFMProcessor)
RadFMProcessor._auto_class = RadFMImageProcessor._auto_class = None


class RadFMProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = RadFMProcessor

    @classmethod
    def _setup_image_processor(cls):
        return RadFMImageProcessor(image_size=48, max_slices=8)

    @classmethod
    def _setup_tokenizer(cls):
        return AutoTokenizer.from_pretrained(ROOT, config=PreTrainedConfig())

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4}


class RadFMImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, min_resolution=20, max_resolution=40, **{"image_size": 32, "max_slices": 8, **kwargs})

    def _get_image_processing_classes(self):
        return {"pil": RadFMImageProcessor}


class RadFMImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = RadFMImageProcessingTester
