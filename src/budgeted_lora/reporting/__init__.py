"""From result files to what a person reads: tables, figures and one HTML page."""
