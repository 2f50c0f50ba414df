"""Folders that somebody sent: whatever lies in them is refused in one line, and nothing is run."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils import epath

from sharpjax import workdir
from sharpjax.errors import UserError, printable
from sharpjax.runs import read, standing, verify
from sharpjax.studies import __main__ as command
from sharpjax.workdir import arrays, rows, seal, untrusted
from tests.runs import listing, redo, reseal, row, sealed


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def path(sound, tmp_path):
    return pathlib.Path(shutil.copytree(sound, tmp_path / "run"))


@contextlib.contextmanager
def bounded(megabytes=150):
    """Fail where more memory is taken than the files of a run could need."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def problems(path):
    found = verify.verify(path).problems
    assert found and all("\n" not in line and printable(line) == line for line in found)
    return found


def refused(action, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def file_of(path, content):
    path.write_bytes(content)
    return epath.Path(path)


def test_a_sound_folder_has_no_problems(path):
    assert verify.verify(path).problems == ()
    reseal(path)
    assert verify.verify(path).problems == ()


# JSON.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'it names "c" twice'),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
        (b"1" * 10_000, "too large a number"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b'{"a": ', "Expecting value"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
        (b'{"\x1b[2J": 1, "\x1b[2J": 2}', "control character"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', "\\x1b[2J"),
    ],
)
def test_json_that_others_would_take(tmp_path, text, words):
    file = file_of(tmp_path / "x.json", text)
    message = refused(untrusted.read_json, file)
    assert message.startswith(f"{file} is no JSON that can be trusted: ") and words in message
    assert printable(message) == message


def test_json_as_we_write_it_is_read(tmp_path):
    value = {"a": [1, 0.1, -0.0, 5e-324, None, True, "ü\u202e"], "b": {"c": {}}}
    file = file_of(tmp_path / "x.json", workdir.json_file(value).encode())
    assert untrusted.read_json(file) == value
    deep = b"[" * untrusted.MAX_JSON_DEPTH + b"]" * untrusted.MAX_JSON_DEPTH
    untrusted.parse_json(deep, "x")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    huge = tmp_path / "x.json"
    with open(huge, "wb") as file:
        file.truncate(2**40)  # sparse: no bytes on the disk
    with bounded():
        assert "longer than 67,108,864 bytes" in refused(untrusted.read_json, epath.Path(huge))


# What is no file.


SWAPS = {
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "folder": pathlib.Path.mkdir,
}
# Where there is none, an empty folder of that name is of no harm.
ABSENT = ("registration.json", "amendments.jsonl")


@pytest.mark.parametrize("what", SWAPS)
def test_links_pipes_and_folders_in_place_of_files(path, what):
    names = [name for name, content in listing(path).items() if isinstance(content, bytes)]
    for name in (*names, *ABSENT):
        file = path / name
        content = file.read_bytes() if file.exists() else None
        file.unlink(missing_ok=True)
        SWAPS[what](file)
        try:
            found = verify.verify(path).problems
        except UserError as error:
            found = (str(error),)
        assert found or (what == "folder" and name in ABSENT), name
        assert all("root:" not in line and "\n" not in line for line in found)
        file.rmdir() if what == "folder" else file.unlink()
        if content is not None:
            file.write_bytes(content)
    assert len(names) > 15 and verify.verify(path).problems == ()


def test_a_folder_that_is_a_link(path):
    os.rename(path / "metrics", path.parent / "metrics")
    (path / "metrics").symlink_to(path.parent / "metrics")
    assert "metrics is a link" in problems(path)
    (path / "exploratory").symlink_to("/etc")
    assert "exploratory is a link" in problems(path)


def test_reports_are_not_written_through_links(path, tmp_path):
    (tmp_path / "precious").write_text("x")
    (path / "report.md").unlink()
    (path / "report.md").symlink_to(tmp_path / "precious")
    workdir.replace_reports(epath.Path(path), {"report.md": b"new"})
    assert (tmp_path / "precious").read_text() == "x"
    assert not (path / "report.md").is_symlink() and (path / "report.md").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["lease", "amendments.jsonl.tmp", "derived.json.tmp"])
def test_nothing_is_written_through_a_link(tmp_path, path, name):
    precious = tmp_path / "precious"
    precious.write_text("x")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(precious)
    folder = epath.Path(path)
    message = refused(workdir.append_amendment, folder, lambda there: there + b"line\n")
    assert "cannot be written" in message and precious.read_text() == "x"


# Names.

NAMES = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "./a",
    "a//b",
    "a\\b",
    "a\nb",
    "\x1b[2J",
    "",
    "..",
    "a/",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(path, name):
    assert not untrusted.is_safe(name)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest))
    redo(path)
    assert problems(path)[0].endswith("which is no file of a run")
    sums = path / "checkpoints" / "sam" / "4" / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes() + f"{'0' * 64}  {name}\n".encode())
    assert workdir.damage(epath.Path(sums.parent)) is not None


@pytest.mark.parametrize(
    "entry",
    [
        {"bytes": -1, "sha256": "0" * 64},
        {"bytes": True, "sha256": "0" * 64},
        {"bytes": None, "sha256": "0" * 64},
        {"bytes": 1, "sha256": "0" * 63},
        {"bytes": 1, "sha256": None},
        {"bytes": 1},
        [],
        None,
    ],
)
def test_entries_that_are_none(path, entry):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["x"] = entry
    (path / "manifest.json").write_text(json.dumps(manifest))
    redo(path)
    assert problems(path)[0].startswith("manifest.json lists ")


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"files": []}', "{}", '{"files": {}}'])
def test_manifests_that_are_none(path, text):
    (path / "manifest.json").write_text(text)
    redo(path)
    assert problems(path)


def test_a_manifest_of_a_million_files(path, monkeypatch):
    monkeypatch.setattr(seal, "MAX_FILES", 1_000)  # the same at a size that takes no minute
    entry = {"bytes": 1, "sha256": "0" * 64}
    manifest = {"files": {f"metrics/{i}": entry for i in range(1_001)}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    redo(path)
    assert problems(path) == ("manifest.json lists more than 1,000 files, the most it may",)


def test_folders_of_a_million_files_or_a_thousand_folders(path, monkeypatch):
    monkeypatch.setattr(seal._below, "__defaults__", (50,))
    for i in range(51):
        (path / "figures" / f"{i}.png").touch()
    assert "holds more than 50 files" in problems(path)[0]
    deep = path / "arrays" / "/".join("d" * 40)
    deep.mkdir(parents=True)
    assert any("more than 32 folders deep" in line for line in problems(path))


def test_names_that_a_terminal_obeys(path):
    (path / "\x1b]0;owned\x07\n").write_text("")
    (path / os.fsdecode(b"\xff\xfe")).write_text("")
    found = problems(path)
    assert "\\x1b]0;owned\\x07\\n is listed nowhere" in found
    assert any(line.startswith("\\udcff\\udcfe") for line in found)


# Rows.

LINE = json.dumps(row("sam", 0, 4)).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LINE[:-1], "line 1 is not whole"),
        (LINE + b"\n", "line 2 is no JSON"),
        (b'{"a": "' + b"x" * 70_000 + b'"}\n', "longer than 65,536 bytes"),
        (LINE.replace(b"0.5", b"NaN"), "NaN is no finite number"),
        (LINE.replace(b"0.5", b"1e400"), "1e400 is no finite number"),
        (LINE.replace(b"0.5", b'"0.5"'), "its value is"),
        (LINE.replace(b"0.5", b"true"), "its value is true"),
        (LINE.replace(b'"seed": 0', b'"seed": 0.0'), "its seed is 0.0"),
        (LINE.replace(b'"of": {}', b'"of": []'), "its of is []"),
        (LINE.replace(b'"arm": "sam"', b'"arm": 3'), "its arm is 3"),
        (LINE.replace(b'"arm": "sam"', b'"arm": "sam", "arm": "sgd"'), 'it names "arm" twice'),
        (LINE.replace(b'"arm": "sam", ', b""), "it must have the columns"),
        (b"[]\n", "it must have the columns"),
    ],
)
def test_rows_that_are_none(path, content, words):
    for name in ("results.jsonl", "metrics/sam/4.jsonl"):
        (path / name).write_bytes(content)
    reseal(path)
    assert any(words in line for line in problems(path))
    message = refused(lambda: list(rows.rows_in(epath.Path(path / "results.jsonl"))))
    assert words in message
    assert words in refused(command.main, ["export", str(path)])


def test_more_rows_than_any_run_has(path, monkeypatch):
    file = epath.Path(path / "results.jsonl")
    monkeypatch.setitem(rows.rows_in.__kwdefaults__, "most", 3)
    assert "results.jsonl has more than 3 rows, the most it may" in problems(path)
    assert "more than 3 rows" in refused(lambda: list(rows.rows_in(file)))


def test_results_that_the_segments_do_not_hold(path):
    lines = (path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (path / "results.jsonl").write_bytes(b"".join(lines[1:]))
    reseal(path)
    assert problems(path) == ("results.jsonl is not what metrics/ holds",)
    for name in ("results.jsonl", "metrics/sam/4.jsonl"):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content + content.splitlines(keepends=True)[-1])
    reseal(path)
    assert any("holds a row twice" in line for line in problems(path))


# Arrays.


def npz(entries, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return data.getvalue()


def npy(array, **options):
    data = io.BytesIO()
    np.lib.format.write_array(data, array, **options)
    return data.getvalue()


class Pickled:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/a-pickle-was-run",))


GOOD = npy(np.arange(4.0))
BAD_ARRAYS = {
    "pickle": (npz([("x.npy", pickle.dumps(Pickled()))]), "no header of an array"),
    "objects": (npz([("x.npy", npy(np.array([Pickled()]), allow_pickle=True))]), "not numbers"),
    "zeros": (npz([("x.npy", bytes(2**20))], zipfile.ZIP_DEFLATED), "no header of an array"),
    "claims": (npz([("x.npy", GOOD.replace(b"(4,)", b"(9,)"))]), "not as long as its header"),
    "huge": (
        npz([("x.npy", GOOD.replace(b"(4,), }", b"(4000000000000,), }"))]),
        "not as long as its header",
    ),
    "negative": (npz([("x.npy", GOOD.replace(b"(4,)", b"(-4,)"))]), "not as long as its header"),
    "text": (npz([("x.npy", npy(np.array(["a"])))]), "not numbers"),
    "elsewhere": (npz([("../x.npy", GOOD)]), "is no array"),
    "other": (npz([("x.txt", b"")]), "is no array"),
    "twice": (None, "names an array twice"),
    "no zip": (b"PK\x03\x04" + b"x" * 100, "is no .npz file"),
    "empty": (b"", "is no .npz file"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_arrays_that_are_none(path, name):
    content, words = BAD_ARRAYS[name]
    content = npz([("x.npy", GOOD)] * 2) if content is None else content
    file = file_of(path / "arrays" / "sam" / "4" / "density.npz", content)
    reseal(path)
    found = problems(path)
    assert len(found) == 1 and words in found[0] and found[0].startswith("arrays/sam/4/density.npz")
    assert words in refused(arrays.load_arrays, file)
    assert not os.path.exists("/tmp/a-pickle-was-run")


def test_a_zip_bomb_is_not_unpacked(path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 2**20)
    bomb = npz([("x.npy", npy(np.zeros(2**20)))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    file = file_of(path / "arrays" / "sam" / "4" / "density.npz", bomb)
    with bounded(megabytes=4):
        assert "would unpack to more than 1,048,576 bytes" in refused(arrays.load_arrays, file)
    many = npz([(f"{i}.npy", GOOD) for i in range(arrays.MAX_ARRAYS + 1)])
    file = file_of(path / "arrays" / "sam" / "4" / "density.npz", many)
    assert "more than 1,000 arrays" in refused(arrays.load_arrays, file)


def test_a_damaged_array_is_one_line(tmp_path):
    content = bytearray(npz([("x.npy", npy(np.zeros(100)))], zipfile.ZIP_DEFLATED))
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        file = file_of(tmp_path / "x.npz", bytes(damaged))
        try:
            arrays.load_arrays(file)
        except UserError as error:
            assert "\n" not in str(error)


# The commands.


@pytest.mark.parametrize("what", ["nothing", "file", "no run", "bad config", "config list"])
@pytest.mark.parametrize("name", ["verify", "replay", "measure", "export", "amend", "report"])
def test_what_is_no_run_is_refused_by_every_command(tmp_path, name, what):
    folder = tmp_path / "x"
    if what == "file":
        folder.write_text("")
    elif what != "nothing":
        folder.mkdir()
        if what == "bad config":
            (folder / "config.json").write_text('{"study": NaN}')
        elif what == "config list":
            (folder / "config.json").write_text("[]")
        else:
            (folder / "thesis.tex").write_text("")
    before = listing(tmp_path)
    more = ["--reason=x"] if name == "amend" else []
    if name in ("verify", "export") and what in ("bad config", "config list"):
        return  # they say what is wrong with the chain, or export no rows
    message = refused(command.main, [name, str(folder), *more])
    assert str(folder) in message and listing(tmp_path) == before


def test_a_damaged_run_is_neither_replayed_measured_nor_reported(path):
    (path / "results.jsonl").write_bytes(b"")
    before = listing(path)
    for name in ("replay", "measure", "report"):
        assert "is not as it was sealed: results.jsonl" in refused(command.main, [name, str(path)])
    assert "damaged: results.jsonl" in refused(command.main, ["export", str(path)])
    assert listing(path) == before


def test_a_study_of_another_version_is_verified_but_not_run(tmp_path):
    config = {"study": "alchemy", "seeds": (0, 1), "arms": {"sam": {}, "sgd": {}}}
    path = sealed(tmp_path / "run", config)
    found = verify.verify(path)
    assert found.problems == () and "study 'alchemy' is none of this version" in found.notes
    message = refused(command.main, ["replay", str(path)])
    assert "not one that this version runs" in message and "alchemy" in message


def test_list_shows_damaged_runs_as_such(path, capsys):
    (path / "manifest.json").write_text("{}")
    (path.parent / "other").mkdir()
    assert command.main(["list", str(path.parent)]) == 0
    out = capsys.readouterr().out
    assert "run " in out and "damaged: " in out and "other" not in out
    (path / "config.json").write_text('{"study": "\\u001b[2J", "seeds": 3}')
    (path / "DONE").unlink()
    assert command.main(["list", str(path.parent)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_registrations_that_are_none(path):
    for content in (b"{}", b"[]", b"\xff", b"[" * 100_000, b"null"):
        (path / "registration.json").write_bytes(content)
        reseal(path)
        assert any("registration.json" in line for line in problems(path))
        assert "registration.json" in refused(standing.read, epath.Path(path))


def test_reading_says_what_the_files_say(path):
    folder = read.read(path)
    assert folder.study == "sharpness" and folder.registration is None
    assert folder.manifest is not None and len(list(read.rows(folder.path))) == 4
