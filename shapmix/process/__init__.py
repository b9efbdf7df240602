"""What concerns the process: other processes, signals, memory, errors."""
