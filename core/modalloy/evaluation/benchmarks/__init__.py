"""The core's own benchmarks: readers of their files."""
