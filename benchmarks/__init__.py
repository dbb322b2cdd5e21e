"""What the documentation quotes of speed, memory and precision, and what measured it: `python -m benchmarks.speed`."""
