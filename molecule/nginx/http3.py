"""One request over HTTP/3: http3.py ADDRESS HOST PATH prints status and body."""

from __future__ import annotations

import asyncio
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    """Asks once."""

    async def get(self, host: str, path: str) -> str:
        self.http = H3Connection(self._quic)
        self.answer = [b"", b""]
        self.ended = asyncio.get_running_loop().create_future()
        head = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path}
        fields = [(name.encode(), value.encode()) for name, value in head.items()]
        self.http.send_headers(self._quic.get_next_available_stream_id(), fields, end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.ended, 10)
        return b" ".join(self.answer).decode()

    def quic_event_received(self, event: object) -> None:
        for part in self.http.handle_event(event) if hasattr(self, "http") else ():
            if isinstance(part, HeadersReceived):
                self.answer[0] = dict(part.headers)[b":status"]
            elif isinstance(part, DataReceived):
                self.answer[1] += part.data
            if part.stream_ended and not self.ended.done():
                self.ended.set_result(None)


async def main(address: str, host: str, path: str) -> None:
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, server_name=host
    )
    async with connect(address, 443, configuration=configuration, create_protocol=Client) as client:
        print(await client.get(host, path))


asyncio.run(main(*sys.argv[1:]))
