"""Budgeted LoRA: distillation as structured compute allocation, regenerated end to end."""

__version__ = "0.3.0"
