"""What grades a learner's backward: it is called, compared, and its mistakes are sought in a table."""
