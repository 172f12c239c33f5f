"""The UniGenBench judge: per image one verdict per test point, and the benchmark's table with intervals."""
