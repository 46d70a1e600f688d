"""The craft of the service: small frozen types and pure functions that know nothing of HTTP, settings or log files."""
