"""Random attentions and near misses for ``fuzz.py``: record, module, independent reference."""
