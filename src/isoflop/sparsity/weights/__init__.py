"""How sparse weights, their gradients and the optimizer's state are stored."""
