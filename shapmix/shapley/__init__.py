"""Shapley values of body parts: the game, its exact values, explanations."""
