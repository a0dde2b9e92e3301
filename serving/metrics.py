"""Numbers for Prometheus: requests, scans, batches, tokens. None of them holds a text, a name or an id."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("radfm_requests", "Requests by route and status.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "radfm_request_seconds", "From the first byte to the last.", ["route"], buckets=SECONDS, registry=registry
        )
        self.first_token_seconds = Histogram(
            "radfm_first_token_seconds", "From the first byte to the first token.", buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("radfm_chat_in_progress", "Chat requests that are answered or wait.", registry=registry)
        self.scans = Counter("radfm_scans", "Scans by outcome: read, refused, killed.", ["outcome"], registry=registry)
        self.cache = Counter("radfm_feature_cache", "Scans looked up, by hit and miss.", ["outcome"], registry=registry)
        self.cache_bytes = Gauge("radfm_feature_cache_bytes", "Image tokens that are kept.", registry=registry)
        self.files_bytes = Gauge("radfm_files_bytes", "Uploaded files that are kept.", registry=registry)
        self.encoded = Histogram(
            "radfm_encode_batch_scans", "Scans encoded at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.answered = Histogram(
            "radfm_decode_batch_rows", "Answers generated at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.prompt_tokens = Counter("radfm_prompt_tokens", "Tokens of prompts, scans included.", registry=registry)
        self.completion_tokens = Counter("radfm_completion_tokens", "Tokens of answers.", registry=registry)

    def text(self) -> bytes:
        """The numbers in Prometheus' text format."""
        return generate_latest(self._registry)
