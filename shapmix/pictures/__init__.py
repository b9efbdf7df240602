"""Plots of confusion matrices, saliency, clips and explanations."""
