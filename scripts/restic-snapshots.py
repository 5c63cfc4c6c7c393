#!/usr/bin/env python3
"""Writes snapshots into a new restic repository (version 1), as fast as files can be written: restic-snapshots.py REPO <lines
Each line is a time, 2026-11-20T01:00:00Z, a space and a host. RESTIC_PASSWORD is the repository's. For comparing rules
and speed only: the snapshots have no content. Wants restic and Debian's python3-cryptography."""
import base64, hashlib, json, os, subprocess, sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

repo = sys.argv[1]
key = json.loads(subprocess.check_output(["restic", "--no-cache", "-r", repo, "cat", "masterkey"]))
encrypt = base64.b64decode(key["encrypt"])
mac_k, mac_r = base64.b64decode(key["mac"]["k"]), base64.b64decode(key["mac"]["r"])


def seal(text):
    """restic's encryption: AES-256-CTR, and Poly1305 with a one-time key made by AES-128 from the nonce."""
    nonce = os.urandom(16)
    stream = Cipher(algorithms.AES(encrypt), modes.CTR(nonce)).encryptor()
    sealed = stream.update(text) + stream.finalize()
    block = Cipher(algorithms.AES(mac_k), modes.ECB()).encryptor()
    return nonce + sealed + Poly1305.generate_tag(mac_r + block.update(nonce) + block.finalize(), sealed)


for line in sys.stdin:
    time, host = line.split()
    snapshot = {"time": time, "tree": "0" * 64, "paths": ["/x"], "hostname": host, "username": "root"}
    data = seal(json.dumps(snapshot).encode())
    with open(os.path.join(repo, "snapshots", hashlib.sha256(data).hexdigest()), "xb") as out:
        out.write(data)
