import hashlib
import http.server
import json
import re
import threading

import pytest

from calibri.config import load_config
from calibri.errors import PromptError
from calibri.prompts import sets as prompt_sets
from calibri.prompts.sets import SETS, PromptFile, is_prompt_set, load_prompt_set
from calibri.prompts.sources import prompt_sets as sets_of_a_run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRI_CACHE", str(tmp_path))
    return tmp_path


class _Files(http.server.BaseHTTPRequestHandler):
    """Serves what ``server.files`` has by address; a text there redirects to another."""

    def do_GET(self):
        address = self.server.address + self.path
        self.server.asked.append(address)
        content = self.server.files.get(address)
        if isinstance(content, str):
            self.send_response(302)
            self.send_header("Location", content)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"") + self.server.cut))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args):
        """Print nothing."""


class Web(dict):
    """Files by address, in place of the network, and the addresses that were asked for."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        server.files, server.asked, server.cut = self, [], 0

    @property
    def asked(self):
        return self.server.asked


@pytest.fixture
def web(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(
        PromptFile,
        "url",
        property(lambda file: f"{server.address}/{file.repo}/{file.revision}/{file.path}"),
    )
    yield Web(server)
    server.shutdown()
    server.server_close()
    thread.join()


def fill_compbench(web, split):
    for file in SETS["t2i-compbench"][split]:
        lines = [f"{file.category} prompt {i}, {split}" for i in range(3)]
        web[file.url] = "\r\n".join(lines).encode() + b"\n"
    return web


def test_a_set_has_a_category_for_every_prompt(web):
    records = load_prompt_set(fill_compbench(web, "val") and "t2i-compbench:val")
    assert len(records) == 24
    assert len({record.metadata["category"] for record in records}) == 8
    assert all(record.text.startswith(record.metadata["category"]) for record in records)


def test_categories_can_be_chosen(web):
    fill_compbench(web, "train")
    records = load_prompt_set("t2i-compbench:train:color,3d_spatial")
    assert [r.metadata["category"] for r in records] == ["color"] * 3 + ["3d_spatial"] * 3
    with pytest.raises(PromptError, match="no category colour"):
        load_prompt_set("t2i-compbench:train:colour")


def test_line_ends_blank_lines_and_repeats_do_not_matter(web):
    file = SETS["t2i-compbench"]["val499"][0]
    web[file.url] = "\ufeffa cat\r\n\r\n  a dog \na cat\ra bird".encode()
    found = [r.text for r in load_prompt_set("t2i-compbench:val499")]
    assert found == ["a cat", "a dog", "a bird"]


def test_geneval_keeps_what_its_rules_need(web):
    entry = {"tag": "counting", "prompt": "two cats", "include": [{"class": "cat", "count": 2}]}
    web[SETS["geneval"]["test"][0].url] = json.dumps(entry).encode() + b"\n\n"
    (record,) = load_prompt_set("geneval")
    told = {key: value for key, value in entry.items() if key != "prompt"}
    assert (record.text, record.metadata) == ("two cats", {**told, "category": "counting"})


def test_partiprompts_keep_their_quotes(web):
    text = "Prompt\tCategory\tChallenge\tNote\na \"big\" sign, 'NO'\tArts\tBasic\t\n"
    web[SETS["partiprompts"]["test"][0].url] = text.encode()
    (record,) = load_prompt_set("partiprompts")
    assert (record.text, record.metadata["category"]) == ("a \"big\" sign, 'NO'", "Arts")
    assert record.metadata["Challenge"] == "Basic"


@pytest.mark.parametrize(
    "entries", [["a", "b", "a"], [{"prompt": "a", "path1": "x"}, {"prompt": "b"}]]
)
@pytest.mark.parametrize("name", ["drawbench", "hpdv3"])
def test_json_lists_of_texts_or_objects(web, name, entries):
    web[SETS[name]["test"][0].url] = json.dumps(entries).encode()
    assert [r.text for r in load_prompt_set(name)] == ["a", "b"]


def test_the_network_is_asked_once(web):
    fill_compbench(web, "val")
    first = load_prompt_set("t2i-compbench:val")
    assert load_prompt_set("t2i-compbench:val") == first
    assert len(web.asked) == 8


def test_the_checksum_of_the_first_fetch_is_kept_and_verified(web, cache):
    file = SETS["drawbench"]["test"][0]
    web[file.url] = b'["a"]'
    load_prompt_set("drawbench")
    digest = file.cached.with_name("drawbench.json.sha256").read_text().strip()
    assert digest == hashlib.sha256(b'["a"]').hexdigest()
    file.cached.write_bytes(b'["b"]')
    with pytest.raises(PromptError, match="when it was first fetched"):
        load_prompt_set("drawbench")


def test_a_file_put_there_by_hand_is_used_and_remembered(web):
    file = SETS["drawbench"]["test"][0]
    file.cached.parent.mkdir(parents=True)
    file.cached.write_bytes(b'["by hand"]')
    assert load_prompt_set("drawbench")[0].text == "by hand"
    assert web.asked == []
    file.cached.write_bytes(b'["changed"]')
    with pytest.raises(PromptError, match="checksum"):
        load_prompt_set("drawbench")


def test_a_published_checksum_is_verified_before_anything_is_kept(web, monkeypatch):
    file = PromptFile("o/n", "x.txt", sha256="0" * 64)
    monkeypatch.setitem(SETS, "pinned", {"test": (file,)})
    web[file.url] = b"a"
    with pytest.raises(PromptError, match="as published"):
        load_prompt_set("pinned")
    assert not file.cached.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("drawbench", b"<html>"),
        ("drawbench", b"\xff\xfe"),
        ("drawbench", b"3"),
        ("geneval", b'{"no": "prompt"}'),
        ("geneval", b"[1]"),
        ("partiprompts", b"Text\tKind\na\tb\n"),
        ("hpdv3", b"[{}]"),
    ],
)
def test_another_file_than_expected_is_an_error_in_words(web, name, content):
    web[SETS[name]["test"][0].url] = content
    with pytest.raises(PromptError, match="is not the file that was expected"):
        load_prompt_set(name)


def test_a_published_file_that_changes_is_refused_with_both_sums(web):
    file = SETS["hpdv3"]["test"][0]
    web[file.url] = b'["a"]'
    load_prompt_set("hpdv3")
    file.cached.unlink()  # the cache was emptied, but the record of the sum was kept
    web[file.url] = b'["b"]'
    with pytest.raises(PromptError) as caught:
        load_prompt_set("hpdv3")
    for content in (b'["a"]', b'["b"]'):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert not file.cached.exists()
    file.cached.with_name("test.json.sha256").unlink()
    assert [r.text for r in load_prompt_set("hpdv3")] == ["b"]


def test_a_set_is_fetched_over_http_once_and_kept_byte_for_byte(web):
    file = SETS["drawbench"]["test"][0]
    web[file.url] = '\ufeff["a caf\u00e9", "b"]\r\n'.encode()
    for _ in range(2):
        assert [r.text for r in load_prompt_set("drawbench")] == ["a caf\u00e9", "b"]
    assert web.asked == [file.url]
    assert file.cached.read_bytes() == web[file.url]


def test_the_hub_may_redirect_to_where_it_keeps_a_file(web):
    file = SETS["drawbench"]["test"][0]
    web[file.url] = f"{web.server.address}/elsewhere"
    web[web[file.url]] = b'["a"]'
    assert [r.text for r in load_prompt_set("drawbench")] == ["a"]


def test_what_a_server_refuses_or_breaks_off_is_not_kept(web):
    file = SETS["drawbench"]["test"][0]
    with pytest.raises(PromptError, match=r"Cannot fetch .*404"):
        load_prompt_set("drawbench")
    web[file.url], web.server.cut = b'["a"', 5
    with pytest.raises(PromptError, match=r"Cannot fetch .*IncompleteRead"):
        load_prompt_set("drawbench")
    assert not file.cached.exists()


def test_a_file_that_is_too_large_is_not_kept(web, monkeypatch):
    monkeypatch.setattr(prompt_sets, "MAX_FILE_BYTES", 4)
    file = SETS["drawbench"]["test"][0]
    web[file.url] = b'["a"]'
    with pytest.raises(PromptError, match="not used"):
        load_prompt_set("drawbench")
    assert not file.cached.exists()


def test_all_files_but_one_are_pinned_to_a_commit():
    files = [f for splits in SETS.values() for group in splits.values() for f in group]
    loose = {f.repo for f in files if not re.fullmatch("[0-9a-f]{40}", f.revision)}
    assert loose == {"MizzenAI/HPDv3"}


def test_offline_says_what_to_do(monkeypatch):
    monkeypatch.setattr(PromptFile, "url", "http://127.0.0.1:1/nobody")
    file = SETS["geneval"]["test"][0]
    with pytest.raises(PromptError, match="Connection refused") as caught:
        load_prompt_set("geneval")
    assert file.url in str(caught.value)
    assert str(file.cached) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("imagenet", "no prompt set 'imagenet'"), ("geneval:train", "no split 'train'. It has test")],
)
def test_unknown_names_list_the_known_ones(spec, words):
    with pytest.raises(PromptError, match=words):
        load_prompt_set(spec)


@pytest.mark.parametrize("spec", ["t2i-compbench", "geneval:test", "hpdv3"])
def test_names_of_sets(spec):
    assert is_prompt_set(spec)
    assert not is_prompt_set("./" + spec)


def test_every_file_has_a_secure_url():
    files = [f for splits in SETS.values() for group in splits.values() for f in group]
    assert len(files) == 21
    assert all(file.url.startswith("https://") for file in files)


def test_prompts_that_official_splits_share_are_taken_from_the_training_side(web):
    fill_compbench(web, "train")
    fill_compbench(web, "val")
    (shared,) = (f.url for f in SETS["t2i-compbench"]["train"] if f.category == "shape")
    web[shared] = b"SHAPE  prompt 0, val\n" + web[shared]
    values = {
        "prompts.train": "t2i-compbench:train",
        "prompts.held_out": "t2i-compbench:val",
        "search.num_validation_prompts": 10,
        "evaluation.num_prompts": 14,
    }
    found = sets_of_a_run(load_config(values=values))
    assert len(found.train) == 24
    assert len(found.validation + found.test) == 24
    assert "SHAPE  prompt 0, val" not in {p.text for p in found.train}
