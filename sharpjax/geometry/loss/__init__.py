"""What a loss is: its parts, what it reads, and what is checked before a number rests on it."""
