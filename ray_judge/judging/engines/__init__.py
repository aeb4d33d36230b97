"""What runs a local judge: one module per engine, behind narrow seams (`engine.py`)."""
