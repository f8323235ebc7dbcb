"""Each framework's own tests, run against our adapter for it: ``make test-integrations``."""
