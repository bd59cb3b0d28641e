"""Distillation of one student: loss, teacher cache, loop, resumable state."""
