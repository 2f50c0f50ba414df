"""What a process of its own draws in a test: it imports nothing heavy."""


def draws(seed):
    return {("draw/value", (("i", i),)): seed + 0.5**i for i in range(3)}
