"""The jobs of the workflow, one file per rule. Only stages read and write result files."""
