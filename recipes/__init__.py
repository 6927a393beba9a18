"""Five recipes, the runs that are recorded of them, and the page made of the records."""
