"""Programs that make what the package ships; none of them is in the wheel."""
