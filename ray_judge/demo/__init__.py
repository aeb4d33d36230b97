"""The demo: pairs with known truth, a tiny judge of some of their kinds, a server for the rest."""
