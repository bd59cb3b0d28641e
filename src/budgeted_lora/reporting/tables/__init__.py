"""The tables of the report, one module per topic."""
