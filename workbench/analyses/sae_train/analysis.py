"""The record of `sae-train`: SAEs for every head at once, with their controls; models compared at matched l0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.analyses.sae_train.cost import cost
from workbench.analyses.sae_train.settings import HeadSaeSettings, Kind, share_heads, shown_l1
from workbench.extend import Analysis, Column, Job, Merged, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.sae_train.head_saes import HeadSaeJob


def open_training(job: Job) -> HeadSaeJob:
    """What is trained, on which text or shards. Raises the ValueErrors of `head_saes.sae_train` that need no step."""
    from workbench.analyses.sae_train.head_saes import HeadSaeJob, split_tokens
    from workbench.analyses.sae_train.plan import make_plans

    own, subject = job.settings, job.subject
    plans = make_plans(subject.model, own.layers, own.heads, own.l1, own.seeds, own)
    held_out = job.windows(n_tokens=own.n_eval_tokens)
    read: Any = own.shards or job.windows(split="train", n_tokens=own.n_train_tokens)
    source, held_out = split_tokens(subject.model, read, held_out)
    return HeadSaeJob(subject.model, source, held_out, plans, own, subject.name, subject.seed, job.progress)


def check(job: Job) -> None:
    """Raise ValueError for what cannot be trained."""
    open_training(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables; sae/ is the stack, or holds a folder for each of several."""
    from workbench.analyses.sae_train.head_saes import measure_in

    return measure_in(job.directory, open_training(job))


SHOWN = ("sae_training_results", "sae_training_results_blocks", "sae_density", "sae_stability")


def shown_kind(settings: Any) -> Kind:
    """The kind of SAEs that pages and claims show: the first, at the middle k of a sweep, of two the lower."""
    first, *_ = settings.kinds
    ks = [own.k for own in settings.kinds if own._replace(k=first.k) == first and own.k is not None]
    return first._replace(k=shown_l1(ks)) if ks else first


def merge(merged: Merged) -> Mapping[str, pd.DataFrame]:
    """What pages show: sae_density of one l1 and seed; of several kinds the rows of one, where the measurements'
    directories keep those of all; of a sweep, further models with the reference's layers and heads beside it."""
    import pandas as pd

    from workbench.analyses.sae_train.comparison import compare_at_matched_l0

    own, kind = merged.settings, shown_kind(merged.settings)
    is_kept = all((directory / "sae_training_results.csv").is_file() for directory in merged.directories)
    tables = {name: df for name, df in merged.tables.items() if name in SHOWN}
    results, is_one = tables["sae_training_results"], len(own.kinds) == 1
    if not is_one and is_kept:
        results = _of_kind(results, kind._replace(k=None))  # the whole sweep
        tables = {name: _of_kind(df, kind) for name, df in tables.items()}
    if is_one or is_kept:
        density, l1 = tables["sae_density"], shown_l1(own.coefficients_of(kind))
        tables["sae_density"] = density.loc[(density["l1"] == l1) & (density["sae_seed"] == own.seeds[0])]
    configs, present = merged.configs, set(results["model"])
    pairs = [pair for pair in merged.pairs if share_heads(*(configs[name] for name in pair)) and {*pair} <= present]
    if max(len(own.l1), len(own.k or ())) > 1 and pairs:
        found = [compare_at_matched_l0(results, *pair) for pair in pairs]
        tables["sae_matched_l0"] = pd.concat(found, ignore_index=True)
    return tables


def _of_kind(table: Any, kind: Kind) -> pd.DataFrame:
    """The rows of one kind, whose expansion is the first; of all its k where it has none."""
    rows = table[(table["hook"] == kind.hook) & (table["architecture"] == kind.architecture)]
    if "activation" in rows:
        rows = rows[rows["activation"] == (kind.activation or kind.architecture)]
    rows = rows[rows["d_sae"] == rows.groupby("model")["d_sae"].transform("first")]
    return rows if kind.k is None else rows[rows["k"] == kind.k]


def notes(settings: Any) -> Sequence[str]:
    """What the page says of its SAEs."""
    kind = shown_kind(settings)
    scaled = "scaled to one mean norm a head" if settings.normalize == "mean_norm" else "as they are"
    l1 = shown_l1(settings.coefficients_of(kind))
    said = [
        f"SAEs read activations {scaled}; figures show l1 = {l1:g}. The random dictionary is as "
        "sparse as the trained one and its scale is fitted, so it lacks nothing but learned directions; “shuffled” is "
        "the trained dictionary on activations whose coordinates were permuted over tokens. Loss recovered is, by "
        "layer, what splicing recovers over what zeroing costs, each summed over heads: one that costs nothing weighs "
        "nothing."
    ]
    if len(settings.kinds) > 1:
        k = "" if kind.k is None else f" with k = {kind.k:g}"
        called = " ".join(filter(None, (kind.activation, kind.architecture)))
        said.append(
            f"Of {len(settings.kinds)} stacks of SAEs that were trained, this page shows the {called} SAEs "
            f"of {kind.hook}, {kind.expansion} features per dimension{k}; the tables of all are in the directories of "
            "the measurements."
        )
    return said


_HEADS = ("model", "seed", "layer", "head")
# which of several stacks a row is of
_SIZE = Column("d_sae", "features, of several stacks", kind="integer")
_KIND = (
    Column("architecture", "of several stacks", kind="text"),
    Column("k", "features kept per token, of several stacks; empty where nothing reads it"),
)
_ACTIVATION = Column(
    "activation", "of several stacks where activation is given: a transcoder's, else the architecture", kind="text"
)
_STACK = (Column("hook", "of several stacks", kind="text"), _KIND[0], _SIZE, _KIND[1], _ACTIVATION)

sae_train = Analysis(
    name="sae-train",
    summary="SAEs for every head at once from one pass of the model, beside random and shuffled controls.",
    settings=HeadSaeSettings,
    reads=Windows(),
    noun="sae",
    source_help="SAEs: a directory of sae-train, a SAELens folder, Gemma Scope's params.npz, RELEASE/ID of SAELens's "
    "registry, or OWNER/REPO/PATH of the hub; one for each model in their order.",
    tables=[
        Table(
            "sae_training_results",
            key=_HEADS,
            columns=[
                Column("d_in", "width of what is read", kind="integer"),
                Column("d_sae", "features", kind="integer"),
                Column("l1", "sparsity coefficient"),
                Column("l0", "mean number of active features", unit="features per token"),
                Column("mse", "mean over dimensions of the squared error"),
                Column("fvu", "squared error over the variance", unit="1"),
                Column("dead_fraction", "features that fire on no held-out token", unit="1"),
                Column("ce_base", "loss of the model as it is", unit="nats"),
                Column("ce_spliced", "loss with the reconstruction in the activation's place", unit="nats"),
                Column("ce_zero", "loss with zero in its place", unit="nats"),
                Column("ce_recovered", "(ce_zero − ce_spliced) / (ce_zero − ce_base)", unit="1"),
                Column("n_train_tokens", kind="integer"),
                Column("n_eval_tokens", kind="integer"),
            ],
            trailing=[
                Column("dictionary", "trained, random (as sparse as the trained one), or shuffled", kind="text"),
                Column("explained_variance", unit="1"),
                Column("sae_seed", kind="integer"),
                Column("hook", kind="text"),
                Column("n_ce_tokens", kind="integer"),
                Column("ce_zero_stderr", "of ce_zero − ce_base, paired over sequences", unit="nats"),
                Column("ce_spliced_stderr", "of ce_spliced − ce_base, paired over sequences", unit="nats"),
                Column("fvu_with_special", "fvu of all held-out activations", unit="1"),
                Column("n_left_out", "activations of position 0 and special tokens", kind="integer"),
                Column("n_outlying", "activations longer than three times the median", kind="integer"),
                Column("n_outlying_left_out", "of these, those that are left out", kind="integer"),
                Column("neighbour_cosine", "median over living features of the cosine with the nearest other"),
                Column("near_copy_share", "living features whose nearest other is above .9", unit="1"),
                Column("fvu_over_random", "fvu / fvu of the random control at equal l0; of trained SAEs", unit="1"),
                Column("is_adequate", "whether l0 ≤ d_in / 3 and fvu_over_random ≤ .75; of trained SAEs"),
                Column("rare_fraction", "living features that fire on less than 1e-3 of the tokens", unit="1"),
                Column("dense_fraction", "living features that fire on more than .1 of the tokens", unit="1"),
                *_KIND,
                _ACTIVATION,
            ],
            blocks=[
                *("l0", "mse", "fvu", "dead_fraction", "ce_base", "ce_spliced", "ce_zero", "ce_recovered"),
                "rare_fraction",
            ],
            meaning="One SAE, or a control of it; head -1 is the whole hook. Measured without position 0 and "
            "special tokens.",
        ),
        Table(
            "sae_density",
            key=(*_HEADS, "log10_density_bin"),
            columns=[Column("n_features", kind="integer")],
            trailing=[Column("l1", "sparsity coefficient"), Column("sae_seed", kind="integer"), *_STACK],
            meaning="Histogram of the densities of an SAE's features: a bin is its lower edge in log10, or dead.",
        ),
        Table(
            "sae_pareto",
            key=(*_HEADS, "l1"),
            columns=[
                Column("l0", unit="features per token"),
                Column("fvu", unit="1"),
                Column("ce_recovered", unit="1"),
                Column("dead_fraction", unit="1"),
                Column("on_front", "whether no other l1 or k has less of l0 and fvu"),
            ],
            trailing=_STACK,
            is_shown=False,
            meaning="One l1, or k, of a sweep, mean over the SAEs' seeds.",
        ),
        Table(
            "sae_stability",
            key=(*_HEADS, "l1", "sae_seed", "other_seed"),
            columns=[
                Column("n_features", kind="integer"),
                Column("stability", "mean over features of the largest cosine with any of the other seed's"),
                Column("share_above", "features with a cosine above .7", unit="1"),
                Column("stability_random", "the same against random directions"),
                Column("share_random", "the same against random directions", unit="1"),
            ],
            trailing=[
                Column("n_alive", "features that fire", kind="integer"),
                Column("stability_alive", "stability over these"),
                *_STACK,
            ],
            meaning="One ordered pair of seeds of an SAE.",
        ),
        Table(
            "sae_matched_l0",
            key=("model_a", "model_b", "seed", "layer"),
            columns=[
                Column("l0_low", "of the range that both sweeps reach", unit="features per token"),
                Column("l0_high", unit="features per token"),
                Column("fvu_a", "mean over the range", unit="1"),
                Column("fvu_b", "mean over the range", unit="1"),
                Column("fvu_difference", "b − a", unit="1"),
                Column("ce_recovered_a", "mean over the range", unit="1"),
                Column("ce_recovered_b", "mean over the range", unit="1"),
                Column("ce_recovered_difference", "b − a", unit="1"),
            ],
            trailing=[Column("reason", "why numbers are missing", kind="text"), *_STACK[:3], _ACTIVATION],
            meaning="Two models at equal l0.",
        ),
        Table(
            "sae_curves",
            key=(*_HEADS, "l1", "sae_seed", "step"),
            columns=[
                Column("loss", "of the training"),
                Column("l0", "of the batch", unit="features per token"),
                Column("dead_fraction", "features dead by the training's own count", unit="1"),
            ],
            trailing=_STACK,
            meaning="A step of the training of an SAE.",
            is_shown=False,
        ),
        Table(
            "sae_alarms",
            key=(*_HEADS, "l1", "sae_seed", "step", "kind"),
            columns=[
                Column("value", "dead_fraction, the loss, l0, or fvu_over_random"),
                Column("threshold", "what the value is above, or, few_active, below"),
            ],
            trailing=_STACK,
            meaning="The first logged step at which the training of an SAE showed a fault: dead, more features dead "
            "than the setting dead_alarm allows; loss_spike, a loss above three times its running median; few_active, "
            "l0 below .1; all_active, l0 at .99 of all features or more. inadequate, at the last step, is measured on "
            "held-out tokens: l0 above d_in / 3, or else fvu_over_random above .75. Without faults the table has no "
            "row.",
            is_shown=False,
        ),
    ],
    measure=measure,
    cost=cost,
    check=check,
    merge=merge,
    notes=notes,
    function="workbench.analyses.sae_train.head_saes:sae_train",
)
