"""Plots: confusion, saliency, clips, explanations."""
