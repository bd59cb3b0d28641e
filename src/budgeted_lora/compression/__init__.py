"""Compression: what a trained student is turned into for use."""
