"""Students out: folders that load without this package, and what is done with them."""
