"""An OpenAI-compatible server: scans and questions over HTTP, answers from RadFM."""
