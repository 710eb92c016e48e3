"""Signatures: an in-toto statement with the checksums of a card's files, in a DSSE envelope.

Keys are Ed25519, in PEM files. No network is used.

References:
    | in-toto Statement v1, https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    | DSSE v1, https://github.com/secure-systems-lab/dsse
"""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.errors import UserError, one_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FILE = "card.intoto.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:equipoise:card:1"
PAYLOAD = "application/vnd.in-toto+json"
MODEL_DIGEST = "equipoise_model_1"  # names, types, shapes and values of the weights
LARGEST = 1 << 24  # bytes of a key or an envelope that is read

Subjects = Mapping[str, Mapping[str, str]]
"""The checksums of each file, by its name and their kind."""

_KIND = "is a key of another kind; expected Ed25519, as equipoise card keygen makes"


def keygen(path: Path) -> Path:
    """Write a new pair of keys, and return the path of the public one.

    Arguments:
        path: The file of the private key, which only its owner can read; the public key has the
            same name with the ending ``.pub``.

    Raises:
        UserError: If a file is there already, or cannot be written.
    """
    _need()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name}.pub")
    key = Ed25519PrivateKey.generate()
    pem, no_password = form.Encoding.PEM, form.NoEncryption()
    secret = key.private_bytes(pem, form.PrivateFormat.PKCS8, no_password)
    shown = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise UserError(f"{public} exists: a key is never overwritten; choose another --out")
    _write(path, secret, 0o600)
    try:
        _write(public, shown, 0o644)
    except UserError:
        path.unlink()  # of a pair both or none
        raise
    return public


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a new file with the rights of ``mode``."""
    place = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(place, "wb") as file:
            file.write(content)
    except OSError as error:
        if place is not None:
            path.unlink()  # the file is this one's, and incomplete
        why = "it exists and is never overwritten" if os.path.lexists(path) else error.strerror
        raise UserError(f"cannot write {path}: {why}; choose another --out") from None


def sign(subjects: Subjects, predicate: Mapping[str, Any], key: Path) -> bytes:
    """Return the envelope of a statement; the same statement and key give the same bytes.

    Arguments:
        subjects: What the statement is about.
        predicate: What it says of them.
        key: The file of the private key.

    Raises:
        UserError: If the key cannot be read, or is of another kind.
    """
    _need()
    content = _read(key)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

    try:
        private = load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        why = "it has a password" if isinstance(error, TypeError) else "it is not in PEM format"
        if b"BEGIN PUBLIC" in content:
            why = "it is a public key: sign with the private one"
        line = f"{key} is no private key that can be read ({why}); a new pair without a password"
        raise UserError(f"{line}: equipoise card keygen") from None
    except Exception:  # the library has an own exception for kinds it does not know
        raise UserError(f"{key} {_KIND}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(f"{key} {_KIND}")
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": n, "digest": dict(digest)} for n, digest in subjects.items()],
        "predicateType": PREDICATE,
        "predicate": dict(predicate),
    }
    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD, {})
    envelope.sign(CryptoSigner(private))
    return json.dumps(envelope.to_dict(), indent=1, sort_keys=True).encode() + b"\n"


def public_key(path: Path) -> "Ed25519PublicKey":
    """Return a public key.

    Raises:
        UserError: If it cannot be read, or is of another kind.
    """
    _need()
    content = _read(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except Exception:  # the library has an own exception for kinds it does not know
        private = " (it is a private key: never give it away)" * (b"PRIVATE" in content)
        line = f"{path} is no public key that can be read{private}; give the .pub file of the pair"
        raise UserError(line) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} {_KIND}")
    return key


def opened(folder: Path, key: "Ed25519PublicKey") -> tuple[str, dict[str, dict[str, str]]]:
    """Return why the signature of a card is wrong, or nothing; and the subjects of its statement.

    Raises:
        UserError: If the envelope is missing, or is none.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    path = folder / FILE
    if not path.is_file():
        return f"the card is not signed: it has no {FILE}", {}
    content = _read(path)
    try:
        envelope = Envelope.from_dict(json.loads(content))
        given = SSlibKey.from_crypto(key)
        envelope.verify([given], 1)
    except VerificationError:
        return "the signature is not of this key, or the statement has changed", {}
    except Exception as error:  # the library checks little of what it reads
        raise UserError(f"{path} is no envelope that can be read: {one_line(error)}") from None
    try:
        statement = json.loads(envelope.payload)
        kinds = envelope.payload_type, statement["_type"], statement["predicateType"]
        if kinds != (PAYLOAD, STATEMENT, PREDICATE):
            return f"what is signed is no card: {', '.join(map(str, kinds))[:200]}", {}
        subjects = {str(s["name"]): dict(s["digest"]) for s in statement["subject"]}
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} has no statement that can be read: {one_line(error)}") from None
    return "", subjects


def _need() -> None:
    """Raise a UserError if a package is missing."""
    if not all(map(find_spec, ("cryptography", "securesystemslib"))):
        raise UserError("signatures need two packages more: pip install 'equipoise[sign]'")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is no file" if path.exists() else f"there is no file {path}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MB")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
