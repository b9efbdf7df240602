"""Every random draw, as a function of (seed, step)."""
