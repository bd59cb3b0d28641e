"""The compute budget: cost model, schedule, controller, planned structure. Numbers only, no torch."""
