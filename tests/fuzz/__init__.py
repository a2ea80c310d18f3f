"""Fuzzing of everything that reads a file which somebody else may have written or something may have damaged."""
