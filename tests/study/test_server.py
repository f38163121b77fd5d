"""Pages and votes over HTTP: blind, escaped, and safe to ask for twice."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the extra calibri[study]")

from PIL import Image
from starlette.testclient import TestClient

from calibri.study.records import StudyFolder
from calibri.study.server import make_app
from calibri.study.votes import Votes
from tests.study.studies import HOSTILE, answer, links, pair_of, study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), participants=3, title=f"A {HOSTILE}")


@pytest.fixture
def folder(made, tmp_path):
    return StudyFolder(shutil.copytree(made, tmp_path / "study"))


@pytest.fixture
def client(folder):
    with TestClient(make_app(folder)) as client:
        yield client


@pytest.fixture
def link(made):
    return links(made)[0]


def begun(client, link):
    return pair_of(client.post(f"{link}/consent").text)


def test_a_participant_goes_through_every_pair_once(client, folder, link):
    assert "I agree" in client.get(link).text
    pair, seen = begun(client, link), []
    while pair:
        seen.append(pair)
        pair = pair_of(client.post(f"{link}/vote", data=answer(pair)).text)
    assert "Thank you" in client.get(link).text
    assert sorted(seen) == sorted(folder.read().by_id())
    assert len(Votes(folder.votes).all()) == 2 * len(seen)


def test_looking_changes_nothing(client, folder, link):
    for _ in range(3):
        assert "I agree" in client.get(link).text
    assert Votes(folder.votes).count() == (3, 0)
    pair = begun(client, link)
    assert {pair_of(client.get(link).text) for _ in range(3)} == {pair}
    assert Votes(folder.votes).all() == []


def test_a_vote_that_is_sent_again_counts_once_and_the_first_stays(client, folder, link):
    """A double click, a second tab, the back button: the same request once more, or another."""
    pair = begun(client, link)
    ahead = {
        pair_of(client.post(f"{link}/vote", data=answer(pair, preference)).text)
        for preference in ("left", "left", "right", "tie")
    }
    assert len(ahead) == 1
    assert pair not in ahead
    votes = Votes(folder.votes).all()
    assert {(v.pair, v.question): v.choice for v in votes} == {
        (pair, "preference"): "left",
        (pair, "alignment"): "tie",
    }
    assert len(votes) == 2


SHARED = [HealthCheck.function_scoped_fixture]
ACTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["look", "agree", "vote", "stale", "foreign", "half"]),
        st.sampled_from(["left", "tie", "right"]),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(acts=ACTS)
def test_whatever_is_clicked_each_first_answer_counts_once(made, tmp_path_factory, acts):
    """Any order of requests of three participants, against a plain dictionary."""
    folder = StudyFolder(shutil.copytree(made, tmp_path_factory.mktemp("any") / "study"))
    expected, shown = {}, {0: [], 1: [], 2: []}
    with TestClient(make_app(folder)) as client:
        for who, act, choice in acts:
            link, sent = links(made)[who], None
            if act in ("vote", "stale", "half") and shown[who]:
                sent = shown[who][0 if act == "stale" else -1]
            if act == "foreign" and shown[(who + 1) % 3]:
                sent = "0" * 16
            if act == "agree":
                page = client.post(f"{link}/consent")
            elif sent:
                data = answer(sent, choice)
                if act == "half":
                    del data["alignment"]
                page = client.post(f"{link}/vote", data=data)
                if act in ("vote", "stale"):
                    expected.setdefault((who + 1, sent), choice)
                else:
                    assert page.status_code == 400
            else:
                page = client.get(link)
            if (pair := pair_of(page.text)) and pair not in shown[who]:
                shown[who].append(pair)
    votes = [v for v in Votes(folder.votes).all() if v.question == "preference"]
    assert {(v.participant, v.pair): v.choice for v in votes} == expected
    assert len(votes) == len(expected)


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(st.data())
def test_a_tampered_token_opens_nothing(client, made, data):
    token = links(made)[0].removeprefix("/s/")
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("0123456789abcXYZ-_.%~"))
    for bad in {token[:place] + letter + token[place + 1 :], token[:place], token + letter} - {
        token
    }:
        for answered in (client.get(f"/s/{bad}"), client.post(f"/s/{bad}/consent")):
            assert answered.status_code == 404
            assert "prompt" not in answered.text
    assert Votes(StudyFolder(made).votes).count()[1] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"pair=%s", b"\xff\xfe", b"a" * 5000, b"=&=&=", b"pair=%s&preference=both&alignment=tie"],
)
def test_a_body_that_is_no_answer_is_refused_and_changes_nothing(client, folder, link, body):
    pair = begun(client, link)
    answered = client.post(f"{link}/vote", content=body.replace(b"%s", pair.encode()))
    assert answered.status_code == 400
    assert Votes(folder.votes).all() == []
    assert pair_of(client.get(link).text) == pair


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_texts_are_shown_and_never_markup(client, link):
    for page in (client.get(link).text, client.post(f"{link}/consent").text):
        parsed = Tags(page)
        assert not [
            name for name, _ in parsed.attributes if name.startswith("on") or name == "style"
        ]
        assert "alert(1)" in parsed.text
        assert "{{ 7 * 7 }}" in parsed.text
        assert page.count("<script") == page.count('<script src="/study.js" defer></script>')


def test_nothing_but_this_server_is_asked(client, link):
    pair = client.post(f"{link}/consent")
    loaded = [v for k, v in Tags(pair.text).attributes if k in ("src", "href", "action")]
    assert len(loaded) == 5
    for address in loaded:
        assert address.startswith("/")
        assert not address.startswith("//")
    for name in ("/study.css", "/study.js"):
        assert client.get(name).status_code == 200
        assert "http" not in client.get(name).text
    for page in (pair, client.get("/nowhere"), client.get("/study.js"), client.post("/study.js")):
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "no-referrer"


def test_a_page_does_not_tell_which_image_is_which(client, folder, link):
    """Neither names nor sizes nor metadata: only the pixels differ."""
    page = client.post(f"{link}/consent").text
    assert not re.search("original|calibrated", page)
    names = re.findall(r'src="(/s/[^"]+/image/[0-9a-f]{32}\.png)"', page)
    assert len(names) == 2
    for name in names:
        answered = client.get(name)
        assert answered.headers["content-type"] == "image/png"
        assert "content-disposition" not in answered.headers
        assert client.get(name.replace("/s/1-", "/s/2-")).status_code == 404
    ids = sorted(folder.read().by_id())
    assert ids != list(folder.read().by_id())
    for path in folder.images.iterdir():
        with Image.open(path) as opened:
            assert not opened.info


def test_images_on_the_left_are_those_that_votes_are_counted_for(client, folder, link):
    """Red tells the condition (``studies.folders``); the vote says which side it was on."""
    pair, shown = begun(client, link), {}
    while pair:
        page = client.get(link).text
        left, right = re.findall(r'src="/s/[^"]+/image/([^"]+)"', page)
        shown[pair] = left
        pair = pair_of(client.post(f"{link}/vote", data=answer(pair)).text)
    pairs = folder.read().by_id()
    votes = Votes(folder.votes).all()
    assert {v.flipped for v in votes} == {True, False}
    for vote in votes:
        condition = pairs[vote.pair].conditions[vote.flipped]
        if not pairs[vote.pair].check:
            with Image.open(folder.images / shown[vote.pair]) as opened:
                red = int(np.asarray(opened)[0, 0, 0])
            assert condition == {0: "original", 40: "calibrated"}[red]


@pytest.mark.parametrize("name", ["../study.json", "..%2fvotes.db", "x.png", "0" * 32 + ".png"])
def test_only_images_of_the_study_are_sent(client, link, name):
    assert client.get(f"{link}/image/{name}").status_code == 404


def test_a_vote_that_cannot_be_written_is_not_acknowledged(client, folder, link, monkeypatch):
    pair = begun(client, link)
    folder.votes.rename(folder.votes.with_suffix(".away"))
    refused = client.post(f"{link}/vote", data=answer(pair))
    assert refused.status_code == 503
    assert str(folder.path) not in refused.text
    folder.votes.with_suffix(".away").rename(folder.votes)
    client.post(f"{link}/vote", data=answer(pair))
    assert len(Votes(folder.votes).all()) == 2
