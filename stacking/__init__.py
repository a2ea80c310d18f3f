"""Pre-trains BERT by progressive stacking."""

__version__ = "0.1.0"
