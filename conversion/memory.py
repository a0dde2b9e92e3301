"""The memory that a model's weights take in each precision, worked out from its config."""

from dataclasses import dataclass

import torch

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration

# Precision → bytes a weight. In 8 and 4 bits only the decoder's matrices are quantised, the rest has 16 bits.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "8 bits": 1.0, "4 bits": 0.5}
HALF_PRECISION = 2.0


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters of a model, and how many of them are the decoder's matrices."""

    total: int
    decoder_matrices: int

    def weight_bytes(self, precision: str) -> float:
        """The bytes of all weights in a precision of `BYTES`."""
        rest = (self.total - self.decoder_matrices) * max(BYTES[precision], HALF_PRECISION)
        return self.decoder_matrices * BYTES[precision] + rest


def count_parameters(config: RadFMConfig) -> ParameterCount:
    """Count the parameters of a model of these sizes without making one."""
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(config)
    decoder = model.model.language_model
    matrices = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, torch.nn.Linear))
    return ParameterCount(sum(parameter.numel() for parameter in model.parameters()), matrices)
