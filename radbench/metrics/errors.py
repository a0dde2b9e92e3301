"""The error of metrics that lack something: a package, weights, a file."""


class MetricError(ValueError):
    """A metric that cannot be computed: one line that names it and the remedy."""
