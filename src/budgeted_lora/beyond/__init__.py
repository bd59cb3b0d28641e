"""What is ours and not the paper's: other starts, removal orders, ranks and truncation."""
