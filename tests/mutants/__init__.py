"""Break one line at a time, and see the suite go red: ``make mutants``."""
