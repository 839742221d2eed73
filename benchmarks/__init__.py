"""Benchmarks: each compares its sides in one run and prints a table of medians and ratios."""
