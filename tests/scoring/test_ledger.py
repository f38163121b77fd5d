"""The ledger believes no record that is not what a unit gives, whatever its checksum."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.coefficients.coefficients import Coefficients
from calibri.errors import CalibriError, JournalError
from calibri.prompts.files import make_prompts
from calibri.results import FEATURES, Fidelity
from calibri.sampling.sampler import Noise
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.plain_json import encode_exact
from calibri.scoring.units import make_unit

CANDIDATE = Coefficients(
    granularity="gate", scales=({"a": 1.5},), output_weights=(1.0,), start_weights=(1.0,)
)
NOISES = [Noise(prompt, 3) for prompt in make_prompts(["one", "two"])]
KEY = ("search", 0, 0)


def unit_of(kind="scores"):
    rows = [(0, noise) for noise in NOISES]
    return make_unit([CANDIDATE], rows, ("m",), Fidelity(num_inference_steps=2), kind)


def kept(record):
    records = MemoryRecords()
    records.append(record)
    return Ledger(records)


def slopes(rows):
    return encode_exact(np.array(rows))


def good(kind="scores"):
    record = {"kind": "unit", "phase": "search", "step": 0, "unit": 0, "seconds": 0.5}
    record |= {"digest": unit_of(kind).digest, "scores": {"m": [1.0, None]}}
    return record | ({"gradients": {"m": slopes([[0.5], [-1.0]])}} if kind == "gradients" else {})


@pytest.mark.parametrize("kind", ["scores", "gradients"])
def test_what_was_kept_is_found(kind):
    ledger = Ledger(MemoryRecords())
    assert ledger.find(KEY, unit_of(kind)) is None
    ledger.add(KEY, {k: v for k, v in good(kind).items() if k not in ("kind", "phase", "step")})
    assert ledger.find(KEY, unit_of(kind))["scores"] == {"m": [1.0, None]}
    features = {"float16": "AAA8AA==", "shape": [2, 1]}
    assert kept(good(kind) | {"scores": {"m": features}}).find(KEY, unit_of(kind)) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"phase": 3},
        {"step": "0"},
        {"unit": None},
        {"digest": 7},
        {"seconds": "long"},
        {"seconds": None},
        {"seconds": True},
        {"scores": None},
        {"scores": []},
        {"scores": {}},
        {"scores": {"m": [1.0]}},
        {"scores": {"m": [1.0, 2.0, 3.0]}},
        {"scores": {"m": ["1", "2"]}},
        {"scores": {"m": [[1.0], [2.0]]}},
        {"scores": {"m": [1.0, {}]}},
        {"scores": {"m": 3.0}},
        {"scores": {"m": {"float16": "?", "shape": [2, 1]}}},
        {"scores": {"m": {"float16": "AAA8AA==", "shape": [1, 2]}}},
        {"scores": {"m": {"float16": "AAA8AA==", "shape": "no"}}},
        {"scores": {"m": [10**400, 1.0]}},
        {"gradients": None},
        {"gradients": {"m": "steep"}},
        {"gradients": {"m": [[0.5], [-1.0]]}},
        {"gradients": {"m": slopes([[0.5]])}},
        {"gradients": {"m": slopes([0.5, -1.0])}},
        {"gradients": {"m": slopes([[0.5], [np.inf]])}},
        {"gradients": {"m": slopes([[0.5], [-1.0]]) | {"shape": [3, 1]}}},
        {"gradients": {"m": slopes([[0.5], [-1.0]]) | {"float64": "?"}}},
    ],
)
def test_wrong_fields_are_told_in_words(change):
    with pytest.raises(JournalError, match="none of ours"):
        kept(good("gradients") | change).find(KEY, unit_of("gradients"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*good("gradients"), "other"]), JSON, max_size=3))
def test_no_record_whatever_ends_in_anything_but_words(change):
    record = json.loads(json.dumps(good("gradients") | change))
    try:
        found = kept(record).find(KEY, unit_of("gradients"))
    except CalibriError:
        return
    if found is not None:
        assert np.shape(found["scores"]["m"]) == (2,) or "float16" in found["scores"]["m"]


def test_features_in_a_journal_are_vectors():
    unit = make_unit([CANDIDATE], [(0, NOISES[0])], (FEATURES,), Fidelity())
    records = MemoryRecords()
    entry = {"kind": "unit", "phase": "p", "step": 0, "unit": 0, "digest": unit.digest}
    records.append({**entry, "seconds": 0.0, "scores": {FEATURES: [1.0]}})
    with pytest.raises(JournalError, match="'features' are not 1"):
        Ledger(records).find(("p", 0, 0), unit)
