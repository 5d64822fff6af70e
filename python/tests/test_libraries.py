"""Libraries built on the ancestors, unchanged, under ``python -m unanimous_tm run``. Their versions are in libraries.txt."""

import os

import pytest

from conftest import python

BEGIN = """
import os, sys
import transaction
assert transaction.__name__ == "unanimous_tm.transaction"
folder, url, table = sys.argv[1:]

class Refuses:
    def tpc_begin(self, _transaction): pass
    commit = abort = tpc_abort = tpc_finish = tpc_begin
    def tpc_vote(self, _transaction): raise ValueError("no")
    def sortKey(self): return self.key

def refused(key="a"):
    # zope.sqlalchemy commits a session that can't prepare when it votes, behind all others; who votes later is too late.
    refuses = Refuses()
    refuses.key = key
    transaction.get().join(refuses)
    try:
        transaction.commit()
    except ValueError:
        transaction.abort()
    else:
        raise AssertionError("it was to be refused")
"""


@pytest.fixture
def library(tmp_path, orders):
    """Runs a text with the libraries that can be imported then, and nothing else in the ancestors' place."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.environ["UNANIMOUS_TEST_LIBRARIES"]]))

    def run(text):
        script = tmp_path / "script.py"
        script.write_text(BEGIN + text)
        return python("-m", "unanimous_tm", "run", str(script), str(folder), orders.url, orders.table, PYTHONPATH=path)

    return run


def test_zodb(library):
    said = library("""
import ZODB, ZODB.FileStorage
from ZODB.POSException import ConflictError
from persistent.mapping import PersistentMapping
db = ZODB.DB(ZODB.FileStorage.FileStorage(f"{folder}/data.fs"))
conn = db.open()
root = conn.root()
root["orders"] = PersistentMapping()
transaction.get().note("an order")
transaction.commit()
root["orders"]["a"] = 1
savepoint = transaction.savepoint()
root["orders"]["b"] = 2
savepoint.rollback()
root["orders"]["c"] = 3
transaction.commit()
root["orders"]["d"] = 4
refused()
print(sorted(root["orders"].items()))

other = transaction.TransactionManager()
second = db.open(other)
tries = []
def work():
    tries.append(1)
    root["orders"]["a"] += 1
    if len(tries) == 1:
        second.root()["orders"]["a"] = 10
        other.commit()
transaction.manager.run(work)
print(len(tries), root["orders"]["a"])
conn.close(); second.close(); db.close()
db = ZODB.DB(ZODB.FileStorage.FileStorage(f"{folder}/data.fs"))
with db.transaction() as conn:
    print(sorted(conn.root()["orders"].items()))
print([undone["description"] for undone in db.undoLog(0, 10)][-2])
""")
    assert said == "[('a', 1), ('c', 3)]\n2 11\n[('a', 11), ('c', 3)]\nan order\n"


def test_zope_sqlalchemy(library, orders):
    said = library("""
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from zope.sqlalchemy import register, mark_changed
from psycopg2.extensions import parse_dsn
dsn = parse_dsn(url)
engine = create_engine("postgresql+psycopg2://", connect_args=dsn)
for two_phase in (False, True):
    Session = sessionmaker(engine, twophase=two_phase)
    register(Session)
    session = Session()
    def insert(value):
        session.execute(text(f"insert into {table} values ({value})"))
        mark_changed(session)
    insert(1)
    transaction.commit()
    insert(2)
    transaction.abort()
    insert(3)
    refused()
    insert(4)
    savepoint = transaction.savepoint()
    insert(5)
    savepoint.rollback()
    transaction.commit()
    print([v for v, in session.execute(text(f"select v from {table} order by v"))])
    transaction.abort()
    session.close()
""")
    assert said == "[1, 4]\n[1, 1, 4, 4]\n"
    assert orders.prepared() == []


def test_pyramid_tm(library):
    said = library("""
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.httpexceptions import HTTPBadRequest
from webtest import TestApp
import pyramid_tm
done = []

class Work(Refuses):
    def __init__(self, tm, name):
        self.name = self.key = name
        tm.get().join(self)
    def tpc_vote(self, _transaction):
        if self.name == "conflict":
            self.name = "again"
            raise transaction.interfaces.TransientError("a conflict")
    def tpc_finish(self, _transaction): done.append(self.name)
    def abort(self, _transaction): done.append(f"not {self.name}")

def view(request):
    Work(request.tm, request.params["name"])
    if request.params["name"] == "bad":
        raise HTTPBadRequest()
    return Response(request.params["name"])

config = Configurator(settings={"tm.commit_veto": "pyramid_tm.default_commit_veto"})
config.include("pyramid_tm")
config.add_route("work", "/")
config.add_view(view, route_name="work")
app = TestApp(config.make_wsgi_app())
print(app.get("/?name=good").text, app.get("/?name=bad", status=400).status_int)
try:
    app.get("/?name=conflict")
except transaction.interfaces.TransientError as error:
    print("raised", error)
print(done[:2])
""")
    assert said == "good 400\nraised a conflict\n['good', 'not bad']\n"


def test_repoze_sendmail_and_pyramid_mailer(library):
    said = library("""
from email.message import Message
from repoze.sendmail.delivery import QueuedMailDelivery
from repoze.sendmail.maildir import Maildir
from pyramid_mailer.mailer import Mailer
from pyramid_mailer.message import Message as PyramidMessage
import os

def queued(name):
    return len(os.listdir(f"{folder}/{name}/new")) if os.path.isdir(f"{folder}/{name}/new") else 0

Maildir(f"{folder}/mail", True)
delivery = QueuedMailDelivery(f"{folder}/mail")
def send():
    message = Message()
    message["Subject"], message["From"], message["To"] = "hello", "a@example.com", "b@example.com"
    message.set_payload("a body")
    delivery.send("a@example.com", ["b@example.com"], message)
send()
print(queued("mail"), end=" ")
transaction.commit()
print(queued("mail"), end=" ")
send()
refused()
send()
transaction.abort()
print(queued("mail"))

Maildir(f"{folder}/queue", True)
mailer = Mailer(queue_path=f"{folder}/queue")
message = PyramidMessage(subject="hello", sender="a@example.com", recipients=["b@example.com"], body="a body")
mailer.send_to_queue(message)
print(queued("queue"), end=" ")
transaction.commit()
print(queued("queue"))
""")
    assert said == "0 1 1\n0 1\n"


def test_several_of_them_in_one_transaction(library, orders):
    """An object database, SQLAlchemy's session and a connection of psycopg2transaction's: all or none."""
    said = library("""
import ZODB, psycopg2transaction
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from zope.sqlalchemy import register, mark_changed
from psycopg2.extensions import parse_dsn
root = ZODB.connection(f"{folder}/data.fs").root()
Session = sessionmaker(create_engine("postgresql+psycopg2://", connect_args=parse_dsn(url)), twophase=True)
register(Session)
session = Session()
def work(value):
    root[value] = value
    session.execute(text(f"insert into {table} values ({value})"))
    mark_changed(session)
    psycopg2transaction.join(url).cursor().execute(f"insert into {table} values ({value})")
work(1)
transaction.commit()
work(2)
refused("~~~")
print(sorted(root), [v for v, in session.execute(text(f"select v from {table}"))])
transaction.abort()
""")
    assert said == "[1] [1, 1]\n"
    assert orders.prepared() == []
