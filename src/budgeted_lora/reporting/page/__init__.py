"""The report page: what it says, the facts it shows, and its rendering."""
