"""Tables by hand, splits that lose nothing, and what is refused."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from sharpjax import catalog
from sharpjax.data import Modular, modular
from sharpjax.errors import UserError

# Modulo 5, a down and b across.
BY_HAND = {
    "+": [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [2, 3, 4, 0, 1], [3, 4, 0, 1, 2], [4, 0, 1, 2, 3]],
    "-": [[0, 4, 3, 2, 1], [1, 0, 4, 3, 2], [2, 1, 0, 4, 3], [3, 2, 1, 0, 4], [4, 3, 2, 1, 0]],
    "*": [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [0, 3, 1, 4, 2], [0, 4, 3, 2, 1]],
    "/": [[0, 0, 0, 0], [1, 3, 2, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 2, 3, 1]],  # b = 1 to 4
}

# In Python's integers, which do not overflow.
FORMULAS = {
    "x^2+y": lambda a, b, p: a * a + b,
    "x^3+y": lambda a, b, p: a * a * a + b,
    "x^2+y^2": lambda a, b, p: a * a + b * b,
    "x^2+xy+y^2": lambda a, b, p: a * a + a * b + b * b,
    "x^2+xy+y^2+x": lambda a, b, p: a * a + a * b + b * b + a,
    "x^3+xy": lambda a, b, p: a * (a * a + b),
    "x^3+xy^2+y": lambda a, b, p: a * a * a + a * b * b + b,
    "+*": lambda a, b, p: a + b if a % 2 == 0 else a * b,
    "+-": lambda a, b, p: a + b if a % 2 == 0 else a - b,
    "-/": lambda a, b, p: a - b if b % 2 == 0 else a * pow(b, p - 2, p),
}


def test_the_names_are_all_tested():
    groups = {"s5", "s5 xyx", "s5 xyx^-1"}
    assert set(modular.OPERATIONS) == set(BY_HAND) | set(FORMULAS) | groups


@pytest.mark.parametrize("name", BY_HAND)
def test_small_tables_by_hand(name):
    tokens, label = modular.table(name, modulus=5)
    b = np.arange(5) if name != "/" else np.arange(1, 5)
    expected = [[i, 5, j, 6] for i in range(5) for j in b]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(label, np.ravel(BY_HAND[name]))
    assert tokens.dtype == label.dtype == np.int32


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("modulus", [2, 6, 13])
def test_every_operation_is_its_formula(name, modulus):
    if modular.OPERATIONS[name].divides and modulus == 6:
        return
    tokens, label = modular.table(name, modulus=modulus)
    assert len(label) == modulus**2
    for (a, _, b, _), c in zip(tokens.tolist(), label.tolist(), strict=True):
        assert c == FORMULAS[name](a, b, modulus) % modulus


def test_division_undoes_multiplication():
    tokens, label = modular.table("/", modulus=97)
    a, b = tokens[:, 0], tokens[:, 2]
    assert len(label) == 97 * 96 and b.min() == 1
    np.testing.assert_array_equal(b.astype(int) * label % 97, a)


def test_permutations_are_a_group_of_120():
    """Against functions of five numbers: x first, then y, then what follows."""
    everyone = list(itertools.permutations(range(5)))
    tokens, label = modular.table("s5", modulus=120)
    assert len(label) == 120**2 and tokens[0].tolist() == [0, 120, 0, 121]
    table = label.reshape(120, 120)
    for square in (table, table.T):  # each permutation once in every row and column
        np.testing.assert_array_equal(np.sort(square, 1), np.tile(np.arange(120), (120, 1)))
    twice = modular.table("s5 xyx", modulus=120).label.reshape(120, 120)
    conjugate = modular.table("s5 xyx^-1", modulus=120).label.reshape(120, 120)
    for i, j in np.random.default_rng(0).integers(120, size=(50, 2)):
        x, y = everyone[i], everyone[j]
        assert everyone[table[i, j]] == tuple(y[x[at]] for at in range(5))
        assert everyone[twice[i, j]] == tuple(x[y[x[at]]] for at in range(5))
        assert everyone[conjugate[i, j]] == tuple(x.index(y[x[at]]) for at in range(5))


def test_cubes_of_the_largest_modulus_do_not_overflow():
    p = catalog.MAX_MODULUS
    a = np.array([p - 1], np.int64)
    assert modular.OPERATIONS["x^3+xy^2+y"].apply(a, a, p)[0] == (p - 1) * (2 * (p - 1) ** 2 + 1)


@pytest.mark.parametrize(
    ("fraction", "train"), [(0.5, 4705), (0.65, 6116), (0.8, 7528), (0.0001, 1), (0.999, 9400)]
)
def test_a_split_loses_nothing_and_repeats_nothing(fraction, train, key):
    one, two = modular.split(key, 9409, fraction)
    assert one.shape == (train,) and two.shape == (9409 - train,)
    np.testing.assert_array_equal(np.sort(np.concatenate([one, two])), np.arange(9409))


def test_a_fraction_is_the_decimal_number_it_is_written_as(key):
    assert 0.29 * 100 < 29 < 0.57 * 100 + 1e-9 and 0.07 * 100 > 7  # what floats make of them
    for fraction, train in ((0.29, 29), (0.57, 57), (0.07, 7)):
        assert len(modular.split(key, 100, fraction)[0]) == train
        narrow: Any = np.float32(fraction)
        assert modular.num_train(100, narrow) == train


def test_the_split_is_a_function_of_the_key_alone(key):
    def parts(operation, key):
        data = Modular(operation, modulus=11, train_fraction=0.5).load(key)
        return data.splits.train.input[:, [0, 2]], data.digests

    pairs, digests = parts("+", key)
    again, same = parts("+", key)
    np.testing.assert_array_equal(pairs, again)
    assert digests == same
    np.testing.assert_array_equal(pairs, parts("*", key)[0])  # as many pairs, another operation
    assert digests != parts("*", key)[1]
    other, others = parts("+", jax.random.key(1))
    assert (pairs != other).any() and all(digests[part] != others[part] for part in digests)


def test_float64_does_not_move_the_split(key, x64):
    wide = Modular("+", modulus=23, train_fraction=0.8).load(key)
    with jax.enable_x64(False):
        narrow = Modular("+", modulus=23, train_fraction=0.8).load(key)
    assert wide.digests == narrow.digests


def test_the_split_is_random_and_known(key):
    """Each pair trains with probability f; and the numbers of one key, so that they stay."""
    keys = jax.random.split(key, 400)
    train, _ = jax.vmap(lambda one: modular.split(one, 20, 0.3))(keys)
    counts = np.bincount(np.ravel(train), minlength=20)
    assert abs(counts - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)
    np.testing.assert_array_equal(train[7], modular.split(keys[7], 20, 0.3)[0])
    assert modular.split(key, 8, 0.5)[0].tolist() == [0, 1, 5, 6]


def test_load_puts_the_parts_together(key):
    said = Modular("/", modulus=7, train_fraction=0.5)
    data = said.load(key)
    train, test, validation = data.splits
    whole = modular.table("/", modulus=7)
    rows = {(*tokens, c) for tokens, c in zip(whole.tokens.tolist(), whole.label, strict=True)}
    parts = [
        (*tokens, c)
        for part in (train, test)
        for tokens, c in zip(part.input.tolist(), part.label, strict=True)
    ]
    assert set(parts) == rows and len(parts) == len(rows) == 42
    assert data.num_classes == said.num_classes == 9
    assert train.label.max() < 7 and train.input.max() == 8
    assert len(train.label) == said.num_train == 21
    assert train.input.dtype == train.label.dtype == np.int32
    assert validation is None and train.mean is None


def test_the_numbers_are_those_of_earlier_runs(key):
    # A golden value: a change of it changes every result on these data.
    assert Modular("+", modulus=7, train_fraction=0.5).load(key).digests == {
        "train": "8d6fb95a76845c55e97a3293d1c7f40d28f279a94ced6e5b0365796ddf04bdbe",
        "test": "362aed5d33696cbd28a230d1801a1610a05791fd817e0738452f19f33c46c4b3",
    }


@pytest.mark.parametrize("operation", modular.OPERATIONS)
def test_sizes_are_known_without_the_table(operation):
    modulus = modular.OPERATIONS[operation].size or 11
    said = Modular(operation, modulus, 0.3)
    num = len(modular.table(operation, modulus=modulus).label)
    assert modular.num_pairs(operation, modulus=modulus) == num
    assert said.num_train == len(modular.split(jax.random.key(0), num, 0.3)[0])


def test_a_split_needs_a_key():
    with pytest.raises(UserError, match="each seed has its own split; give the key"):
        Modular("+", modulus=7, train_fraction=0.5).load()


@pytest.mark.parametrize(
    ("operation", "changes", "message"),
    [
        ("/", {"modulus": 91}, "modulo 91 = 7 x 13 not every number has an inverse; give a prime"),
        ("-/", {"modulus": 4}, "give a prime"),
        ("plus", {}, "unknown operation 'plus'"),
        ("x^2+y^3", {}, "did you mean 'x^2+y^2'?"),
        ("+", {"train_fraction": 0.0}, "train_fraction=0.0; give a number above 0 and below 1"),
        ("+", {"train_fraction": 1.0}, "below 1"),
        ("+", {"train_fraction": -0.2}, "above 0"),
        ("+", {"train_fraction": float("nan")}, "above 0"),
        ("+", {"modulus": 2, "train_fraction": 0.8}, "of 4 pairs leaves none to test"),
        ("/", {"modulus": 2, "train_fraction": 0.6}, "larger modulus"),
        ("+", {"modulus": 1}, "modulus must be a whole number >= 2, got 1"),
        ("+", {"modulus": 9.7}, "whole number"),
        ("s5", {}, "modulus=97, but 's5' is on the 120 permutations of five things; give 120"),
        ("+", {"modulus": 5000}, "25,000,000 pairs; give 4096 or less"),
    ],
)
def test_bad_input_is_one_line(operation, changes, message):
    with pytest.raises(UserError) as caught:
        Modular(operation, **{"modulus": 97, "train_fraction": 0.5} | changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
