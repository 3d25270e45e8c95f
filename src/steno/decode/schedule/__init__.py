"""Which rows of a batch take part in a step. One schedule stands in a plan."""
