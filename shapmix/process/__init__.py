"""Other processes, devices, signals, memory, files and errors."""
