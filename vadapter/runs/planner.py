"""Plans a recipe on a topology: compiles its steps, and searches for settings that are faster or that fit at all."""

import collections
import dataclasses
from pathlib import Path
from typing import get_args

from vadapter.base import quantization, trees
from vadapter.base.errors import UserError
from vadapter.generation.decoding import DecodingConfig
from vadapter.models.attention import AttentionImpl
from vadapter.models.decoder import DecoderConfig
from vadapter.models.stacks import layer_stacks
from vadapter.planning import search
from vadapter.planning.estimate import Work, estimate
from vadapter.planning.plans import Decode, Part, Plan, gib
from vadapter.planning.programs import Program, compile_program
from vadapter.planning.topologies import Topology
from vadapter.runs.experiment import Experiment
from vadapter.runs.plan_parts import PlannedParts, setting_of, with_setting
from vadapter.training.compiler_options import compiler_options


@dataclasses.dataclass
class Planner:
    """Plans one recipe on one topology.

    Attributes:
        recipe: its name, for people.
        experiment: what it says.
        topology: to plan for.
        price: of a chip, in USD an hour; None: costs are left out.
        video: whether batches hold videos in place of still images.
        cache_dir: of compilation results; see `compile_program`.

    Raises:
        UserError: the recipe's mesh does not fit the topology; libtpu is missing.
    """

    recipe: str
    experiment: Experiment
    topology: Topology
    price: float | None = None
    video: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self):
        self.devices = self.topology.devices()
        mesh = self.experiment.mesh
        if self.topology.slices > 1 and mesh.slices == 1:
            mesh = dataclasses.replace(mesh, slices=self.topology.slices)
            self.experiment = dataclasses.replace(self.experiment, mesh=mesh)
        self.base = PlannedParts(self.experiment, self.devices, self.video)
        try:
            self.start = setting_of(self.experiment, self.base)
        except UserError as error:
            raise UserError(f"{self.topology.name}, {self.topology.slices} slices: {error}") from error

    def parts(self, setting: search.Setting | None = None) -> PlannedParts:
        """Returns the parts of the experiment at a setting; None is the recipe's own."""
        if setting is None:
            return self.base
        changed = with_setting(self.experiment, setting)
        return PlannedParts(changed, self.devices, self.video, known=self.base.program.boxed)

    def plan(self, setting: search.Setting | None = None) -> Plan:
        """Compiles the training step at a setting (None: the recipe's own) and says what it means.

        Raises:
            UserError: sizes do not fit one another.
        """
        parts = self.parts(setting)
        mesh = parts.partitioner.mesh
        data, train = self.experiment.data, self.experiment.train
        options = compiler_options(self.devices[0], train.tpu_options)
        program = Program("train step", parts.program.lower, options)
        compiled = compile_program(program, self.topology, mesh, cache_dir=self.cache_dir)
        work = Work(data.batch_size, parts.tokens(), parts.useful_flops(), train.steps)
        return Plan(
            recipe=self.recipe,
            topology=self.topology.name,
            slices=self.topology.slices,
            media="videos" if self.video else "images",
            mesh=dict(mesh.shape),
            setting=setting or self.start,
            parts=part_rows(parts),
            work=work,
            compiled=compiled,
            estimate=estimate(compiled, self.topology, work, self.price),
            price=self.price,
        )

    def with_decode(self, plan: Plan, decoding: DecodingConfig, rows: int | None = None) -> Plan:
        """Compiles the generation of text too, at the plan's mesh.

        Args:
            plan: of the training step.
            decoding: how texts are generated.
            rows: prompts at once; default as many as a training batch has rows.

        Raises:
            UserError: the model generates no text.
        """
        parts = self.parts(plan.setting)
        rows = rows or plan.work.rows
        program = Program("decode", lambda: parts.lower_decode(decoding, rows))
        compiled = compile_program(program, self.topology, parts.partitioner.mesh, cache_dir=self.cache_dir)
        return dataclasses.replace(plan, decode=Decode(rows, decoding.max_new_tokens, decoding.method, compiled))

    def outcome(self, setting: search.Setting) -> search.Outcome:
        """Compiles a setting, for the search."""
        plan = self.plan(setting)
        memory, e = plan.compiled.memory, plan.estimate
        return search.Outcome(
            setting=setting,
            fits=plan.fits,
            seconds=e.step_seconds if e else float("inf"),
            peak_bytes=memory.peak,
            limit_bytes=memory.limit,
            communication=e.communication_share if e else 0.0,
            plan=plan,
        )

    def space(self) -> search.Space:
        """Returns what a search may try."""
        everywhere = tuple(name for name in get_args(AttentionImpl) if name != "cudnn")
        attention = {
            part: (*everywhere, "fused") if isinstance(config, DecoderConfig) and config.fusable else everywhere
            for part, config in layer_stacks(self.experiment.model).items()
        }
        return search.Space(
            refusal=self.refusal,
            meshes=search.meshes(self.topology.num_devices // self.topology.slices),
            remat={part: search.POLICIES for part, _ in self.start.remat},
            attention=attention,
        )

    def refusal(self, setting: search.Setting) -> str | None:
        """Returns why a setting cannot be compiled or cannot fit, found without compiling; None if it may."""
        try:
            parts = self.parts(setting)
            parts.partitioner.check_rows(self.experiment.data.batch_size)
            ways = parts.partitioner.batch_ways * setting.accumulate
            if self.experiment.data.batch_size % ways:
                return f"{self.experiment.data.batch_size} rows do not divide into {ways} parts"
            needed = parts.argument_bytes()
        except UserError as error:
            return str(error)
        limit = self.topology.type.usable_hbm_bytes
        if needed > limit:
            return f"weights, optimizer and batch alone take {gib(needed)} of {gib(limit)} a device"
        return None


def part_rows(parts: PlannedParts) -> tuple[Part, ...]:
    """Returns parameters and bytes of each part."""
    trained, frozen = (trees.flatten(tree) for tree in parts.program.abstract_params)
    rows = []
    for row in parts.summary():
        leaves = {p: x for p, x in (trained if row.trainable else frozen).items() if p.startswith(row.part)}
        sizes: collections.Counter[str] = collections.Counter()
        for leaf in leaves.values():
            sizes[quantization.values(leaf).dtype.name] += quantization.nbytes(leaf)
        dtype = sizes.most_common(1)[0][0]
        rows.append(Part(row.part, row.trainable, dtype, row.parameters, row.weight_bytes, row.optimizer_bytes))
    return tuple(rows)
