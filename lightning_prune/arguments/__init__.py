"""Arguments of constructors and functions, checked against the annotations."""
