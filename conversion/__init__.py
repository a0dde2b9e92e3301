"""The published weights and this repository: names, reading, conversion, tokenizer, another decoder, parity."""
