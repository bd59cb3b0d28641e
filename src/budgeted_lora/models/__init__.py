"""Models: students, adapters during training, compressed students that transformers loads."""
