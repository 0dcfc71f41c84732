"""What a scraper of Prometheus sees: requests, tokens, times, and how full the batch is."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """In a registry of their own, so that two servers in one process do not share them."""

    def __init__(self, engine: Any):
        self.registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"mmrl_{name}", words, labels, registry=self.registry)

        def seconds(name: str, words: str, *labels: str) -> Histogram:
            return Histogram(
                f"mmrl_{name}_seconds", words, labels, buckets=SECONDS, registry=self.registry
            )

        def gauge(name: str, words: str, value: Any) -> None:
            Gauge(f"mmrl_{name}", words, registry=self.registry).set_function(value)

        self.requests = counter("requests", "Requests answered.", "path", "status")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "mode")
        self.completion_tokens = counter("completion_tokens", "Tokens drawn.", "mode")
        self.malformed = counter("malformed_tool_calls", "Tool calls that cannot be read.")
        self.exchanges_lost = counter("exchanges_lost", "Exchanges that could not be logged.")
        self.request_seconds = seconds(
            "request", "Until an answer, or the beginning of a stream.", "path"
        )
        self.first_token = seconds("first_token", "From a request to its first token.", "mode")
        gauge("sequences_running", "Sequences that have a row.", lambda: engine.batch.load[0])
        gauge("sequences_waiting", "Sequences that wait for one.", lambda: engine.batch.load[1])
        gauge("rows", "Rows of the batch.", lambda: engine.rows)
        gauge(
            "row_occupancy",
            "Share of row-steps of decoding that drew a token.",
            lambda: engine.batch.occupancy,
        )
