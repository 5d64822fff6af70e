"""What a transaction costs beside the ancestor's, in one process and in alternation: empty, and with three data managers of Python's.

::

    cargo xtask python bench transaction

Prints medians of rounds, in microseconds. CPU time of the thread, so that other programs on the machine don't count.
"""

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def ancestor():
    """The original package under its own name, from its source distribution."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import ancestors

    sys.path.insert(0, ancestors.sources()[0])
    import transaction

    assert "unanimous" not in transaction.__file__
    return transaction


class DataManager:
    """Does nothing, so that what is measured is what is around it."""

    transaction_manager = None

    def __init__(self, key):
        self.key = key

    def tpc_begin(self, transaction):
        pass

    commit = tpc_vote = tpc_finish = tpc_abort = abort = tpc_begin

    def sortKey(self):  # noqa: N802
        return self.key


MANAGERS = [DataManager(key) for key in "cab"]


def empty(module):
    module.begin()
    module.commit()


def three(module):
    txn = module.begin()
    for manager in MANAGERS:
        txn.join(manager)
    module.commit()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--transactions", type=int, default=1000, help="in each round")
    arguments = parser.parse_args()

    from unanimous_tm import transaction as ours

    theirs = ancestor()
    # As in a program that has not asked for debug messages.
    logging.basicConfig(level=logging.WARNING)
    for what in (empty, three):
        took = {theirs: [], ours: []}
        for module in took:
            what(module)
        for _ in range(arguments.rounds):
            for module, times in took.items():
                began = time.thread_time()
                for _ in range(arguments.transactions):
                    what(module)
                times.append((time.thread_time() - began) / arguments.transactions * 1e6)
        their, our = (statistics.median(took[module]) for module in (theirs, ours))
        print(f"{what.__name__}: transaction {their:.2f} us, unanimous_tm {our:.2f} us, {their / our:.2f} times as quick")


if __name__ == "__main__":
    main()
