"""A Redis that answers with an error of the moment: it is waited for, said in /ready, and nothing dies of it."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import redis
from redis._parsers.base import BaseParser

from services.kit.scale.connection import Connection, RedisAway, RedisRefused
from services.kit.testing.fakes import PromptLengthScorer
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.redis_services import KEYS, ask, counts, text_items, until

pytestmark = pytest.mark.anyio
JOBS = KEYS.jobs(PromptLengthScorer().rewards["prompt_length"])


@pytest.fixture(scope="module")
def refusing_server(shared_redis, tmp_path_factory):
    """A server that says after a tenth of a second that it is busy; `shared_redis` has seen to it that it can be run."""
    server = RedisServer(tmp_path_factory.mktemp("refusing"), "--busy-reply-threshold", "100")
    yield server
    server.kill()


@pytest.fixture
def refusing(refusing_server):
    with refusing_server.client() as client:
        client.flushall()
    return refusing_server


@pytest.fixture(scope="module")
def clustered(shared_redis, tmp_path_factory):
    """A cluster of one node, which owns every slot."""
    server = RedisServer(tmp_path_factory.mktemp("clustered"), "--cluster-enabled", "yes")
    with server.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        end = time.monotonic() + 20
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < end, "the cluster of one does not form"
            time.sleep(0.02)
    yield server
    server.kill()


@contextmanager
def setting(server, name, value, back):
    with server.client() as client:
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, back)


def full(server):
    return setting(server, "maxmemory", 1, 0)


def without_replicas(server):
    return setting(server, "min-replicas-to-write", 1, 0)


@contextmanager
def unable_to_save(server):
    """Where the file of the next snapshot belongs there is a folder."""
    (server.folder / "dump.rdb").mkdir()
    with server.client() as client:
        client.config_set("save", "3600 1000000")
        assert wait_for_save(client) == "err"
        try:
            yield
        finally:
            (server.folder / "dump.rdb").rmdir()
            assert wait_for_save(client) == "ok"
            client.config_set("save", "")


def wait_for_save(client):
    with suppress(redis.ResponseError):  # one is under way
        client.bgsave()
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        time.sleep(0.01)
    return client.info("persistence")["rdb_last_bgsave_status"]


@contextmanager
def a_replica(server):
    with server.client() as client:
        client.replicaof("127.0.0.1", free_port())
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


@contextmanager
def without_slots(server):
    with server.client() as client:
        client.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
        try:
            yield
        finally:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)


@contextmanager
def without_permission(server):
    with server.client() as client:
        client.execute_command("ACL SETUSER", "default", "-xadd", "-set", "-eval")
        try:
            yield
        finally:
            client.execute_command("ACL SETUSER", "default", "+@all")


@contextmanager
def busy(server):
    """Someone else's script that does not end, until it is killed."""

    def run():
        with server.client() as client, suppress(redis.ResponseError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    with server.client() as client:
        while not is_busy(client):
            time.sleep(0.01)
        try:
            yield
        finally:
            client.script_kill()
    thread.join()


def is_busy(client):
    try:
        client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


REFUSALS = {
    "BUSY": (busy, "refusing"),
    "OOM": (full, "refusing"),
    "NOREPLICAS": (without_replicas, "refusing"),
    "MISCONF": (unable_to_save, "refusing"),
    "READONLY": (a_replica, "refusing"),
    "NOPERM": (without_permission, "refusing"),
    "CLUSTERDOWN": (without_slots, "clustered"),
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_what_is_refused_for_the_moment_is_waited_for(running, request, code):
    refusal, name = REFUSALS[code]
    server = request.getfixturevalue(name)
    async with running(PromptLengthScorer(), redis=server.url) as both:
        service = both.app.state.service
        asked_to_be_ready, service.check_ready = service.check_ready, lambda: None
        with refusal(server):
            asking = asyncio.create_task(ask(both, text_items(code, code + "!")))
            await until(lambda: not service.ready)
            service.check_ready = asked_to_be_ready
            for answer in (await both.get("/ready"), await both.post("/v1/score", json={"items": text_items("c")})):
                assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
                message = answer.json()["error"]["message"]
                assert f"Redis at {server.url} refuses commands for the moment ({code} " in message
            assert (await both.get("/health")).status_code == 200
            assert not asking.done(), "a refusal is no answer"
        assert [each["score"] for each in await asking] == [len(code), len(code) + 1]
        await until(lambda: service.ready)
        assert (await ask(both, text_items("not " + code)))[0]["score"] == 4 + len(code)


async def test_busy_and_then_forgetful(running, refusing):
    """What once ended the watch without a word: an error where the time was expected. Then all keys are gone."""
    async with running(PromptLengthScorer(), redis=refusing.url) as both:
        service = both.app.state.service
        service_is_asked, service.check_ready = service.check_ready, lambda: None
        with busy(refusing):
            asking = asyncio.create_task(ask(both, text_items("a", "bb", "ccc")))
            await until(lambda: not service.ready)
        service.check_ready = service_is_asked
        with refusing.client() as client:
            client.flushall()
        assert [each["score"] for each in await asking] == [1, 2, 3]
        await until(lambda: service.ready)
        assert (await ask(both, text_items("dddd")))[0]["score"] == 4


async def test_writes_that_are_refused_do_not_flicker(running, refusing):
    """Reading goes well all the time, and says nothing of writing."""
    async with running(PromptLengthScorer(), redis=refusing.url) as both:
        service = both.app.state.service
        with without_replicas(refusing):
            await until(lambda: not service.ready)
            before = counts(both)["reward_stream_depth"]
            for _ in range(20):
                await service._dispatcher._read(None)  # what the front does all the time
                assert not service.ready
            assert before == 0
        await until(lambda: service.ready)


async def test_a_key_of_another_kind_is_shown_and_nothing_dies(running, refusing):
    async with running(PromptLengthScorer(), redis=refusing.url) as both:
        service = both.app.state.service
        with refusing.client() as client:
            client.delete(JOBS)
            client.set(JOBS, "someone else's")
            await until(lambda: not service.ready)
            assert "WRONGTYPE" in (await both.get("/ready")).json()["error"]["message"]
            client.delete(JOBS)
        await until(lambda: service.ready)
        assert (await ask(both, text_items("a")))[0]["score"] == 1


@pytest.mark.parametrize("loop", ["polling", "listening", "serving", "reporting"])
async def test_a_bug_in_a_loop_is_shown_and_passes(running, refusing, monkeypatch, loop):
    async with running(PromptLengthScorer(), redis=refusing.url) as both:
        service = both.app.state.service
        [found] = [vars(part)[f"_{loop}"] for part in service._parts if f"_{loop}" in vars(part)]
        turn, failing = found._turn, asyncio.Event()

        async def breaks():
            failing.set()
            raise TypeError("cannot unpack non-iterable RedisRefused object")

        found._turn = breaks
        await asyncio.wait_for(failing.wait(), 10)
        await until(lambda: not service.ready)
        assert "failed: TypeError: cannot unpack" in (await both.get("/ready")).json()["error"]["message"]
        found._turn = turn
        await until(lambda: service.ready)
        assert (await ask(both, text_items("a")))[0]["score"] == 1


async def test_a_bug_while_sending_is_answered_at_once(running, refusing, monkeypatch):
    async with running(PromptLengthScorer(), redis=refusing.url) as both:
        with monkeypatch.context() as patch:
            patch.setattr(both.app.state.service._dispatcher, "_add", lambda _sent: 1 / 0)
            [result] = await ask(both, text_items("a"))
        assert result["error"]["code"] == "internal" and "could not be sent" in result["error"]["message"]
        assert (await ask(both, text_items("a")))[0]["score"] == 1


async def test_an_answer_that_cannot_be_written_frees_its_place(running, refusing, monkeypatch):
    """The job is silent then and is given out again, and the next try answers it."""
    async with running(PromptLengthScorer(), redis=refusing.url, visibility_timeout_s=0.5, worker_jobs=1) as both:
        [worker] = [part for part in both.app.state.service._parts if hasattr(part, "_finish_command")]
        right, tries = worker._finish_command, []

        def fails_once(held):
            tries.append(held)
            return right(held) if len(tries) > 1 else 1 / 0

        monkeypatch.setattr(worker, "_finish_command", fails_once)
        assert (await ask(both, text_items("a")))[0]["score"] == 1
        assert len(tries) == 2


PASSING = {
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": True,
    "LOADING Redis is loading the dataset in memory": True,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": True,
    "OOM command not allowed when used memory > 'maxmemory'.": True,
    "NOREPLICAS Not enough good replicas to write.": True,
    "READONLY You can't write against a read only replica.": True,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": True,
    "CLUSTERDOWN The cluster is down": True,
    "TRYAGAIN Multiple keys request during rehashing of slot": True,
    "UNBLOCKED force unblock from blocking operation, instance state changed": True,
    "NOAUTH Authentication required.": True,
    "NOPERM this user has no permissions to run the 'xadd' command": True,
    "EXECABORT Transaction discarded because of: BUSY Redis is busy running a script.": True,
    "ERR max number of clients reached": True,
    "WRONGTYPE Operation against a key holding the wrong kind of value": False,
    "NOGROUP No such key 'x' or consumer group 'workers' in XREADGROUP with GROUP option": False,
    "ERR unknown command 'XREADGROUP'": False,
    "MOVED 3999 127.0.0.1:6381": False,
    "EXECABORT Transaction discarded because of previous errors.": False,
}


@pytest.mark.parametrize("said", PASSING)
async def test_which_errors_pass(said):
    """As the client makes them of what Redis says, alone and in a pipeline, where it quotes the command."""
    error = BaseParser.parse_error(said)

    async def answers():
        raise error

    for _ in range(2):
        connection = Connection("redis://127.0.0.1:1/0")
        with pytest.raises(RedisAway if PASSING[said] else RedisRefused) as caught:
            await connection._guard(answers())
        assert (connection.failure is not None) == PASSING[said]
        assert "SECRET" not in str(caught.value)
        error.args = (f"Command # 1 (XADD SECRET) of pipeline caused error: {error}", *error.args[1:])
        await connection.close()
