"""How much memory a call will take, computed from shapes before anything is compiled."""
