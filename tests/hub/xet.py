"""A Xet store in a folder: ``local://`` is the address under which hf_xet's own tools read and write one."""

from __future__ import annotations

import time
from pathlib import Path

import hf_xet

from .repos import HubFile


class XetStore:
    """Content-addressed storage of large files, chunked and packed by hf_xet itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = hf_xet.XetSession()
        self._hashes: dict[str, str] = {}

    @property
    def address(self) -> str:
        return f"local://{self._folder}"

    def put(self, file: HubFile) -> str:
        """Keep the file's content (once); returns its Xet hash."""
        if file.sha256 not in self._hashes:
            expires = int(time.time()) + 3600
            with self._session.new_upload_commit(
                endpoint=self.address, token="xet-token", token_expiry_unix_secs=expires
            ) as commit:
                upload = commit.start_upload_bytes(file.read())
            self._hashes[file.sha256] = upload.result().xet_info.hash
        return self._hashes[file.sha256]

    def swap(self, one: HubFile, other: HubFile) -> None:
        """From now on each is found under the other's name."""
        first, second = self.put(one), self.put(other)
        self._hashes |= {one.sha256: second, other.sha256: first}

    def connection(self) -> dict[str, str]:
        """The headers with which the hub tells a client where the store is."""
        return {
            "X-Xet-Cas-Url": self.address,
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }
