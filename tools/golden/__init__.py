"""What `tools/make_golden.py` is made of: the cases as data, their values, and the files."""
