"""Actors of a Ray cluster for one run: started where there is room, waited for with a deadline, and ended together."""

import logging
import platform
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from kit.ray_address import inherited, require_answer

ROOM_S = 10.0  # for what just ended to give its room back
START_S = 600.0  # for a process to start and to load the model, wherever its files come from
PACKAGES = ("torch", "transformers", "ray")


class ActorFailed(RuntimeError):
    """A process of the run on the cluster died, or did not answer in time."""


class Cluster:
    """Where the actors of a run live.

    Args:
        address: of a cluster that exists, as `ray.init` takes it; "auto" finds this machine's. None = one for this
            process alone, on this machine.
        cpus, gpus: what all of the run's actors need. CPUs are counted on a cluster that others may use too, not
            without an address.
        deadline: seconds after which an actor that does not answer counts as dead, once it has started.

    Raises:
        ImportError: if Ray is not installed, with the command that installs it.
        ConnectionError: if there is no cluster at that address.
        RuntimeError: if it has less room than is needed; it says how much is missing.
    """

    def __init__(self, address: str | None, *, cpus: int, gpus: int, deadline: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "a run on several processes needs Ray, which is not installed: pip install -e '.[scale]'"
            ) from error
        self.deadline, self._actors = deadline, []
        self._cpus = int(address is not None)  # of each actor
        if address is not None:
            require_answer(address)
        if not ray.is_initialized():
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR, runtime_env=inherited(),
                include_dashboard=None if address else False,
            )  # fmt: skip
        self._require({"GPU": gpus} | ({"CPU": cpus} if address else {}))
        weakref.finalize(self, _end, self._actors)

    def _require(self, needed: Mapping[str, int]) -> None:
        """Room may still be held by a run that just ended, so it is waited for, a little."""
        import ray

        last = time.monotonic() + ROOM_S
        while any((free := ray.available_resources()).get(kind, 0) < count for kind, count in needed.items()):
            if time.monotonic() > last:
                missing = ", ".join(f"{count} {kind}s, {free.get(kind, 0):g} free" for kind, count in needed.items())
                raise RuntimeError(
                    f"not enough room on the cluster: the run needs {missing} of {_sum(ray.cluster_resources())} in "
                    "all. Ask for fewer trainers or samplers; end what else runs there (ray.shutdown() ends the runs "
                    "of this process); or add nodes (ray start --address=HEAD)"
                )
            time.sleep(0.2)

    def start(self, kind: Callable[..., Any], *arguments: Any, gpus: int) -> Any:
        """An actor with so many GPUs."""
        import ray

        options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(**options)(kind).remote(*arguments)
        self._actors.append(actor)
        return actor

    def end(self, actor: Any) -> None:
        _end([self._actors.pop(self._actors.index(actor))])

    def value(self, answer: Any, what: str, deadline: float | None = None) -> Any:
        """What comes of a call to an actor; see `values`."""
        return self.values([answer], what, deadline)[0]

    def values(self, answers: Sequence[Any], what: str, deadline: float | None = None) -> list[Any]:
        """What comes of calls to actors; what one of them raises is raised at once, whatever the others do.

        Raises:
            ActorFailed: if an actor died, or not all have answered in time; `what` says what was waited for.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        seconds = self.deadline if deadline is None else deadline
        pending, last = list(answers), time.monotonic() + seconds
        found: dict[Any, Any] = {}
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, last - time.monotonic()))
            if not done:
                raise ActorFailed(f"{what} was waited for, and did not come within {seconds:g} s")
            try:
                found |= zip(done, ray.get(done), strict=True)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                first = str(error).strip().splitlines()[0]
                raise ActorFailed(f"{what} was waited for, and its process died: {first}") from error
        return [found[answer] for answer in answers]

    def close(self) -> None:
        """End all actors."""
        _end(self._actors)


def _end(actors: list[Any]) -> None:
    import ray

    while actors:
        if ray.is_initialized():
            ray.kill(actors.pop())
        else:
            actors.clear()


def _sum(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def versions() -> dict[str, str]:
    """Of what two processes of one run must have in common."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def require_same_versions(found: Mapping[str, str], whose: str) -> None:
    """Raises RuntimeError if another machine's versions are not those of this one."""
    here = versions()
    odd = [f"{name} {found.get(name)} there, {here[name]} here" for name in here if found.get(name) != here[name]]
    if odd:
        raise RuntimeError(
            f"{whose} has other versions than this process: {'; '.join(odd)}. Install the same on every machine "
            "(constraints.txt)"
        )
