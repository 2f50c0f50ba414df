"""Preparing and reading TFDS sets, from a few images of our own in the upstream formats."""

import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
import tensorflow_datasets as stock_tfds
from etils import epath

from sharpjax import catalog, data
from sharpjax.data import builders, tfds, upstream
from sharpjax.errors import UserError
from tests.tiny_tfds import (  # noqa: F401 (fixtures)
    NAMES,
    NUM_TEST,
    NUM_TRAIN,
    assert_holds,
    everything,
    install,
    paragraph,
    record_order,
    restored_fixture,
    tiny_fixture,
    write_upstream,
)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_the_order_is_the_one_published_for_cifar10():
    # The first three records of TFDS's cifar10, whose ids carry the key.
    assert record_order(50_000, "train")[:3] == [16399, 1680, 47917]


def test_prepares_and_reads_back_in_stock_order(name, tiny, tmp_path):
    source = tiny(name)
    where = str(tmp_path / "data")
    spec = data.Images(name, data_dir=where, manual_dir=str(source.folder))
    loaded = spec.load()
    assert_holds(loaded.splits, source)
    train = loaded.splits.train
    assert train.input.dtype == np.uint8 and train.label.dtype == np.int32
    assert loaded.num_classes == catalog.DATA_SETS[name].num_classes == spec.num_classes
    assert train.input.shape == (spec.num_train, *spec.input_shape)
    # The second time nothing but the prepared folder is needed.
    shutil.rmtree(source.folder)
    again = data.Images(name, data_dir=where)
    assert again == spec and again.load().digests == loaded.digests


def test_the_stock_reader_reads_it(name, tiny, tmp_path):
    source = tiny(name)
    tfds.load(name, data_dir=str(tmp_path), manual_dir=str(source.folder))
    stock = stock_tfds.data_source(name, split="train", data_dir=tmp_path)
    order = record_order(NUM_TRAIN, "train")
    for record, i in zip(stock, order, strict=True):
        np.testing.assert_array_equal(record["image"], source.train_image[i])
        assert record["label"] == source.train_label[i]
        if "cifar" in name:
            assert record["id"] == f"train_{i:05d}".encode()
        if name == "cifar100":
            assert record["coarse_label"] == 3
    if "cifar" in name:
        names = stock.dataset_info.features["label"].names
        assert names == [f"label-{i}" for i in range(catalog.DATA_SETS[name].num_classes)]


def test_examples_and_keys_are_those_of_the_stock_builder(name, tiny, tmp_path, monkeypatch):
    source = tiny(name)
    stock = stock_tfds.builder_cls(name)(data_dir=tmp_path / "a")
    ours = builders.BUILDERS[name](data_dir=tmp_path / "b")
    ours.files = {f.name: epath.Path(source.folder / f.name) for f in ours.UPSTREAM}
    # All that the stock generators want of TensorFlow is to open files.
    gfile = types.SimpleNamespace(GFile=open)
    tensorflow = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    monkeypatch.setattr(sys.modules[type(stock).__module__], "tf", tensorflow)
    assert isinstance(ours, type(stock)) and ours.name == stock.name
    assert ours.version == stock.version
    assert ours.info.features.to_json() == stock.info.features.to_json()

    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    if "cifar" in name:
        with tarfile.open(source.folder / ours.UPSTREAM[0].name) as tar:
            for member in tar.getmembers():
                (unpacked / pathlib.Path(member.name).name).write_bytes(
                    tar.extractfile(member).read()
                )
        info = stock._cifar_info
        assert info.prefix == f"{ours.FOLDER}/"
        theirs = {
            split: stock._generate_examples(f"{split}_", [str(unpacked / f) for f in files])
            for split, files in (("train", info.train_files), ("test", info.test_files))
        }
    else:
        for file in ours.UPSTREAM:
            packed = (source.folder / file.name).read_bytes()
            (unpacked / file.name).write_bytes(gzip.decompress(packed))
        theirs = {
            split: stock._generate_examples(
                num,
                str(unpacked / f"{prefix}-images-idx3-ubyte.gz"),
                str(unpacked / f"{prefix}-labels-idx1-ubyte.gz"),
            )
            for split, prefix, num in (("train", "train", NUM_TRAIN), ("test", "t10k", NUM_TEST))
        }
    mine = ours._split_generators(None)
    shape = catalog.DATA_SETS[name].shape
    for split, examples in theirs.items():
        for (key, example), (stock_key, stock_example) in zip(mine[split], examples, strict=True):
            assert (key, type(key)) == (stock_key, type(stock_key))
            assert example.keys() == stock_example.keys()
            image = tfds.decode(example.pop("image"), shape)
            np.testing.assert_array_equal(image, stock_example.pop("image"))
            assert example == stock_example


def test_upstream_files_are_those_that_tfds_names():
    assert [str(f) for f in builders.Cifar10.UPSTREAM] == [
        "cifar-10-binary.tar.gz (170,052,171 bytes)"
    ]
    sums = {f.name: f.sha256 for f in builders.FashionMNIST.UPSTREAM}
    assert len(sums) == 4
    assert sums["t10k-labels-idx1-ubyte.gz"].startswith("67da17c76eaffca5446c3361aaab5c3cd6d1c260")
    assert sums.keys() == {f.name for f in builders.MNIST.UPSTREAM}
    assert not set(sums.values()) & {f.sha256 for f in builders.MNIST.UPSTREAM}


def test_sets_with_files_of_the_same_names_do_not_mix(tiny, tmp_path):
    sources = {name: tiny(name) for name in ("mnist", "fashion_mnist")}
    for name, source in sources.items():  # both lie in <manual_dir>/<name>
        splits = tfds.load(
            name, data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path / "upstream")
        )
        assert_holds(splits, source)


def test_data_dir_defaults_to_the_environment(tiny, tmp_path, monkeypatch):
    source = tiny("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    tfds.load("mnist", manual_dir=str(source.folder))
    assert (tmp_path / "here" / "mnist" / "3.0.1" / "dataset_info.json").exists()
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tfds.load("mnist", manual_dir=str(source.folder))
    assert (tmp_path / "home" / "tensorflow_datasets" / "mnist" / "3.0.1").exists()


def test_says_one_line_and_leaves_only_the_data(tiny, tmp_path, capfd):
    source = tiny("mnist")
    tfds.load("mnist", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("preparing mnist in ")
    assert everything(tmp_path / "data") == [
        "mnist",
        "mnist/3.0.1",
        "mnist/3.0.1/dataset_info.json",
        "mnist/3.0.1/features.json",
        "mnist/3.0.1/mnist-test.array_record-00000-of-00001",
        "mnist/3.0.1/mnist-train.array_record-00000-of-00001",
    ]
    tfds.load("mnist", data_dir=str(tmp_path / "data"))
    assert capfd.readouterr() == ("", "")


IN_A_PROCESS = """
import os, pathlib, sys
sys.path.insert(0, {root!r})
import tests.tiny_tfds as t
source = t.write_upstream("cifar10", pathlib.Path({upstream!r}))
t.install("cifar10", source)
{more}
splits = t.tfds.load("cifar10", data_dir={data!r}, manual_dir={upstream!r})
t.assert_holds(splits, source)
print("tensorflow" in sys.modules)
"""


def in_a_process(tmp_path, more="", path=""):
    script = IN_A_PROCESS.format(
        root=str(pathlib.Path(__file__).parent.parent),
        upstream=str(tmp_path / "upstream"),
        data=str(tmp_path / "data"),
        more=more,
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )


def test_tensorflow_is_not_even_looked_for(tmp_path):
    fake = tmp_path / "path" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    result = in_a_process(tmp_path, path=str(tmp_path / "path"))
    assert result.stdout == "False\n", result.stderr
    assert not (tmp_path / "imported").exists()


def test_killed_while_preparing(tmp_path, tiny):
    more = """
png, count = t.builders.png, [0]
def deadly(image):
    count[0] += 1
    if count[0] == t.NUM_TRAIN + 3:
        os.kill(os.getpid(), 9)
    return png(image)
t.builders.png = deadly
"""
    result = in_a_process(tmp_path, more)
    assert result.returncode == -signal.SIGKILL
    left = everything(tmp_path / "data")
    assert any("incomplete" in path for path in left)
    assert not (tmp_path / "data" / "cifar10" / "3.0.2").exists()
    # The next call pays it no heed.
    shutil.rmtree(tmp_path / "upstream")
    source = write_upstream("cifar10", tmp_path / "upstream")
    install("cifar10", source)
    splits = tfds.load("cifar10", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    assert_holds(splits, source)


def test_disk_full(tmp_path):
    more = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    result = in_a_process(tmp_path, more)
    last = result.stderr.strip().split("\n")[-1]
    assert last.startswith("sharpjax.errors.UserError: data set 'cifar10' cannot be prepared in")
    assert "File too large" in last
    assert everything(tmp_path / "data") == ["cifar10"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_while_preparing(tiny, tmp_path, monkeypatch, error):
    source = tiny("mnist")
    png, count = builders.png, iter(range(NUM_TRAIN + 3))

    def failing(image):
        if next(count, None) is None:
            raise error
        return png(image)

    monkeypatch.setattr(builders, "png", failing)
    with pytest.raises((KeyboardInterrupt, UserError)) as info:
        tfds.load("mnist", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    if isinstance(error, OSError):
        assert "No space left on device" in str(info.value) and "data_dir" in str(info.value)
    assert everything(tmp_path / "data") == ["mnist"]
    monkeypatch.setattr(builders, "png", png)
    splits = tfds.load("mnist", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    assert_holds(splits, source)


def test_another_process_prepared_it_meanwhile(tiny, tmp_path, monkeypatch):
    source = tiny("mnist")
    where = {"data_dir": str(tmp_path / "data"), "manual_dir": str(source.folder)}
    obtain = upstream.obtain

    def late(*args, **kwargs):
        monkeypatch.setattr(upstream, "obtain", obtain)
        files = obtain(*args, **kwargs)
        png = builders.png

        def overtaken(image):  # the other one ends in the midst of our work
            monkeypatch.setattr(builders, "png", png)
            tfds.load("mnist", **where)
            return png(image)

        monkeypatch.setattr(builders, "png", overtaken)
        return files

    monkeypatch.setattr(upstream, "obtain", late)
    assert_holds(tfds.load("mnist", **where), source)
    assert "incomplete" not in " ".join(everything(tmp_path / "data"))


# Downloads.


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_downloads_what_is_not_at_hand(tiny, server, tmp_path, capfd):
    served, address = server
    source = tiny("mnist", address=address)
    for path in source.folder.iterdir():
        shutil.copy(path, served)
    where = str(tmp_path / "data")
    assert_holds(tfds.load("mnist", data_dir=where), source)
    assert capfd.readouterr().err.count("downloading http://127.0.0.1") == 4
    downloads = tmp_path / "data" / "downloads" / "mnist"
    assert sorted(p.name for p in downloads.iterdir()) == sorted(
        f.name for f in builders.MNIST.UPSTREAM
    )
    # The files are kept: preparing again fetches only what was damaged.
    shutil.rmtree(tmp_path / "data" / "mnist")
    (downloads / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    assert_holds(tfds.load("mnist", data_dir=where), source)
    assert capfd.readouterr().err.count("downloading http://127.0.0.1") == 1


def test_what_looks_at_a_run_downloads_nothing(tiny, server, tmp_path, capfd):
    """`studies verify` fetched 170 MB, unasked; files that are at hand are prepared as ever."""
    served, address = server
    source = tiny("mnist", address=address)
    for path in source.folder.iterdir():
        shutil.copy(path, served)
    where = str(tmp_path / "data")
    with upstream.no_downloads("verify"):
        with pytest.raises(UserError, match="cannot be downloaded .verify downloads nothing"):
            tfds.load("mnist", data_dir=where)
        assert "downloading" not in capfd.readouterr().err
        tfds.load("mnist", data_dir=str(tmp_path / "other"), manual_dir=str(source.folder))
    assert_holds(tfds.load("mnist", data_dir=where), source)


@pytest.mark.parametrize("how", ["refused", "missing", "other"])
def test_neither_prepared_nor_to_be_had(tiny, server, tmp_path, how):
    served, address = server
    source = tiny("cifar10", **({} if how == "refused" else {"address": address}))
    if how == "other":
        (served / "cifar-10-binary.tar.gz").write_bytes(b"<html>log in</html>")
    manual = tmp_path / "manual"
    manual.mkdir()
    where = tmp_path / "data"
    with pytest.raises(UserError) as info:
        tfds.load("cifar10", data_dir=str(where), manual_dir=str(manual))
    message = paragraph(info)
    size = (source.folder / "cifar-10-binary.tar.gz").stat().st_size
    for part in (
        f"not prepared in {where / 'cifar10' / '3.0.2'}",
        f"not in {manual / 'cifar10'} or {manual}",
        {"refused": "Connection refused", "missing": "404", "other": "gave 19 bytes"}[how],
        f"cifar-10-binary.tar.gz ({size:,} bytes)",
        "TFDS_DATA_DIR",
        "--config.data.data_dir",
        "--config.data.manual_dir",
        "--config.data.name=digits",
    ):
        assert part in message, part
    assert everything(where / "downloads" / "cifar10") == []
    with pytest.raises(UserError, match="no manual_dir is given"):
        tfds.load("cifar10", data_dir=str(where))


def test_wrong_upstream_file(tiny, tmp_path):
    source = tiny("fashion_mnist")
    wrong = source.folder / "t10k-labels-idx1-ubyte.gz"
    good = hashlib.sha256(wrong.read_bytes()).hexdigest()
    wrong.write_bytes(wrong.read_bytes()[:-1])
    bad = hashlib.sha256(wrong.read_bytes()).hexdigest()
    with pytest.raises(UserError) as info:
        tfds.load("fashion_mnist", data_dir=str(tmp_path / "data"), manual_dir=str(source.folder))
    message = paragraph(info)
    assert str(wrong) in message and good in message and bad in message
    assert not (tmp_path / "data").exists()


def test_manual_dir_that_is_no_folder(tiny, tmp_path):
    tiny("mnist")
    with pytest.raises(UserError, match="manual_dir=.*nowhere is not a folder"):
        tfds.load("mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "nowhere"))


def test_data_dir_that_cannot_be_written(tiny, tmp_path):
    source = tiny("mnist")
    (tmp_path / "file").write_bytes(b"")
    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        for manual in (str(source.folder), ""):
            with pytest.raises(UserError, match="cannot be prepared in .*file.*data_dir") as info:
                tfds.load("mnist", data_dir=str(where), manual_dir=manual)
            paragraph(info)


def test_unknown_set():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        tfds.load("cifar", data_dir="/nowhere")
