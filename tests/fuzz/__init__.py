"""Fuzzing of every reader whose files may come from somebody else or be damaged."""
