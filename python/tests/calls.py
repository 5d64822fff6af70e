"""Ends transactions in many ways and prints, as JSON, everything that is called meanwhile: ``calls.py ours|theirs``.

Must not know what is right: test_calls.py compares the two.
"""

import itertools
import json
import logging
import sys

import ancestors

HOOKS = ("BeforeCommit", "AfterCommit", "BeforeAbort", "AfterAbort")
CALLS = ("tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort")


class DataManager:
    """Writes down what is called, and in which state; raises where it is told to."""

    def __init__(self, key, fails, log, manager):
        self.key, self.fails, self.log, self.manager = key, fails, log, manager

    def sortKey(self):  # noqa: N802
        return self.key

    def __getattr__(self, name):
        if name not in CALLS:
            raise AttributeError(name)

        def call(transaction):
            self.log.append([self.key, name, transaction.status, self.manager._txn is transaction])
            if name in self.fails:
                raise ValueError(f"{name} of {self.key}")

        return call


class Synchronizer:
    def __init__(self, log, manager, fails=()):
        self.log, self.manager, self.fails = log, manager, fails

    def __getattr__(self, name):
        if name not in ("newTransaction", "beforeCompletion", "afterCompletion"):
            raise AttributeError(name)

        def told(transaction):
            self.log.append([name, transaction.status, self.manager._txn is transaction])
            if name in self.fails:
                raise KeyError(name)

        return told


def run(ops, managers=(), hooks=HOOKS, hook_fails=(), synchronizer_fails=()):
    import transaction

    log = []
    manager = transaction.TransactionManager()
    synchronizer = Synchronizer(log, manager, synchronizer_fails)
    manager.registerSynch(synchronizer)
    txn = manager.begin()
    for key, fails in managers:
        txn.join(DataManager(key, fails, log, manager))

    def hook(moment):
        def called(*args):
            log.append([moment, args, txn.status, manager._txn is txn])
            if moment in hook_fails:
                raise KeyError(moment)

        return called

    for moment in hooks:
        getattr(txn, f"add{moment}Hook")(hook(moment))
    for op in ops:
        try:
            getattr(txn, op)()
            log.append([op, "done"])
        except BaseException as error:
            # What is chained to it is part of what a program sees.
            log.append([op, type(error).__name__, str(error).splitlines()[:1], type(error.__context__).__name__])
        left = [len(list(getattr(txn, f"get{moment}Hooks")())) for moment in HOOKS]
        log.append(["state", txn.status, manager._txn is txn, left])
    return log


def all_cases():
    ends = (["commit"], ["abort"], ["commit", "abort"], ["commit", "commit", "abort", "abort"], ["doom", "commit", "abort"], ["abort", "commit"])
    for hooks, ops, managers in itertools.product(((), HOOKS), ends, ((), (("b", ()), ("a", ())))):
        yield {"ops": ops, "managers": managers, "hooks": hooks}
    for hooks, no, others in itertools.product(((), HOOKS), CALLS[:3], ((), ("abort",), ("tpc_abort",), ("abort", "tpc_abort"))):
        yield {"ops": ["commit", "commit", "abort"], "managers": (("c", others), ("b", (no,)), ("a", others)), "hooks": hooks}
    yield {"ops": ["abort", "abort"], "managers": (("a", ("abort",)), ("b", ("abort",)))}
    for fails, ops in itertools.product((*HOOKS,), (["commit", "abort"], ["abort", "abort"])):
        yield {"ops": ops, "managers": (("a", ()), ("b", ())), "hook_fails": (fails,)}
    for fails, ops in itertools.product(("beforeCompletion", "afterCompletion"), (["commit", "abort"], ["abort", "abort"])):
        yield {"ops": ops, "managers": (("a", ()), ("b", ())), "synchronizer_fails": (fails,)}


def main(whose):
    ancestors.arrange(whose)
    logging.disable(logging.CRITICAL)
    print(json.dumps([[case, run(**case)] for case in all_cases()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
