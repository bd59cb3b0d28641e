"""What a whole scale costs before it runs, and whether a machine can run it."""
