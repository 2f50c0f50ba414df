"""The script that is run where an accelerator can be had: that it runs at all."""

from benchmarks import accelerator, accelerator_checks


def test_products_are_those_of_numpy():
    assert "largest error" in accelerator_checks.check_products()


def test_a_part_that_fails_is_a_line_of_the_page(monkeypatch):
    def broken(*_):
        raise MemoryError("no memory is left")

    def parts(sizes):
        known = all_parts(sizes)
        names = ("matrix rate, float32", "transformer: gradient")
        return {name: known[name] for name in names} | {"broken": broken}

    all_parts = accelerator.parts
    monkeypatch.setattr(accelerator, "parts", parts)
    monkeypatch.setattr(accelerator, "CHECKS", {"fine": lambda: "it is"})
    found = accelerator.machine() | accelerator.run(accelerator.TINY, seconds=60, repeats=1)
    assert [row["passed"] for row in found["checks"]] == [True]
    assert "parameters" in found["times"][1]["said"]
    text = accelerator.page(found)
    assert "TFLOP/s" in text and "MemoryError: no memory is left" in text


def test_nothing_begins_after_the_time_is_over(monkeypatch):
    monkeypatch.setattr(accelerator, "CHECKS", {})
    found = accelerator.run(accelerator.TINY, seconds=-1, repeats=1)
    assert {row["failed"] for row in found["times"]} == {"left out: no time was left"}
