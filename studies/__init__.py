"""Studies of what the networks learn: `python -m studies.emergence.study`."""
