"""What runs a local judge: one module per engine, behind one narrow seam."""
