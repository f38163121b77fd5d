"""A server that is killed again and again among participants loses no vote that it acknowledged."""

import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

pytest.importorskip("uvicorn", reason="needs the extra calibri[study]")
pytest.importorskip("starlette", reason="needs the extra calibri[study]")

import requests

from calibri.study import report
from calibri.study.records import StudyFolder
from calibri.study.votes import Votes
from tests.study import chromium
from tests.study.studies import answer, links, pair_of, study

PEOPLE = 20


class Server:
    """``calibri study serve`` in a process of its own."""

    def __init__(self, made, port):
        self._command = [
            sys.executable, "-c", "from calibri.cli.app import main; main()",
            "study", "serve", str(made), "--port", str(port),
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == f"serving {self._command[5]} at {self.url}\n"

    def kill(self, how=signal.SIGKILL):
        self._process.send_signal(how)
        code = self._process.wait(30)
        self._process.stdout.close()
        return code


@pytest.fixture
def server(tmp_path):
    made = study(tmp_path, count=10, participants=PEOPLE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(made, port)
    server.made = made
    server.start()
    yield server
    server.kill()


def persistently(call):
    """Ask until there is an answer, as the page does."""
    while True:
        try:
            answered = call()
            if answered.status_code < 500:
                return answered
        except requests.RequestException:
            pass
        time.sleep(0.05)


def take_part(url, seed, acknowledged):
    """Answer everything, with double clicks, repeats and reloads; note what was acknowledged."""
    rng = random.Random(seed)
    with requests.Session() as session:
        page = persistently(lambda: session.post(f"{url}/consent", timeout=5))
        while pair := pair_of(page.text):
            choice = rng.choice(["left", "tie", "right"])
            data = answer(pair, choice, choice)
            post = lambda data=data: session.post(f"{url}/vote", data=data, timeout=5)  # noqa: E731
            persistently(post)
            acknowledged[pair] = choice
            if rng.random() < 0.3:
                persistently(post)
            if rng.random() < 0.3:
                other = answer(pair, rng.choice(["left", "right"]))
                persistently(lambda other=other: session.post(f"{url}/vote", data=other, timeout=5))
            page = persistently(lambda: session.get(url, timeout=5))


@pytest.mark.end_to_end
def test_no_acknowledged_vote_is_lost_and_none_counts_twice(server):
    acknowledged = [{} for _ in range(PEOPLE)]
    kills = 0
    with ThreadPoolExecutor(PEOPLE) as pool:
        people = [
            pool.submit(take_part, server.url + link, i, acknowledged[i])
            for i, link in enumerate(links(server.made))
        ]
        while wait(people, timeout=1.0).not_done:
            server.kill()
            kills += 1
            server.start()
        for person in people:
            person.result()
    assert kills >= 2
    votes = Votes(StudyFolder(server.made).votes).all()
    kept = {(v.participant, v.pair, v.question): v.choice for v in votes}
    expected = {
        (i + 1, pair, question): choice
        for i, given in enumerate(acknowledged)
        for pair, choice in given.items()
        for question in ("preference", "alignment")
    }
    assert kept == expected
    assert len(votes) == len(expected) == PEOPLE * 13 * 2
    assert report(server.made).finished == PEOPLE


@pytest.mark.end_to_end
@pytest.mark.skipif(chromium.PATH is None, reason="needs Chromium")
def test_a_browser_answers_by_keys_through_a_kill(server, tmp_path):
    """Keys, a double click, the back button, a reload, and a server that dies."""
    url = server.url + links(server.made)[0]
    ready = "document.readyState === 'complete' && document.querySelector('.js form [name=pair]')"
    pair = f"{ready} && document.querySelector('[name=pair]').value"
    with chromium.browser(tmp_path / "profile") as page:
        page.size(390, 844)
        page.open(url)
        page.run("document.querySelector('button').click()")
        seen, expected = [], {}
        for turn in range(13):
            here = page.wait(f"({pair}) !== {seen[-1] if seen else ''!r} && ({pair})")
            seen.append(here)
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.run(overflow) == 0
            assert page.run("document.querySelector('button').disabled")
            if turn % 2:  # arrows mean the same wherever the focus is
                page.run("document.querySelector('input[type=radio]').focus()")
            page.key("3")
            page.key("Backspace")
            page.key(["1", "2", "3", "ArrowLeft", "ArrowDown", "ArrowRight"][turn % 6])
            page.key("2")
            expected[here] = ["left", "tie", "right"][turn % 3]
            if turn == 4:
                server.kill()
            page.key("Enter")
            page.run("document.querySelector('button').click()")
            if turn == 4:
                assert "Not saved yet" in page.wait("document.querySelector('.state')?.textContent")
                server.start()
            if turn == 6:
                page.wait(f"({pair}) !== {here!r} && ({pair})")
                page.run("history.back()")
                time.sleep(0.3)
                page.open(url)
        page.wait("document.body.innerText.includes('Thank you')")
        page.run("history.back()")
        time.sleep(0.3)
        page.open(url)
        assert "Thank you" in page.text()
        assert all(asked.startswith(server.url + "/") for asked in page.requests)
        refused = re.compile("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
        assert [p for p in page.problems if not refused.search(p)] == []
    votes = Votes(StudyFolder(server.made).votes).all()
    kept = {(v.pair, v.question): v.choice for v in votes}
    assert kept == {
        (pair, question): choice
        for pair, preference in expected.items()
        for question, choice in (("preference", preference), ("alignment", "tie"))
    }
    assert len(votes) == 2 * 13
