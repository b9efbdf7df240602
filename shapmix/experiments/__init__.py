"""Experiments: a plan of runs, the engines that train them, and the tables of their results."""
