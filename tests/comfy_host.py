"""A real ComfyUI for the tests: find it, start it with the pack linked in, and talk to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PACK = "pack-under-test"  # its folder in custom_nodes; nothing may rely on the name
# what main.py does for Dynamic VRAM once it has found a card; without one it goes no further
DYNAMIC = """
import comfy.memory_management
import comfy.model_patcher
import comfy_aimdo.control

comfy_aimdo.control.init()
comfy.memory_management.aimdo_enabled = True
comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
NODE_CLASS_MAPPINGS = {}
"""
# of the page; a help page opens the panel
USUAL = {
    "TutorialCompleted": True,
    "OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "RightSidePanel.IsOpen": False,
    "Execution.PreviewMethod": "default",
    "VueNodes.Enabled": False,
    "Locale": "en",
}
# Timeouts for a very busy machine: of the start, and of a prompt that sends no message.
START_SECONDS, PROMPT_SECONDS = 600, 600
HOW_TO = (
    "no ComfyUI found, so nothing was tested in it: run `.ci/get-host DIR`, then set "
    "COMFYUI_PATH=DIR/ComfyUI and COMFYUI_PYTHON=DIR/venv/bin/python (or your own)"
)


def find() -> tuple[Path, str] | None:
    """The host's folder and Python: COMFYUI_PATH, around this pack, or comfy-cli's folder."""
    if given := os.environ.get("COMFYUI_PATH"):
        if not Path(given, "main.py").exists():
            raise FileNotFoundError(f"COMFYUI_PATH={given} is not a ComfyUI: it has no main.py")
        return Path(given).resolve(), os.environ.get("COMFYUI_PYTHON", sys.executable)
    if ROOT.parent.name == "custom_nodes" and (ROOT.parents[1] / "main.py").exists():
        return ROOT.parents[1], os.environ.get("COMFYUI_PYTHON", sys.executable)
    path = Path.home() / "comfy" / "ComfyUI"
    python = path / ".venv" / "bin" / "python"
    return (path, str(python)) if (path / "main.py").exists() and python.exists() else None


def link(path: Path) -> None:
    """Link this pack to a path, unless it is linked there."""
    if path.exists():
        return
    if os.name == "nt":  # symbolic links are for administrators there
        subprocess.run(["cmd", "/c", "mklink", "/J", path, ROOT], check=True)
    else:
        path.symlink_to(ROOT, target_is_directory=True)


@dataclass
class Outcome:
    """The result of a prompt: messages, preview frames, images, and error."""

    messages: list[dict] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    def of(self, kind: str) -> list[dict]:
        """The data of all messages of a kind."""
        return [message["data"] for message in self.messages if message["type"] == kind]

    def text_of(self, node: str) -> str:
        """What a node shows on itself."""
        (shown,) = [data["output"] for data in self.of("executed") if data["node"] == node]
        return "\n".join(shown["text"])

    @property
    def error(self) -> str | None:
        """What the page would show in its error dialog."""
        return next(
            (data["exception_message"].strip() for data in self.of("execution_error")), None
        )


class Refused(Exception):
    """The host refused a prompt before running it; the text is its answer."""


class Host:
    """A running ComfyUI with this pack, on its own port and base directory.

    COMFYUI_FRONTEND: the folder of another frontend than the host's own. other_pack: the source of
    another custom node. options: of the host's command line. With ``DYNAMIC`` it simulates Dynamic
    VRAM, except what needs a GPU (weights are still whole in memory, and patched there): layers
    start empty, and the code paths for Dynamic VRAM are used.
    """

    def __init__(
        self,
        path: Path,
        python: str,
        base: Path,
        other_pack: str = "",
        options: Sequence[str] = ("--cpu",),
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.base = base
        (base / "custom_nodes").mkdir(exist_ok=True)
        (base / "input").mkdir(exist_ok=True)
        shutil.copy(path / "input" / "example.png", base / "input")  # for Load Image
        link(base / "custom_nodes" / PACK)
        if other_pack:
            (base / "custom_nodes" / "other_pack.py").write_text(other_pack)
        command = [python, "main.py", *options, "--listen", "127.0.0.1"]
        command += ["--port", self.address.split(":")[1], "--base-directory", str(base)]
        command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        if frontend := os.environ.get("COMFYUI_FRONTEND"):
            command += ["--front-end-root", frontend]
        with (base / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=path, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_up()

    @property
    def log(self) -> str:
        """The host's output so far, without colours."""
        return re.sub(r"\x1b\[\d+m", "", (self.base / "log").read_text(errors="replace"))

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.nodes = self.get("/object_info")
                return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.3)
        ended = self.process.poll()
        self.stop()
        how = f"ended with code {ended}" if ended is not None else "gave no answer"
        raise RuntimeError(self.failed(f"The start of ComfyUI {how}", START_SECONDS))

    def wait(self, what: str, look: Callable[[], object]) -> object:
        """Call ``look`` until its result is true, and return it; RuntimeError after the timeout."""
        deadline = time.monotonic() + PROMPT_SECONDS
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.1)
        raise RuntimeError(self.failed(what, PROMPT_SECONDS))

    def failed(self, what: str, seconds: float) -> str:
        """An error message: what was waited for, the timeout, and the end of the log."""
        return f"{what} within {seconds:g} seconds; its log ends:\n{self.log[-3000:]}"

    def stop(self) -> None:
        if self.process.poll() is None:
            if os.name == "nt":
                self.process.terminate()
            else:
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(START_SECONDS)

    def fetch(self, path: str, body: object = None) -> bytes:
        """What is at a path; body: JSON to post there."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PROMPT_SECONDS) as answer:
            return answer.read()

    def get(self, path: str) -> dict:
        """The JSON at a path."""
        return json.loads(self.fetch(path))

    def interrupt(self, prompt: str | None = None) -> None:
        """What the page's cancel button does; only to this prompt, where one is given."""
        self.fetch("/interrupt", {"prompt_id": prompt} if prompt else {})

    def filled(self, prompt: dict) -> dict:
        """The prompt with every widget that it leaves out at its default, as on the page."""
        nodes = {}
        for name, node in prompt.items():
            kind, inputs = node["class_type"], dict(node["inputs"])
            fill(inputs, self.nodes[kind]["input"].get("required", {}))
            nodes[name] = {"class_type": kind, "inputs": inputs}
        return nodes

    def events(
        self, prompt: dict, preview: str = "none", seconds: float = PROMPT_SECONDS, **extra
    ) -> Iterator[dict | bytes]:
        """Queue a prompt; its websocket messages (frames are bytes) until it is over.

        seconds: timeout between messages; extra: more data that the page sends, as extra_pnginfo.
        """
        import websocket  # needed only where there is a host

        client = uuid.uuid4().hex
        wire = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={client}", timeout=seconds
        )
        body = {
            "prompt": self.filled(prompt),
            "client_id": client,
            "extra_data": {"preview_method": preview, **extra},
        }
        try:
            number = json.loads(self.fetch("/prompt", body))["prompt_id"]
            while True:
                message = wire.recv()
                if isinstance(message, bytes):
                    yield message
                    continue
                message = json.loads(message)
                if message["data"].get("prompt_id") == number:
                    yield message
                    if message["type"] == "executing" and message["data"]["node"] is None:
                        return
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error
        except websocket.WebSocketTimeoutException as error:
            what = f"The prompt {list(self.filled(prompt))} sent no message"
            raise RuntimeError(self.failed(what, seconds)) from error
        finally:
            wire.close()

    def run(
        self, prompt: dict, preview: str = "none", seconds: float = PROMPT_SECONDS, **extra
    ) -> Outcome:
        """Run a prompt to its end, well or not. Raises Refused."""
        outcome = Outcome()
        for event in self.events(prompt, preview, seconds, **extra):
            if isinstance(event, bytes):
                outcome.previews.append(event)
            else:
                outcome.messages.append(event)
        number = outcome.messages[0]["data"]["prompt_id"]
        files = self.images(self.get(f"/history/{number}")[number])
        outcome.images = [Image.open(BytesIO(file)) for file in files]
        return outcome

    def images(self, entry: dict) -> list[bytes]:
        """The image files of an entry of the history, by their nodes' ids.

        The history has them as the nodes ran, which differs if some of them are cached.
        """
        nodes = sorted(entry["outputs"], key=lambda node: (len(node), node))
        images = [i for node in nodes for i in entry["outputs"][node].get("images", [])]
        return [self.fetch("/view?" + urllib.parse.urlencode(image)) for image in images]

    def complaints(self) -> list[str]:
        """Tracebacks through this pack, except of UserErrors, which are messages to the user."""
        log, traceback = self.log, r"^.*Traceback \(most recent.*\n(?: .*\n)*.*"
        blocks = [
            found[0]
            for found in re.finditer(traceback, log, re.M)
            if not log[found.end() :].lstrip().startswith("The above exception")
        ]
        ours = [block for block in blocks if f"custom_nodes/{PACK}" in block or str(ROOT) in block]
        meant = r"\n\S*(User|UnknownPrompt|Checkpoint)Error: "
        return [block for block in ours if not re.search(meant, block)]


def fill(inputs: dict, schema: dict, within: str = "") -> None:
    """Set missing inputs to their defaults; inputs of a choice's option are named CHOICE.NAME."""
    for name, (_, *options) in schema.items():
        key, given = within + name, options[0] if options else {}
        choices = given.get("options") or []
        if key not in inputs and "default" in given:
            inputs[key] = given["default"]
        elif key not in inputs and choices:
            inputs[key] = choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
        for choice in choices:
            if isinstance(choice, dict) and choice["key"] == inputs[key]:
                fill(inputs, choice["inputs"].get("required", {}), f"{key}.")


def chromium() -> str | None:
    """The browser for the page's tests."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def opened(host: Host, browser, settings: dict | None = None):
    """The host's page, empty, as a user has it from the second day on.

    The host's own templates are a package of their own that is not here: its lists are empty.
    """
    for name, value in (USUAL | (settings or {})).items():
        host.fetch(f"/settings/Comfy.{name}", value)
    host.fetch("/history", {"clear": True})  # a page cannot read odd prompts
    host.fetch("/free", {"free_memory": True})  # no result of an earlier page's run is kept
    from playwright.sync_api import TimeoutError

    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
    nothing = {"body": "", "content_type": "text/plain"}  # the search keeps its own settings
    page.route("**/templates/fuse_options.json", lambda route: route.fulfill(**nothing))
    page.set_default_timeout(1000 * START_SECONDS)
    try:
        page.goto(f"http://{host.address}")
        page.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow")
    except TimeoutError as error:
        raise RuntimeError(host.failed("The page did not open", START_SECONDS)) from error
    yield page
    page.close()
