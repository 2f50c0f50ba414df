"""A toy study: how much of a network can be pruned before it computes another function?"""
