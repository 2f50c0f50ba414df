"""What can be known of a plan before it runs: its order, the states it keeps, its mistakes."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax import losses, tree
from sharpjax.errors import UserError, unknown, whole_number
from sharpjax.train.plan import (
    PRIORS,
    ROLES,
    At,
    Compare,
    Derive,
    Draw,
    Member,
    Plan,
    Ref,
    Stage,
    Train,
)
from sharpjax.train.results import joined


def name_of(stage: Stage) -> str:
    return stage.name if isinstance(stage, Compare) else stage.arm


def reads(stage: Stage) -> tuple[str, ...]:
    """The arms that a stage reads, each once."""
    match stage:
        case Train():
            names: Iterable[str] = (ref.arm for m in stage.members for ref in m.reads)
        case Derive():
            names = (stage.source,)
        case Compare():
            names = stage.reads
        case Draw():
            names = ()
    return tuple(dict.fromkeys(names))


def arms(plan: Plan) -> dict[str, Train | Derive | Draw]:
    """The arms by name, in the order in which they were named."""
    return {s.arm: s for s in plan.stages if not isinstance(s, Compare)}


def members(plan: Plan, arm: str) -> tuple[Member, ...]:
    """The models of an arm. A derived model is the one it is made from, with more coordinates."""
    match arms(plan)[arm]:
        case Train() as stage:
            return stage.members
        case Draw() as stage:
            return tuple(map(Member, stage.seeds))
        case Derive() as stage:
            sources = members(plan, stage.source)
            return tuple(m._replace(of=joined(m.of, of)) for m in sources for of in stage.outputs)


def seeds(plan: Plan, data: str) -> tuple[int, ...]:
    """The seeds that are trained on these data, each once."""
    stages = (s for s in plan.stages if isinstance(s, Train) and s.data == data)
    return tuple(dict.fromkeys(m.seed for s in stages for m in s.members))


def number(plan: Plan, ref: Ref) -> int:
    """The index of a model in its arm."""
    own = [(member.seed, member.of) for member in members(plan, ref.arm)]
    return own.index((ref.seed, ref.of))


def source_of(plan: Plan, arm: str) -> Train:
    """The arm itself if it is trained, else the trained arm that it is finally derived from."""
    stage = arms(plan)[arm]
    while isinstance(stage, Derive):
        stage = arms(plan)[stage.source]
    assert isinstance(stage, Train)
    return stage


def example_of(plan: Plan, stage: Train) -> jax.Array:
    """Zeros of the shape and type of one example, as the model reads it."""
    spec = plan.data[stage.data]
    dtype = jnp.float32 if spec.input_dtype == "uint8" else jnp.dtype(spec.input_dtype)
    return jnp.zeros((1, *spec.input_shape), dtype)


def origin(plan: Plan, ref: Ref) -> Member:
    """The model itself if it is trained, else the trained model that it is finally derived from."""
    index, stage = number(plan, ref), arms(plan)[ref.arm]
    while isinstance(stage, Derive):
        index //= len(stage.outputs)
        stage = arms(plan)[stage.source]
    assert isinstance(stage, Train)
    return stage.members[index]


def steps_per_epoch(plan: Plan, stage: Train) -> int:
    return stage.step.steps_per_epoch(plan.data[stage.data].num_train)


def num_steps(plan: Plan, stage: Train) -> int:
    """The most steps that the models of an arm take."""
    return stage.epochs * steps_per_epoch(plan, stage)


def last_step(plan: Plan, arm: str) -> int:
    """The step of an arm's last rows. A derived arm has that of its source; a drawn one has 0."""
    stage = arms(plan)[arm]
    return 0 if isinstance(stage, Draw) else num_steps(plan, source_of(plan, arm))


def snapshots(plan: Plan, stage: Train) -> frozenset[int]:
    """The steps whose states an arm keeps."""
    counts = num_steps(plan, stage), steps_per_epoch(plan, stage)
    return stage.snapshots.when.steps(*counts) if stage.snapshots else frozenset()


def refs(plan: Plan) -> Iterator[tuple[str, Ref]]:
    """All states that stages read, each with the arm that reads it."""
    for stage in plan.stages:
        if isinstance(stage, Train):
            yield from ((stage.arm, ref) for member in stage.members for ref in member.reads)
        elif isinstance(stage, Derive):
            for m in members(plan, stage.source):
                yield stage.arm, Ref(stage.source, m.seed, m.of, stage.at)


def kept(plan: Plan, arm: str) -> set[At]:
    """The states of an arm that other stages read. These are stored."""
    return {ref.at for _, ref in refs(plan) if ref.arm == arm and ref.at != "start"}


def metrics(plan: Plan, arm: str) -> tuple[str, ...]:
    """All metrics that an arm may have rows of."""
    compared = [metric for s in plan.stages if isinstance(s, Compare) and arm in s.reads
                for measure in s.measures if arm in getattr(measure, "arms", s.reads)
                for metric in measure.metrics]  # fmt: skip
    return (*_own_metrics(arms(plan)[arm]), *compared)


def _own_metrics(stage: Train | Derive | Draw) -> Iterator[str]:
    if isinstance(stage, Draw):
        yield from stage.metrics
        return
    yield from stage.step.metrics if isinstance(stage, Train) else ("train/alive",)
    for evaluator in stage.evaluators:
        yield from evaluator.metrics


def ordered(plan: Plan) -> tuple[Stage, ...]:
    """The stages in an order in which each comes after those that it reads.

    Raises:
        UserError: stages read each other in a circle.
    """
    left, done = list(plan.stages), list[Stage]()
    while left:
        names = {name_of(stage) for stage in left}
        stage = next((s for s in left if not names & set(reads(s))), None)
        if stage is None:
            circle = ", ".join(
                f"'{name_of(s)}' reads {', '.join(map(repr, reads(s)))}" for s in left
            )
            raise UserError(f"plan: stages read each other in a circle: {circle}.")
        done.append(stage)
        left.remove(stage)
    return tuple(done)


def check(plan: Plan) -> None:
    """Refuses a plan that cannot run.

    Raises:
        UserError: a name is used twice or does not exist; a state is read that is not kept; two
            models are identical; stages read each other in a circle; an evaluator counts examples
            that the data do not have.
    """
    if twice := _twice(map(name_of, plan.stages)):
        raise UserError(f"plan: two stages are called '{twice}'.")
    there = arms(plan)
    for stage in plan.stages:
        if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.=+-]*", name_of(stage)):
            raise UserError(
                f"plan: '{name_of(stage)}' names a folder; use letters, digits, _ and -."
            )
        for name in reads(stage):
            if name not in there:
                raise unknown(f"arm, read by '{name_of(stage)}',", name, there)
            if isinstance(there[name], Draw) and not isinstance(stage, Compare):
                raise UserError(
                    f"plan: '{stage.arm}' reads '{name}', an arm that is drawn and has no models."
                )
        if isinstance(stage, Compare):
            _check_measures(plan, there, stage)
    ordered(plan)
    for stage in there.values():
        if isinstance(stage, Train):
            _check_trained(plan, stage)
        _check_names(plan, stage)
    for arm, ref in refs(plan):
        _check_ref(plan, arm, ref)
    for stage in there.values():
        if isinstance(stage, Train):
            _check_sources(plan, stage)
    _check_layers(plan)
    _check_same(plan)


def _check_trained(plan: Plan, stage: Train) -> None:
    """The fields of one arm."""
    where = f"plan: arm '{stage.arm}'"
    if stage.data not in plan.data:
        raise unknown(f"data of arm '{stage.arm}'", stage.data, plan.data)
    if not stage.members:
        raise UserError(f"{where} has no members.")
    whole_number(where, "epochs", stage.epochs, least=0)
    whole_number(where, "checkpoint_epochs", stage.checkpoint_epochs)
    if reason := stage.step.refuses(stage.members, plan.data[stage.data]):
        raise UserError(f"{where} {reason}")
    own = set(_own_metrics(stage))
    if stage.best and stage.best.metric not in own:
        raise unknown(f"metric of the best state of arm '{stage.arm}'", stage.best.metric, own)
    if stage.best and stage.best.direction not in ("least", "most"):
        raise unknown(f"direction of arm '{stage.arm}'", stage.best.direction, ("least", "most"))
    if stage.best and not _is_measured(plan, stage, stage.best.metric):
        raise UserError(
            f"{where}: its best state is chosen by '{stage.best.metric}', which is not measured at "
            f"any step; give its evaluator (or Train.rows) a time, such as When(every_epochs=1)."
        )
    if odd := {role for member in stage.members for role, _ in member.streams} - {*ROLES}:
        raise unknown(f"role of a stream of arm '{stage.arm}'", min(odd), ROLES)
    for taught in filter(None, (member.teacher for member in stage.members)):
        losses.check_teacher(
            taught.kind, weight=taught.weight, temperature=taught.temperature, fresh=taught.fresh,
            divergence=taught.divergence, inputs=taught.inputs,
        )  # fmt: skip
        if taught.prior not in PRIORS:
            raise unknown(f"prior of a teacher of arm '{stage.arm}'", taught.prior, PRIORS)
        if taught.prior != "uniform" and taught.kind != "constant":
            raise UserError(
                f"{where}: a teacher of kind '{taught.kind}' has no prior '{taught.prior}'; it is "
                f"of kind 'constant' alone."
            )
        least, most = losses.num_models(taught.kind)
        if not least <= len(taught.refs) <= most:
            models = "one model or more" if most > 1 else f"{most} models"
            raise UserError(
                f"{where}: a teacher of kind '{taught.kind}' has {models}, not {len(taught.refs)}."
            )


def _is_measured(plan: Plan, stage: Train, metric: str) -> bool:
    """Whether a metric of an arm is due at some step; one of the training not before the first."""
    end, per_epoch = num_steps(plan, stage), steps_per_epoch(plan, stage)
    if metric in stage.step.metrics:
        return bool(stage.rows.steps(end, per_epoch) - {0}) or end == 0
    due = (e.when.steps(end, per_epoch) for e in stage.evaluators if metric in e.metrics)
    return any(due)


def _check_names(plan: Plan, stage: Train | Derive | Draw) -> None:
    """Members, evaluators and metrics of an arm have unique names, and its data have the splits
    and the examples."""
    own = members(plan, stage.arm)
    evaluators = () if isinstance(stage, Draw) else stage.evaluators
    for what, names in (
        ("members", [member.key for member in own]),
        ("evaluators", [evaluator.name for evaluator in evaluators]),
        ("metrics", metrics(plan, stage.arm)),
        *(("coordinates of one member,", [name for name, _ in member.of]) for member in own),
    ):
        if twice := _twice(names):
            raise UserError(f"plan: arm '{stage.arm}' has two {what} '{twice}'.")
    for evaluator in evaluators:
        split, spec = (
            getattr(evaluator, "split", "train"),
            plan.data[source_of(plan, stage.arm).data],
        )
        if not getattr(spec, f"num_{split}", 0):
            raise UserError(f"plan: arm '{stage.arm}': its data have no split '{split}'.")
        if counted := getattr(evaluator, "counted", ""):
            last = getattr(evaluator, "first", 0) + getattr(evaluator, "num_examples", 0)
            if last > (there := getattr(spec, f"num_{counted}")):
                raise UserError(
                    f"plan: arm '{stage.arm}': '{evaluator.name}' measures {counted} examples up "
                    f"to number {last:,}, and its data have {there:,}; give fewer num_examples."
                )


def _check_layers(plan: Plan) -> None:
    """If an evaluator or transform names layers of a model, in a tuple `layers` and without
    `groups` of its own, the model has them: as leaves, or as what holds leaves."""

    @functools.cache
    def known(arm: str) -> set[str]:
        source = source_of(plan, arm)
        example = example_of(plan, source)
        params = jax.eval_shape(source.step.init, example, jax.random.key(0)).params
        leaves = tree.path_names(params)
        return {*leaves, *(n[:i] for n in leaves for i, sign in enumerate(n) if sign == "/")}

    for arm, stage in arms(plan).items():
        parts = () if isinstance(stage, Draw) else stage.evaluators
        for part in (*parts, *([stage.transform] if isinstance(stage, Derive) else ())):
            asked = getattr(part, "layers", ())
            if not isinstance(asked, tuple) or getattr(part, "groups", ()):
                continue
            for name in asked:
                if isinstance(name, str) and name not in (there := known(source_of(plan, arm).arm)):
                    raise unknown(f"layer of arm '{arm}'", name, sorted(there))


def _check_measures(plan: Plan, there: Mapping[str, Any], stage: Compare) -> None:
    """The arms and outputs that a measure names exist, and the outputs are of examples that can be
    the same. Whether they are the same is checked when they are compared."""
    for measure in stage.measures:
        for arm in filter(None, (*getattr(measure, "arms", ()), getattr(measure, "reference", ""))):
            if arm not in stage.reads:
                raise UserError(
                    f"plan: '{stage.name}' looks at arm '{arm}', which it does not read."
                )
            own = {e.name: e for e in getattr(there[arm], "evaluators", ())}
            if (name := getattr(measure, "outputs", None)) and name not in own:
                raise unknown(f"evaluator that {measure.name} reads in arm '{arm}',", name, own)
        reference, split = (getattr(measure, name, "") for name in ("reference", "split"))
        if reference and split and hasattr(measure, "outputs"):
            for arm in getattr(measure, "arms", ()):
                own, its = (_kind(plan, name, split) for name in (arm, reference))
                if own != its:
                    raise UserError(
                        f"plan: {measure.name} compares outputs for the same examples, and arm "
                        f"'{arm}' has {own} in the split '{split}', '{reference}' {its}."
                    )


def _kind(plan: Plan, arm: str, split: str) -> str:
    """The kind of the examples of a split; examples of two kinds cannot be the same."""
    spec = plan.data[source_of(plan, arm).data]
    shape, count = list(spec.input_shape), getattr(spec, f"num_{split}", 0)
    return f"{count:,} inputs {shape} of {spec.num_classes} classes"


def _check_ref(plan: Plan, arm: str, ref: Ref) -> None:
    where, source = f"plan: '{arm}' reads {ref.at!r} of '{ref.arm}'", arms(plan)[ref.arm]
    known = members(plan, ref.arm)
    if (ref.seed, ref.of) not in {(m.seed, m.of) for m in known}:
        keys = ", ".join(m.key for m in known)
        raise UserError(f"{where}, member {Member(ref.seed, ref.of).key}; it has {keys}.")
    if not isinstance(source, Train):
        if ref.at != "end":
            raise UserError(f"{where}, which was never trained; it has 'end' alone.")
        return
    if ref.at == "best":
        if source.best is None:
            raise UserError(f"{where}, which has no rule for its best state; give Train.best.")
    elif ref.at not in ("start", "end", *snapshots(plan, source)):
        steps = ", ".join(map(str, sorted(snapshots(plan, source)))) or "none"
        raise UserError(
            f"{where}, which has 'start', 'end' and snapshots of {source.step.unit}s: {steps}; "
            f"see Train.snapshots."
        )


def _check_sources(plan: Plan, stage: Train) -> None:
    """Teachers have one model, with the classes and inputs of the arm; starts have its model."""
    refs = (ref for m in stage.members if m.teacher for ref in m.teacher.refs)
    taught = {source_of(plan, ref.arm).step.model for ref in refs}
    if len(taught) > 1:
        raise UserError(
            f"plan: arm '{stage.arm}' has teachers of several models: "
            f"{'; '.join(sorted(map(_brief, taught)))}; make arms of them."
        )
    for member in stage.members:
        for ref in member.teacher.refs if member.teacher else ():
            specs = (plan.data[s.data] for s in (source_of(plan, ref.arm), stage))
            there, here = ((spec.num_classes, spec.input_shape) for spec in specs)
            if there != here:
                raise UserError(
                    "plan: arm '{}' has {} classes of inputs {}, and its teacher '{}' has {} "
                    "of {}.".format(stage.arm, *here, ref.arm, *there)
                )
        for ref in filter(None, (member.start, member.mask)):
            stages = (source_of(plan, ref.arm), stage)
            there, here = ((plan.data[s.data].input_shape, s.step.model) for s in stages)
            if there != here:
                raise UserError(
                    f"plan: arm '{stage.arm}' starts from '{ref.arm}', whose model is another: "
                    f"{_brief(there)} there, {_brief(here)} here."
                )


def _check_same(plan: Plan) -> None:
    """Two members with the same start, order, data and step are one model."""
    seen: dict[Any, tuple[str, bool]] = {}
    for stage in plan.stages:
        if not isinstance(stage, Train):
            continue
        spec = plan.data[stage.data]
        for member in stage.members:
            roles = (*stage.step.roles, *(["teacher"] if member.teacher else []))
            what = (
                spec, stage.step, stage.epochs, _start(plan, member), member.teacher,
                tuple(member.decides(role) for role in roles),
                member.seed if spec.is_per_seed else None,
            )  # fmt: skip
            name = f"{stage.arm} {member.key}"
            other, repeats = seen.setdefault(what, (name, stage.repeats))
            if other != name and not (repeats or stage.repeats):
                raise UserError(
                    f"plan: {name} and {other} are the same model: same start, order, data and "
                    f"step. Give them other streams, or say repeats=True."
                )


def _start(plan: Plan, member: Member) -> tuple[Any, tuple[Ref, ...]]:
    """What decides the state of a member before its first step: a stream or a state, and masks."""
    own = (member.mask,) if member.mask else ()
    if member.start is None:
        return member.decides("init"), own
    if member.start.at == "start":
        first, masks = _start(plan, origin(plan, member.start))
        return first, (*masks, *own)
    return member.start, own


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _brief(model: Any) -> str:
    return " ".join(repr(model).split())[:60]
