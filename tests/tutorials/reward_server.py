"""A reward as a service of its own, for `reward=http`: copy it and write your own `score`.

Start it with `REWARD_TOKEN=secret python tests/tutorials/reward_server.py 8900`, and add to a run
with the same variable: `reward=http reward.scorer.token_variable=REWARD_TOKEN`. With
`reward.scorer.send_images=true` a sample's images are bytes of files, in order.
"""

import base64
import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def score(sample):
    """Return a number, None to abstain, or a dict with "reward" and parts."""
    right = sample["response"].strip() == sample["ground_truth"]
    return {"reward": float(right), "correct": right}


def read_samples(request):
    """Put the files of the images, which siblings share, into the samples that show them."""
    files = [base64.b64decode(url.partition(",")[2]) for url in request.get("images", ())]
    for sample in request["samples"]:
        sample["images"] = [files[number] for number in sample.get("images", ())]
    return request["samples"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = f"Bearer {os.environ.get('REWARD_TOKEN', '')}"
        given = self.headers.get("Authorization", "Bearer ")
        if not hmac.compare_digest(given, wanted):
            return self.answer(401, {"error": "wrong token"})
        scores = [score(sample) for sample in read_samples(json.loads(body))]
        return self.answer(200, {"scores": scores})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def make_server(port):
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    make_server(int(sys.argv[1])).serve_forever()
