"""Training of the tiny judge that the demo ships: `python -m tools.demo_judge.train --out DIR`."""
