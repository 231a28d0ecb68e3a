# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A loopback server that speaks OpenAI's chat protocol."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """Answers chat requests with `reply(request, number)`: (status, body) or (status, body, headers); keeps all requests."""

    def __init__(self, reply, port: int = 0):
        self.requests, self.keys = [], []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    self.requests.append(request)
                    self.keys.append(handler.headers["Authorization"])
                    number = len(self.requests)
                status, body, *headers = reply(request, number)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                for name, value in (headers[0] if headers else {}).items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def chat(text) -> dict:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
