"""The API-format workflows, from a plain HTTP client: several in the queue, one cancelled."""

import json
import time

from comfy_host import ROOT

SETTLED = 60 * 2**20  # bytes that a warm host's memory may still move by


def load(name: str, seed: int) -> dict:
    """A workflow in API format with its own seed (otherwise the host answers from its cache)."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    for node in prompt.values():
        if node["class_type"] in ("DiverseVARSampler", "DiverseVAREdit"):
            node["inputs"]["seed"] = seed
    return prompt


def queue_five(host, first: int) -> list[dict]:
    """Queue five workflows at once and cancel the third once it runs; their history."""
    names = ["1 Text to image, works at once", "7 Edit an image, works at once"]
    names += ["3 As published and most different, side by side", "6 Inpaint an image"]
    names += ["VAREdit-8B, edit photographs (large)"]
    numbers = [
        json.loads(host.fetch("/prompt", {"prompt": load(name, first + i)}))["prompt_id"]
        for i, name in enumerate(names)
    ]

    def finished() -> list[dict] | None:
        history = host.get("/history")
        host.interrupt(numbers[2])
        done = all(number in history for number in numbers)
        return [history[number] for number in numbers] if done else None

    return host.wait("The queue of five did not finish", finished)


def memory(host) -> int:
    """Resident bytes of the host after a request to free all that it can."""
    host.fetch("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    with open(f"/proc/{host.process.pid}/statm") as pages:
        return int(pages.read().split()[1]) * 4096


def test_five_in_the_queue_one_cancelled_and_nothing_left(host):
    queue_five(host, 1000)
    before, files = memory(host), sorted((host.base / "temp").rglob("*"))
    first, second, cancelled, *rest = queue_five(host, 2000)
    for entry in (first, second, *rest):
        assert entry["status"]["status_str"] == "success"
        assert host.images(entry)
    assert "execution_interrupted" in [kind for kind, _ in cancelled["status"]["messages"]]
    queue = host.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []
    assert memory(host) - before < SETTLED
    left = [path for path in (host.base / "temp").rglob("*") if path not in files]
    assert not [path for path in left if path.suffix != ".png"]  # previews are the host's own
