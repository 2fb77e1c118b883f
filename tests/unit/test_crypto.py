"""Encryption: what decrypts, what does not, and which key is named."""

from __future__ import annotations

import base64
import os
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.crypto import EncryptionError, Encryptor

NEW, OLD, FOREIGN = (SecretStr(base64.b64encode(os.urandom(32)).decode()) for _ in range(3))


@pytest.fixture(scope="module", name="encryptor")
def _encryptor():
    return Encryptor([NEW, OLD])


@given(st.binary(max_size=300), st.text(max_size=20))
def test_what_is_sealed_opens_again_and_does_not_show_its_content(plain, purpose):
    encryptor = Encryptor([NEW])
    sealed = encryptor.encrypt(plain, purpose=purpose)
    assert encryptor.decrypt(sealed, purpose=purpose) == plain
    assert len(plain) < 8 or plain not in sealed


def test_the_same_text_is_sealed_differently_each_time(encryptor):
    assert len({encryptor.encrypt(b"same", purpose="p") for _ in range(50)}) == 50


def test_a_sealed_text_opens_for_its_own_purpose_only(encryptor):
    with pytest.raises(EncryptionError, match="changed, moved, or sealed under another key"):
        encryptor.decrypt(
            encryptor.encrypt(b"x", purpose="merchant/a/password"), purpose="merchant/b/password"
        )


def test_one_changed_byte_anywhere_keeps_it_shut(encryptor):
    sealed = encryptor.encrypt(b"secret", purpose="p")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(EncryptionError):
            encryptor.decrypt(bytes(changed), purpose="p")


@pytest.mark.parametrize("length", [0, 3, 4, 10, 16, 20])
def test_half_a_sealed_text_is_an_error_of_ours(encryptor, length):
    with pytest.raises(EncryptionError):
        encryptor.decrypt(encryptor.encrypt(b"secret", purpose="p")[:length], purpose="p")


def test_an_older_key_still_opens_and_the_newest_seals():
    before = Encryptor([OLD]).encrypt(b"x", purpose="p")
    after = Encryptor([NEW, OLD])
    assert after.decrypt(before, purpose="p") == b"x"
    assert after.newest.id == Encryptor([NEW]).newest.id
    assert Encryptor([NEW]).decrypt(after.encrypt(b"y", purpose="p"), purpose="p") == b"y"


def test_a_missing_key_is_named():
    sealed = Encryptor([FOREIGN]).encrypt(b"x", purpose="p")
    key_id = Encryptor([FOREIGN]).newest.id
    with pytest.raises(
        EncryptionError, match=f"sealed under key {key_id}, which ORCHESTRATOR_SECRET_KEYS does not have"
    ):
        Encryptor([NEW, OLD]).decrypt(sealed, purpose="p")
    assert Encryptor([NEW, OLD]).known(key_id) is None


def test_an_encryptor_without_keys_says_what_to_set():
    with pytest.raises(EncryptionError, match="ORCHESTRATOR_SECRET_KEYS is not set"):
        Encryptor([])


def test_a_data_key_survives_its_wrapping_and_the_rotation_of_the_secret_keys():
    owner = uuid4()
    key, wrapped = Encryptor([OLD]).new_data_key(owner)
    sealed = key.encrypt(b"anna@shop.example", purpose="intent")
    assert (
        Encryptor([NEW, OLD]).data_key(owner, wrapped).decrypt(sealed, purpose="intent")
        == b"anna@shop.example"
    )


def test_personal_data_moved_to_another_checkout_or_column_does_not_open(encryptor):
    owner, other = uuid4(), uuid4()
    key, wrapped = encryptor.new_data_key(owner)
    sealed = key.encrypt(b"x", purpose="intent")
    with pytest.raises(EncryptionError):
        key.decrypt(sealed, purpose="callback")
    with pytest.raises(EncryptionError):
        encryptor.data_key(other, wrapped)
    with pytest.raises(EncryptionError):
        encryptor.new_data_key(owner)[0].decrypt(sealed, purpose="intent")


def test_an_erased_customer_is_shown_as_erased(encryptor):
    with pytest.raises(EncryptionError, match="the personal data of order-1 was erased"):
        encryptor.data_key("order-1", None)


def test_a_signature_holds_for_its_purpose_message_and_any_known_key():
    tag = Encryptor([OLD]).sign("link", b"message")
    assert len(tag) == 16
    assert Encryptor([NEW, OLD]).signed("link", b"message", tag)
    assert not Encryptor([NEW, OLD]).signed("link", b"messagf", tag)
    assert not Encryptor([NEW, OLD]).signed("other", b"message", tag)
    assert not Encryptor([NEW]).signed("link", b"message", tag)
    assert not Encryptor([NEW, OLD]).signed("link", b"message", tag[:15])


def test_derived_keys_differ_for_each_purpose_and_each_secret(encryptor):
    keys = {
        Encryptor([key]).newest.derived(purpose)
        for key in (NEW, OLD)
        for purpose in ("audit", "seal", "link")
    }
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}


def test_printing_a_data_key_does_not_show_it(encryptor):
    key, _ = encryptor.new_data_key("order-1")
    assert repr(key) == str(key) == "DataKey(owner='order-1')"


def test_printing_a_secret_key_does_not_show_it(encryptor):
    assert repr(encryptor.newest.master) not in repr(encryptor.newest)
