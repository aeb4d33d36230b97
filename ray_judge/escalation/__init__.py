"""Phase B: the strong judge, asked under a cap. `escalate.py` is where it begins."""
