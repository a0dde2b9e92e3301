"""Models that RadBench can ask: RadFM, other image-text models of transformers, OpenAI-compatible endpoints."""
