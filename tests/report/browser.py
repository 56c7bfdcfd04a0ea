"""A headless Chromium, driven over a pipe by its DevTools protocol; nothing but Python needed."""

import json
import os
import pathlib
import select
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--remote-debugging-pipe", "--no-first-run", "--disable-background-networking"),
    "--hide-scrollbars",
)
_TIMEOUT = 60


class Browser:
    """One browser process with one page, without network."""

    def __init__(self, executable, profile):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def connect():
            # Chromium reads commands from descriptor 3 and answers on 4; duplicates first, as
            # either pipe may have one of these numbers.
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, None
        self.events = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        speed = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", offline=True, **speed)

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method, **parameters):
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        deadline = time.monotonic() + _TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width=1280, scheme="light", scripts=True):
        """Load a file; forgets what was logged before."""
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.scheme(scheme)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + _TIMEOUT
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} does not finish loading")
            self.call("Runtime.getIsolateId")
            time.sleep(0.02)

    def scheme(self, scheme, media=""):
        """Prefer light or dark; media "print" shows the page as printed."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, expression):
        """Value of a JavaScript expression."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def least_contrast(self):
        """Least contrast of all text that is shown, and the element that has it."""
        return self.run(pathlib.Path(__file__).with_name("contrast.js").read_text("utf-8"))

    def click(self, selector):
        """A real click in the middle of an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key, code):
        """A real key stroke."""
        stroke = {"key": key, "code": key if len(key) > 1 else "Space"}
        stroke["windowsVirtualKeyCode"] = code
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **stroke, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def logged(self, method):
        """What a kind of event came with since the page was opened."""
        self.call("Runtime.getIsolateId")
        return [event["params"] for event in self.events if event.get("method") == method]

    def problems(self):
        """Everything that was logged as a warning, an error or an exception."""
        bad = ("error", "warning")
        thrown = [data["exceptionDetails"] for data in self.logged("Runtime.exceptionThrown")]
        said = [each for each in self.logged("Runtime.consoleAPICalled") if each["type"] in bad]
        entries = [data["entry"] for data in self.logged("Log.entryAdded")]
        return [*thrown, *said, *(each["text"] for each in entries if each["level"] in bad)]

    def requests(self):
        """Addresses asked for other than data within the page."""
        sent = [each["request"]["url"] for each in self.logged("Network.requestWillBeSent")]
        return [address for address in sent if not address.startswith("data:")]

    def blocked(self):
        """Number of requests that the page's own policy stopped."""
        failed = self.logged("Network.loadingFailed")
        return sum(each.get("blockedReason") == "csp" for each in failed)
