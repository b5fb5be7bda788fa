"""Requests that carry their plans: a worker elsewhere has no file of the coordinator's."""

from __future__ import annotations

import json
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from attnpass.plan import Plan
from attnpass.tuner.measure.exchange import Protocol, Reply
from attnpass.tuner.measure.worker import Worker


@dataclass(frozen=True)
class PackedPlan:
    """A plan as bytes.

    Attributes:
        hash: of the plan. document: its JSON. tensors: as safetensors, empty where it has none.
    """

    hash: str
    document: str
    tensors: bytes = b""

    @classmethod
    def of(cls, plan: Plan) -> PackedPlan:
        """The bytes of a plan."""
        from safetensors.torch import save

        tensors = plan.tensors()
        packed = save(tensors) if tensors else b""
        return cls(plan.hash, json.dumps(plan.as_dict()), packed)

    def plan(self) -> Plan:
        """The plan of these bytes; nothing is unpickled.

        Raises:
            PlanError: they are not those of a plan.
        """
        from safetensors.torch import load

        tensors = load(self.tensors) if self.tensors else {}
        return Plan.from_dict(json.loads(self.document), Path("plan.json"), tensors)


@dataclass(frozen=True)
class PackedRequest:
    """A request with all that it needs.

    Attributes:
        protocol: how times are taken. plans: the models to time, None among them the unchanged
            one; None instead of all asks for the five series of ``Worker.ceiling``.
    """

    protocol: Protocol
    plans: tuple[PackedPlan | None, ...] | None = None

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan | None],
        protocol: Protocol,
        known: MutableMapping[int, PackedPlan] | None = None,
    ) -> PackedRequest:
        """The request for the times of plans; ``known`` holds what is packed, by ``id(plan)``."""
        known = {} if known is None else known
        packed = list[PackedPlan | None]()
        for plan in plans:
            found = None if plan is None else known.get(id(plan)) or PackedPlan.of(plan)
            if found is not None:
                known[id(plan)] = found
            packed.append(found)
        return cls(protocol, tuple(packed))

    @property
    def size(self) -> int:
        """How many models are timed."""
        return 5 if self.plans is None else len(self.plans)

    def asked_of(self, worker: Worker) -> Reply:
        """The worker's reply; it reads the plans from a folder of their own.

        Raises:
            PlanError: a plan's bytes are damaged. KeyboardInterrupt: the worker is to stop.
        """
        if self.plans is None:
            return worker.ceiling(self.protocol)
        with TemporaryDirectory(prefix="attnpass-") as folder:
            files = [
                None if p is None else str(p.plan().save(Path(folder, f"{i}.json")))
                for i, p in enumerate(self.plans)
            ]
            return worker.measure(files, self.protocol)
