"""What the paper claims, the evidence from a run, and the verdicts."""
