"""Clips, data sets and long-tailed lists."""
