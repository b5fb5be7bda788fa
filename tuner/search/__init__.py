"""A tuning run: which form at which site, by measured accuracy and latency."""
