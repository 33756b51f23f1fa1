"""What developers run: the gate (`check.py`) and the benchmark (`bench.py`)."""
