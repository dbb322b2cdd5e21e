"""Does segmentation emerge at a small scale, and in which network? docs/emergence.md has the results."""
