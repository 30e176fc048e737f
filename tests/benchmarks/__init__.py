"""Load and micro-benchmarks; none of them is a test."""
