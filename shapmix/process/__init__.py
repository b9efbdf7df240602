"""Command frame, processes, devices, signals, memory, files and errors."""
