"""The configuration: typed sections, rows of tables, recipes, scale files."""
