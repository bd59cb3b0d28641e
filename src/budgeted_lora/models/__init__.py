"""Models: students, trained students with adapters, compressed students that transformers loads."""
