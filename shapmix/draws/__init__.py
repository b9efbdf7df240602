"""Random draws, each a pure function of (seed, step)."""
