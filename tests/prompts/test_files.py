import csv
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibri.errors import PromptError
from calibri.prompts import files as module
from calibri.prompts.files import Prompt, check_disjoint, load_prompts, make_prompts

TEXTS = ["a red circle, above a blue square", 'a "quoted" ring', "ein grüner Würfel", "二つの円"]

# One line of text: no line ends, no lone surrogates.
line_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


def write(path: Path, texts: list[str]) -> None:
    if path.suffix == ".txt":
        path.write_text("\n".join(texts), "utf-8", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(texts), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "prompt"], *(["0", text] for text in texts)])


def texts_of(prompts: tuple[Prompt, ...]) -> list[str]:
    return [prompt.text for prompt in prompts]


def test_an_id_depends_on_the_text_alone() -> None:
    prompts = make_prompts(TEXTS)
    for prompt in prompts:
        assert hashlib.sha256(prompt.text.encode("utf-8")).hexdigest()[:16] == prompt.id
    assert make_prompts([f"  {TEXTS[2]}\t", "other"])[0] == prompts[2]


def test_blank_and_repeated_texts_are_dropped_in_order() -> None:
    assert texts_of(make_prompts(["b", " ", "a ", "", "b\n", "a"])) == ["b", "a"]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts{suffix}"
    write(path, ["", *TEXTS, f" {TEXTS[0]} "])
    assert load_prompts(path) == make_prompts(TEXTS)
    assert load_prompts(path.rename(path.with_suffix(suffix.upper()))) == make_prompts(TEXTS)


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(line_text, min_size=1, max_size=5))
def test_files_agree_with_make_prompts(tmp_path: Path, suffix: str, texts: list[str]) -> None:
    path = tmp_path / f"prompts{suffix}"
    write(path, [*texts, "last"])
    assert load_prompts(path) == make_prompts([*texts, "last"])


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"prompts{suffix}"
    write(path, TEXTS)
    data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + data + b"\r\n\r\n")
    assert load_prompts(path) == make_prompts(TEXTS)


def test_json_takes_texts_and_objects_together(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('["a", {"prompt": "b", "id": 3}]')
    assert texts_of(load_prompts(path)) == ["a", "b"]
    path.with_suffix(".jsonl").write_text('"a"\n\n{"prompt": "b", "id": 3}')
    assert texts_of(load_prompts(path.with_suffix(".jsonl"))) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", "no prompts"),
        ("p.txt", b"\n \r\n\t", "no prompts"),
        ("p.txt", b"one\ntwo\xff\n", "line 2: not UTF-8"),
        ("p.txt", "one".encode("utf-16"), "line 1: not UTF-8"),
        ("p.txt", b"a\nb\n" + b"x" * 4001, "line 3: the prompt has 4001 characters"),
        ("p.yaml", b"- a", r"'\.yaml' is not a known kind"),
        ("p", b"a", "is not a known kind"),
        ("p.json", b"", "line 1, column 1: not JSON"),
        ("p.json", b"[]", "no prompts"),
        ("p.json", b'["a",\n"b"\n"c"]', "line 3, column 1: not JSON"),
        ("p.json", b'{"prompt": "a"}', "not a list"),
        ("p.json", b'["a", 3]', "entry 2: neither"),
        ("p.json", b'["a", {"text": "b"}]', "entry 2: neither"),
        ("p.json", b'["a", {"prompt": null}]', "entry 2: neither"),
        ("p.json", b'["a", "\\ud800"]', "entry 2: .* not valid Unicode"),
        ("p.json", b"[" * 200_000, "nested too deeply"),
        ("p.json", b"[" + b"1" * 5000 + b"]", "number too long|neither"),
        ("p.jsonl", b'"a"\n{"prompt": "b"\n', "line 2, column 15: not JSON"),
        ("p.jsonl", b'"a"\n\n["b"]\n', "line 3: neither"),
        ("p.csv", b"", "line 1: needs one column named 'prompt'"),
        ("p.csv", b"id,text\n1,a\n", "needs one column named 'prompt'"),
        ("p.csv", b"prompt,prompt\na,b\n", "needs one column named 'prompt'"),
        ("p.csv", b"prompt\n", "no prompts"),
        ("p.csv", b"prompt\na\na circle, red\n", "line 3: 2 cells under 1 columns"),
        ("p.csv", b"id,prompt\n1,a\n2\n", "line 3: 1 cells under 2 columns"),
        ("p.csv", b'prompt\n"a\n', "line 2: unexpected end of data"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=words) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    words = {"missing.txt": "No such file", "pipe.txt": "regular", "folder.txt": "regular"}
    for name, expected in words.items():
        with pytest.raises(PromptError, match=expected) as caught:
            load_prompts(tmp_path / name)
        assert name in str(caught.value)


def test_limits_hold_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"a\nb\nc\nb\n")
    monkeypatch.setattr(module, "MAX_PROMPTS", 3)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 8)
    assert len(load_prompts(path)) == 3
    path.write_bytes(b"a\nb\nc\nb\n\n")
    with pytest.raises(PromptError, match="larger than"):
        load_prompts(path)
    path.write_bytes(b"a\nb\nc\nd")
    with pytest.raises(PromptError, match=r"more than 3 prompts \(at line 4\)"):
        load_prompts(path)
    assert len(make_prompts(["é" * 4000])[0].text) == 4000
    with pytest.raises(PromptError, match="4001 characters"):
        make_prompts(["é" * 4001])


def test_no_prompts_at_all_is_refused() -> None:
    with pytest.raises(PromptError, match="no prompts"):
        make_prompts(["", "  "])


def test_disjoint_sets_pass_and_shared_prompts_are_named() -> None:
    train = make_prompts(f"prompt {i}" for i in range(10))
    assert check_disjoint(train, make_prompts(["other", "prompt 10"])) is None
    with pytest.raises(PromptError, match="^1 held-out .*: 'PROMPT  4'\\. Remove"):
        check_disjoint(train, make_prompts(["other", "PROMPT  4"]))
    with pytest.raises(
        PromptError, match="^5 validation prompts .*'prompt 2' and 2 more"
    ) as caught:
        check_disjoint(train, train[:5], "validation")
    assert "prompt 3" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '["a dog", {"prompt": " a cat ", "tag": "one", "count": "2"}]'),
        ("p.jsonl", '"a dog"\n{"tag": "one", "count": "2", "prompt": "a cat"}\n'),
        ("p.csv", "tag, prompt,count\n,a dog,\none,a cat,2\n"),
    ],
)
def test_what_a_file_says_beside_a_prompt_is_kept(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    dog, cat = load_prompts(tmp_path / name)
    assert cat.metadata == {"tag": "one", "count": "2"}
    assert set(dog.metadata.values()) <= {""}


def test_metadata_makes_no_other_prompt(tmp_path):
    (tmp_path / "p.json").write_text('[{"prompt": "a cat", "n": [1]}, {"prompt": "a cat", "n": 2}]')
    (told,) = load_prompts(tmp_path / "p.json")
    (plain,) = make_prompts(["a cat"])
    assert told == plain
    assert len({told, plain}) == 1
    assert (told.metadata, plain.metadata) == ({"n": [1]}, {})
