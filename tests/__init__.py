"""All tests, and the provider that they run against: `from tests.provider import ...`."""
