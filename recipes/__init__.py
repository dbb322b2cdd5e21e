"""How the shipped weights were made: data, composites, training and measuring, outside the wheel."""
