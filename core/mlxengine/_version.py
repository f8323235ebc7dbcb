"""The one place that says which version every first-party distribution has."""

__version__ = "0.1.0"
