"""The published weights → a RadFM repository, and back. `docs/conversion.md` describes it for users.

- names: the table of tensor names
- checkpoint: reading tensors without running the pickle
- tensors: how each tensor of the new model is made and written
- convert: the whole conversion, and the way back
- tokenizer: LLaMA's tokenizer as the published code used it
- decoder: another decoder behind the published vision tower
- parity: comparison with the published code's numbers
- memory: the bytes that a model's weights take
"""
