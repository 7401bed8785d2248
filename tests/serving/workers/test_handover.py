"""Connections over a real socket pair: none is lost, none goes to somebody who takes no more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from serving.workers.acceptor import Acceptor
from serving.workers.handover import ConnectionReceiver, ConnectionSender

PATIENCE = 30.0


class Taker:
    """A worker in this process: both ends, and what has arrived."""

    def __init__(self) -> None:
        parent, worker = socket.socketpair()
        self.arrived: list[socket.socket] = []
        self.sender = ConnectionSender(parent)
        self.receiver = ConnectionReceiver(worker, self.arrived.append)
        self._worker = worker

    def close(self) -> None:
        self.sender.close()
        asyncio.get_running_loop().remove_reader(self._worker)
        self._worker.close()
        for connection in self.arrived:
            connection.close()


async def until(true: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE)


def test_the_one_with_the_fewest_gets_the_next_and_none_is_lost() -> None:
    async def connect() -> None:
        takers = [Taker(), Taker(), Taker()]
        taking: list[ConnectionSender] = []
        listener = socket.create_server(("127.0.0.1", 0))
        acceptor = Acceptor(listener, lambda: taking)
        acceptor.start()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(30)]
        await asyncio.sleep(0.05)  # nobody takes any: they wait
        for taker in takers:
            taker.receiver.start()
        taking += [taker.sender for taker in takers]
        await until(lambda: sum(len(taker.arrived) for taker in takers) == 30)
        assert [len(taker.arrived) for taker in takers] == [10, 10, 10]
        for connection in takers[1].arrived[:6]:
            connection.close()
            takers[1].receiver.closed()
        await until(lambda: takers[1].sender.open == 4)
        clients += [socket.create_connection(listener.getsockname()) for _ in range(6)]
        await until(lambda: sum(taker.sender.open for taker in takers) == 30)
        assert [taker.sender.open for taker in takers] == [10, 10, 10]
        for client in clients:
            client.close()
        acceptor.close()
        for taker in takers:
            taker.close()

    asyncio.run(connect())


def test_who_stops_takes_what_is_under_way_and_is_sent_no_more() -> None:
    async def stop() -> None:
        taker = Taker()  # not started: what is sent waits
        here, there = socket.socketpair()
        assert taker.sender.send(there)
        taker.receiver.start()
        taker.receiver.stop()
        (arrived,) = taker.arrived
        arrived.sendall(b"x")
        assert here.recv(1) == b"x"
        assert not taker.sender.send(there)
        assert taker.sender.open == 1
        here.close()
        there.close()
        taker.close()

    asyncio.run(stop())


def test_more_than_fit_wait_for_room() -> None:
    async def flood() -> None:
        taker = Taker()
        here, there = socket.socketpair()
        sent = 0
        while sent < 100_000 and taker.sender.send(there):
            sent += 1
        assert 0 < sent < 100_000
        for _ in range(sent):
            taker.receiver.closed()  # more than fit, too: the rest is told with a later one
        await until(lambda: taker.sender.open == taker.receiver._untold)
        taker.receiver.closed()
        await until(lambda: taker.sender.open == 0)
        here.close()
        there.close()
        taker.close()

    asyncio.run(flood())
