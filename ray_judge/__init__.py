"""ray_judge: score millions of LLM outputs with a local judge, pay GPT-4 only for the doubtful."""

__version__ = "0.1.0"
