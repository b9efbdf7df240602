"""From a configuration to trained checkpoints."""
