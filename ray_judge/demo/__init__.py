"""The demo: synthetic pairs with known truth and a tiny judge trained on some of their kinds."""
