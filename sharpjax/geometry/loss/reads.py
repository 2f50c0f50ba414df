"""What a function reads besides its arguments: closure, defaults, globals, attributes.

These are found from the code: closure cells, defaults, and the globals and attributes whose names
are in the bytecode, through plain functions, methods, `functools.partial`, `jax.jit` and other
wrappers. Whether the same values are read again is decided as follows.

* Numbers and strings are compared by value, and containers by their items.
* jax arrays, which cannot change, are compared by identity, numpy arrays by content.
* Objects are compared by the attributes that the code names.
* If the code may compute names (`_ANY_ATTRIBUTE`: `getattr`, `vars`), all attributes count. Of the
  attributes of a class, a module or a function, those that are functions, classes or modules are
  then compared by identity, unless the code names them.
* For classes and modules in `site-packages`, only the names in the code count.
* Libraries (`_LIBRARIES`, the standard library) count as constants.
"""

import collections
import dataclasses
import dis
import enum
import functools
import hashlib
import itertools
import pathlib
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

_LIBRARIES = frozenset(
    "chex einops equinox flax haiku jax jaxlib jaxtyping ml_dtypes numpy optax orbax scipy "
    "sharpjax".split()
)
_EQUAL_BY_VALUE = frozenset("jax jaxlib ml_dtypes numpy".split())  # shardings, types, devices
MOST_ITEMS = 10_000
_MOST_BYTES = 2**20  # largest numpy array that is compared by content
_PLAIN = (bool, int, str, bytes, type(None), type(...), type(NotImplemented), range, np.dtype)
_ANY_ATTRIBUTE = frozenset(
    "getattr vars __dict__ __getattribute__ attrgetter methodcaller getattr_static getmembers "
    "asdict astuple fields replace".split()
)
_BY_TEXT = _ANY_ATTRIBUTE | {"hasattr"}  # functions that take the name of an attribute as a string
_ANY_NAME = frozenset("globals locals eval exec".split())
_ASKED = frozenset("canonical sample square_root".split())  # what geometry reads of a likelihood
_ABSENT = "absent"


class Found:
    """The result of `look`.

    Attributes:
        tokens: equal to those of another look if the same values are read.
        names: attributes that the code names.
        reads: whether anything that is read may change.
        is_opaque: whether something could not be inspected.
    """

    __slots__ = ("is_opaque", "names", "reads", "tokens")

    def __init__(self, tokens, names, reads, is_opaque):
        self.tokens, self.names, self.reads, self.is_opaque = tokens, names, reads, is_opaque


def look(fn: Any, names: frozenset[str] = frozenset(), skip: type | None = None) -> Found:
    """What a function, or the static part of a callable pytree, now reads besides its arguments.

    Takes about .01 to .06 ms.

    Args:
        fn: function or callable pytree.
        names: attributes that its code is known to name, from an earlier look.
        skip: a type of pytree nodes that are left out, since they look up their own reads.

    >>> settings = {"scale": 2.0}
    >>> fn = functools.partial(lambda settings, x: settings["scale"] * x, settings)
    >>> before = look(fn).tokens
    >>> settings["scale"] = 3.0
    >>> look(fn).tokens == before
    False
    """
    structure = jax.tree.structure(fn)
    is_leaf = jax.tree_util.treedef_is_leaf(structure)
    names = names or _ASKED
    while True:
        walk = _Walk(names, skip)
        try:
            walk.visit(fn) if is_leaf else walk.structure(structure)
        except RecursionError:  # the depth at which this happens depends on the caller
            return Found((), names, True, True)
        is_long = len(walk.tokens) > MOST_ITEMS
        if walk.names <= names or is_long:
            return Found(tuple(walk.tokens), names, walk.reads, walk.is_opaque or is_long)
        names = names | walk.names


class _Same:
    """Equal to another one for the same object, as long as that object lives."""

    __slots__ = ("_number", "_of")

    def __init__(self, x):
        self._number = id(x)
        try:
            self._of = weakref.ref(x)
        except TypeError:
            self._of = lambda: x

    def __hash__(self):
        return self._number

    def __eq__(self, other):
        mine = self._of()
        return mine is not None and isinstance(other, _Same) and mine is other._of()

    def __reduce__(self):
        return _Same, (object(),)  # in another process it equals nothing


class _Walk:
    """One walk through everything that is read, given the attributes known to be named."""

    def __init__(self, names: frozenset[str], skip: type | None):
        self.skip = skip
        self.wanted, self.known = names, sorted(names)
        self.all_attributes = not _ANY_ATTRIBUTE.isdisjoint(names)
        self.names: set[str] = set()
        self.tokens: list[Any] = []
        self.seen: dict[int, tuple[int, Any]] = {}
        self.types: set[int] = set()
        self.reads = self.is_opaque = False

    def visit(self, x: Any) -> None:
        kind = type(x)
        if kind in _PLAIN:
            self.tokens.append((kind, x))
            return
        if kind is float or kind is complex:
            self.tokens.append((kind, repr(x)))  # NaN equals itself, and -0.0 is not 0.0
            return
        if isinstance(x, jax.Array):
            self.tokens.append(_Same(x))
            return
        if id(x) in self.seen:
            self.tokens.append(("again", self.seen[id(x)][0]))
            return
        if len(self.tokens) > MOST_ITEMS:
            self.is_opaque = True
            return
        self.seen[id(x)] = (len(self.seen), x)  # kept, so that no other object gets its id
        if isinstance(x, types.FunctionType):
            self.function(x)
        elif isinstance(x, np.ndarray | np.generic):
            self.array(x)
        elif isinstance(x, types.MethodType):
            self.visit(x.__func__)
            self.visit(x.__self__)
        elif isinstance(x, functools.partial):
            self.tokens.append("partial")
            self.items((x.func, x.args, x.keywords))
        elif isinstance(x, types.ModuleType):
            self.module(x)
        elif isinstance(x, type):
            self.type(x)
        elif isinstance(x, tuple | list | collections.deque):
            self.tokens.append((kind, len(x)))
            self.reads |= not isinstance(x, tuple)
            self.items(x)
            self.beside_items(x)
        elif isinstance(x, Mapping):
            self.tokens.append((kind, len(x)))
            self.reads = True
            self.items(part for item in x.items() for part in item)
            self.beside_items(x)
        elif isinstance(x, set | frozenset) and all(type(y) in _PLAIN for y in x):
            self.tokens.append((kind, frozenset(x)))
            self.reads |= kind is not frozenset
        elif isinstance(x, types.BuiltinFunctionType):
            self.tokens.append(_Same(x))
            self.called(x.__name__)
        elif isinstance(x, enum.Enum | np.ufunc):
            self.tokens.append(_Same(x))
        elif isinstance(x, int | float | complex | str | bytes):
            self.tokens.append((kind, repr(x)))
        else:
            self.object(x)

    def items(self, values) -> None:
        for value in itertools.islice(values, MOST_ITEMS + 1):
            self.visit(value)

    def beside_items(self, x: Any) -> None:
        """The attributes of a container whose class is not from a library."""
        if not _is_library(type(x).__module__):
            self.type(type(x))
            held = _attribute(x, "__dict__") or {}
            self.attributes(held, list(held) if self.all_attributes else self.known)

    def called(self, name: str) -> None:
        """Adds a function by its own name, whatever the code calls it: `fetch = getattr`."""
        if name in _ANY_ATTRIBUTE:
            self.names.add(name)

    def structure(self, structure: Any) -> None:
        """Visits the node types of a pytree and their static parts, without its leaves."""
        data = structure.node_data()
        if data is None or data[0] is self.skip:
            return
        self.items(data)
        for child in structure.children():
            self.structure(child)

    def function(self, x: Any) -> None:
        self.tokens.append(_Same(x))
        for cell in x.__closure__ or ():
            try:
                self.visit(cell.cell_contents)
            except ValueError:  # not filled yet
                self.tokens.append(_ABSENT)
        self.items(x.__defaults__ or ())
        self.items((x.__kwdefaults__ or {}).values())
        scope = x.__globals__
        is_library = _is_library(scope.get("__name__"))
        if x.__dict__:
            self.attributes(x.__dict__, ("__wrapped__", *self.known))
            if not is_library:
                self.others(x.__dict__, x.__module__)
        if is_library:
            self.called(x.__name__)
            return
        self.reads = True
        read, imported, attributes = _named_in(x.__code__)
        self.names |= attributes
        self.is_opaque |= not _ANY_NAME.isdisjoint(read)
        for name in read:
            self.visit(scope.get(name, _ABSENT))
        for name in imported:
            self.visit(sys.modules.get(name, _ABSENT))

    def array(self, x: Any) -> None:
        if x.dtype.hasobject or x.nbytes > _MOST_BYTES:
            self.tokens.append(_Same(x))
            self.reads = self.is_opaque = True
            return
        self.reads |= isinstance(x, np.ndarray)
        digest = hashlib.blake2b(x.tobytes(), digest_size=16).digest()
        self.tokens.append((str(x.dtype), x.shape, digest))

    def module(self, x: Any) -> None:
        self.tokens.append(("module", x.__name__))
        if not _is_library(x.__name__):
            self.attributes(vars(x), self.known)
            self.others(vars(x), x.__name__)

    def attributes(self, found: Mapping[str, Any], names) -> None:
        for name in names:
            if name in found:
                self.tokens.append(name)
                self.visit(found[name])

    def others(self, found: Mapping[str, Any], module: str) -> None:
        """Visits values under names that the code does not contain, but may compute.

        Python's own names and installed packages are left out; they would cost milliseconds. Code
        is compared by identity: a module calls many functions, most of which the loss does not use.
        """
        if not self.all_attributes or _is_installed(module):
            return
        for name, value in found.items():
            if name in self.wanted or name.startswith("__") or name == "_abc_impl":
                continue
            self.tokens.append(name)
            value = _function_of(value)
            if _is_code(value):
                self.tokens.append(_Same(value))
            else:
                self.visit(value)

    def type(self, x: type) -> None:
        self.tokens.append(_Same(x))
        if id(x) in self.types:
            return
        self.types.add(id(x))
        self.called(x.__name__)
        if not _is_library(type(x).__module__):
            self.visit(type(x))
        for base in x.__mro__[:-1]:
            if not _is_library(base.__module__):
                self.reads = True
                for name, value in vars(base).items():
                    special = isinstance(value, types.FunctionType) and _is_operator(name)
                    if special or name in self.wanted:
                        self.tokens.append(name)
                        self.visit(_function_of(value))
                self.others(vars(base), base.__module__)

    def object(self, x: Any) -> None:
        kind = type(x)
        root = kind.__module__.partition(".")[0]
        wrapped, held = _attribute(x, "__wrapped__"), _attribute(x, "__dict__")
        if wrapped is None and root in _EQUAL_BY_VALUE and _is_hashable(x):
            self.tokens.append(x)
            return
        self.reads |= root not in _LIBRARIES
        self.tokens.append(kind)
        if wrapped is not None:
            self.visit(wrapped)
        self.type(kind)
        found = dict(_slots(x)) | (held or {})
        hidden = held is None and wrapped is None and kind.__basicsize__ > object.__basicsize__
        if not found and (hidden or kind is object):
            self.tokens.append(_Same(x))
            self.is_opaque |= hidden
            self.reads |= hidden
        elif _has_library_base(kind):
            fields = dataclasses.fields(x) if dataclasses.is_dataclass(x) else ()
            self.attributes(found, [field.name for field in fields] or list(found))
        elif self.all_attributes:
            self.attributes(found, list(found))
        else:
            self.attributes(found, self.known)


def _has_library_base(kind: type) -> bool:
    """Whether library code, which is not walked through, may read any attribute of such an object;
    an example is Flax and its modules."""
    return any(b.__module__.partition(".")[0] in _LIBRARIES for b in kind.__mro__[:-1])


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _attribute(x: Any, name: str) -> Any:
    """An attribute, or None; without running the user's code, such as a `__getattr__`."""
    try:
        return object.__getattribute__(x, name)
    except AttributeError:
        return None


def _slots(x: Any) -> Iterator[tuple[str, Any]]:
    for base in type(x).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield name, _attribute(x, name)


def _function_of(value: Any) -> Any:
    """The function behind an entry of a class, such as that of a property or a static method."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    if isinstance(value, functools.cached_property):
        return value.func
    # A slot holds no value itself: its value is looked up in the object.
    return None if isinstance(value, _SLOTS) else value


def _is_code(value: Any) -> bool:
    kinds = types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type
    return isinstance(value, kinds) or _attribute(value, "__wrapped__") is not None


_SLOTS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    type(vars(collections.namedtuple("_Pair", "first"))["first"]),
)

_MADE_BY_DATACLASS = frozenset(
    "__init__ __new__ __repr__ __eq__ __hash__ __setattr__ __delattr__ __post_init__ "
    "__init_subclass__ __replace__ __getstate__ __setstate__ __del__ __lt__ __le__ __gt__ "
    "__ge__".split()
)


def _is_operator(name: str) -> bool:
    """Whether the method is called by syntax, so that no code names it: `self(x)`, `self[i]`,
    `a + b`."""
    return name.startswith("__") and name not in _MADE_BY_DATACLASS


@functools.lru_cache(maxsize=4096)
def _is_library(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    return root in _LIBRARIES or root in sys.stdlib_module_names and root != "__main__"


@functools.lru_cache(maxsize=4096)
def _is_installed(module: str | None) -> bool:
    path = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(pathlib.Path(path).parts)


@functools.lru_cache(maxsize=4096)
def _named_in(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """The globals, modules and attributes that a code object, and the code inside it, name."""
    read: dict[str, None] = {}
    imported: dict[str, None] = {}
    attributes = set()
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read[name] = None
            if name in _BY_TEXT:
                attributes.add(name)
        elif instruction.opname == "IMPORT_NAME":
            imported[name] = None
        elif instruction.arg is not None and "ATTR" in instruction.opname:
            attributes.add(name)
        elif instruction.opname in ("LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(name)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more, modules, named = _named_in(inner)
            read |= dict.fromkeys(more)
            imported |= dict.fromkeys(modules)
            attributes |= named
    if not _BY_TEXT.isdisjoint(attributes):
        texts = [text for text in code.co_consts if isinstance(text, str)]
        attributes |= {name for text in texts for name in text.split(".") if name.isidentifier()}
    return tuple(read), tuple(imported), frozenset(attributes)
