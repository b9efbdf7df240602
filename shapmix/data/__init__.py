"""Clips, data sets, splits and long-tailed training lists."""
