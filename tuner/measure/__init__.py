"""Accuracy, latency, and the process that takes the latencies."""
