"""What this service costs and gives, beside what one would use instead: ``python -m benchmarks.NAME``; never in CI."""
