"""How far the loss rises near the parameters."""
