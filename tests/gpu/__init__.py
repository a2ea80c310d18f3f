"""Tests on a real card, beside the CPU. They were written without a card at hand; the same bodies pass on a CPU."""
