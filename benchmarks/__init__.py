"""What hybrid's speed and size are measured with: ``make bench``, or ``python -m benchmarks --help``."""
