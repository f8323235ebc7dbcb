"""A recipe's text where programs that keep pictures look for a description: Dublin Core's, in XMP.

Source: Adobe's XMP Specification, parts 1 and 3 (ISO 16684-1); digiKam, exiftool and others show and keep it.
"""

from __future__ import annotations

import html
import re

CHUNK = "XML:com.adobe.xmp"
"""The PNG text chunk that holds a packet."""

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>
<rdf:li xml:lang="x-default">{}</rdf:li>
</rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DESCRIPTION = re.compile(r"<dc:description>.*?<rdf:li[^>]*>(.*?)</rdf:li>", re.DOTALL)


def packet(text: str) -> str:
    """A packet whose description is ``text``, without the characters that XML cannot hold."""
    return _PACKET.format(html.escape(_NO_XML.sub("", text), quote=False))


def description(found: bytes | str | None) -> str | None:
    """The description in a packet; ``None`` where there is none."""
    text = found.decode("utf-8", errors="replace") if isinstance(found, bytes) else found or ""
    match = _DESCRIPTION.search(text)
    return html.unescape(match[1]) if match else None


__all__ = ["CHUNK", "description", "packet"]
