"""Run the benchmarks: `python benchmarks/run.py [--quick] [--only=W1,top10] [--data_dir=DIR]`.

Each measurement is a line in `.cache/measurements/`, so a run that was killed goes on where it was;
`results/<hardware>.json` and `.md` are written at the end, from all that has been measured.
"""

import argparse
import os
import sys


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny nets: checks all peers' values")
    parser.add_argument("--everything", action="store_true", help="also what no target needs")
    parser.add_argument("--only", default="", help="workloads and tasks, such as W1,W3,top1,trace")
    parser.add_argument("--repeats", type=int, default=0, help="default 5; 1 with --quick")
    parser.add_argument("--data_dir", default="", help="prepared TFDS folders; default: digits")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    parser.add_argument(
        "--keep", action="store_true", help="keep measurements of other sources and versions"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--rss", default="", help=argparse.SUPPRESS)
    parser.add_argument("--first", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # Before jax starts.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from benchmarks import driver

    if args.first:
        return driver.first(args)
    return driver.peak(args) if args.rss else driver.run(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
