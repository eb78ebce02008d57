"""What tables of labels have in common, whatever file they lie in: rows, cells, the roles of columns."""
