"""From stored scores to the tables of a study, its claims and its power."""
