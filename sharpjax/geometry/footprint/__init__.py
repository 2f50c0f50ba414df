"""How much memory a call will take, found from shapes before anything is compiled."""
