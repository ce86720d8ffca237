#!/usr/bin/env python3
"""Holds schedules in pipemlp's text form against torch.distributed.pipelining: its parser, its
validation, its lowering, its simulator and, over gloo in several processes, its runtime.

    torch_loader.py [--program P] [--work DIR] FILE.csv ...

Each FILE is one schedule, named KIND_anything.csv; if there is a lowered/FILE beside it, that is
the same schedule with hand-offs. P is tests/torch_schedules.c, compiled: with it the way back is
tested, too, and what must be refused. All files written land in DIR (default: a temporary
directory).

Prints a line `ok   torch: ...` or `FAIL torch: ...` for each thing checked, `note torch: ...` for
what differs but may; exit status 1 if something failed. Needs PyTorch 2.12 or newer (tried with
2.12.1 and 2.15.0). PMLP_TEST_QUICK=1 checks less.
"""
import argparse
import collections
import contextlib
import csv
import datetime
import io
import json
import logging
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import types
import warnings

warnings.simplefilter("ignore")  # PyTorch without NumPy, deprecations of its own
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as pp

logging.disable(logging.ERROR)  # its runtime logs whole schedules before it raises

quick = os.environ.get("PMLP_TEST_QUICK", "0") not in ("", "0")
failed = False


def ok(text):
    print("ok   torch:", text, flush=True)


def bad(text):
    global failed
    failed = True
    print("FAIL torch:", text, flush=True)


def note(text):
    print("note torch:", text, flush=True)


def verdict(what, wrong):
    """One line for many checks: `wrong` holds a sentence for each that failed."""
    if wrong:
        for text in wrong[:5]:
            print("    ", text)
        bad(f"{what}: {len(wrong)} wrong, the first: {wrong[0]}")
    else:
        ok(what)


def one_line(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


# --- what PyTorch makes of a file -----------------------------------------------------------------


def read(path):
    """The rows of a file, each cell read by PyTorch's parser; None is an empty cell."""
    with open(path, newline="") as file:
        return [[pp._Action.from_str(cell) for cell in row] for row in csv.reader(file)]


def parts(action):
    """An OVERLAP_F_B is several actions, which PyTorch's runtime does one after the other."""
    return action.sub_actions or (action,)


def sizes(rows):
    """Workers, stages, micro-batches: what a user of PyTorch has to know and pass."""
    actions = [part for row in rows for a in row if a is not None for part in parts(a)]
    microbatches = [a.microbatch_index for a in actions if a.microbatch_index is not None]
    return len(rows), 1 + max(a.stage_index for a in actions), 1 + max(microbatches)


def stand_in(p, stages):
    """A stage, as far as the schedules' constructors look at it (PyTorch's own visualizer does the
    same). Everything but the training itself then runs without processes."""
    return types.SimpleNamespace(group_rank=0, group_size=p, num_stages=stages, submod=None)


def load(path, format="compute_only"):
    """PyTorch's runtime with the schedule in it. _load_csv parses, validates and lowers; then the
    simulator runs the lowered lists, hand-offs and all. Raises if PyTorch refuses."""
    p, stages, m = sizes(read(path))
    runtime = pp._PipelineScheduleRuntime([stand_in(p, stages)], m)
    runtime._load_csv(path, format=format)
    known = {"F", "I", "W", "B", "SEND_F", "RECV_F", "SEND_B", "RECV_B"}
    lists = {
        rank: [
            part
            for action in actions
            for part in parts(action)
            if part.computation_type.value in known  # not those that only concern FSDP
        ]
        for rank, actions in runtime.pipeline_order_with_comms.items()
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what got stuck
        pp._simulate_comms_compute(lists, lambda s: runtime.stage_index_to_group_rank[s], stages)
    return runtime


def refusal(path, format="compute_only"):
    """None if PyTorch takes the file, else its reason."""
    try:
        load(path, format)
        return None
    except Exception as error:  # it raises whatever comes to hand, KeyError too
        return one_line(error)


def texts(rows):
    """Cells as text, without the empty ones."""
    return [[str(a) for a in row if a is not None] for row in rows]


def write(path, rows):
    with open(path, "w") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)


# --- ours to PyTorch ------------------------------------------------------------------------------


def kind_of(path):
    return os.path.basename(path).removesuffix(".csv").split("_")[0]


def lowered_of(path):
    return os.path.join(os.path.dirname(path), "lowered", os.path.basename(path))


def check_file(path, work):
    """What is wrong with one of our files, or None."""
    try:
        runtime = load(path)
    except Exception as error:
        return one_line(error)
    back = os.path.join(work, "back.csv")
    pp.PipelineScheduleMulti._dump_csv(runtime, back)
    with open(path) as ours, open(back) as theirs:  # text mode: PyTorch ends rows with \r\n
        if ours.read() != theirs.read():
            return "PyTorch writes it back as another text"
    lowered = lowered_of(path)
    if not os.path.exists(lowered):
        return None
    try:
        rows = dict(enumerate(read(lowered)))
        if hasattr(pp, "_add_wait_send"):  # newer versions want to be told when a SEND has ended
            rows = pp._add_wait_send(rows)
        path = os.path.join(work, "lowered.csv")
        write(path, [rows[rank] for rank in sorted(rows)])
        load(path, "compute_comms")
    except Exception as error:
        return f"lowered: {one_line(error)}"
    return None


def check_ours(files, work):
    """The files that are as they should be."""
    good = []
    kinds = collections.defaultdict(list)
    for path in files:
        kinds[kind_of(path)].append(path)
    for kind, paths in kinds.items():
        wrong = []
        own_lowering = all(os.path.exists(lowered_of(path)) for path in paths)
        for path in paths:
            why = check_file(path, work)
            if why:
                wrong.append(f"{os.path.basename(path)}: {why}")
            else:
                good.append(path)
        verdict(
            f"{kind}: {len(paths)} schedules read, validated, lowered, simulated; the text comes "
            "back as it went" + "; our own lowering is simulated, too" * own_lowering,
            wrong,
        )
    return good


# --- PyTorch trains what we wrote -----------------------------------------------------------------

WIDTH, ROWS = 6, 2  # of each layer; of each micro-batch


def network(stages):
    torch.manual_seed(7)  # every process draws the same
    return [
        torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64), torch.nn.Tanh())
        for _ in range(stages)
    ]


def train(path, rank):
    """One step of the schedule on this process's stages. What is wrong, or None."""
    p, stages, m = sizes(read(path))
    mean = torch.nn.MSELoss()
    whole = network(stages)
    x = torch.randn(m * ROWS, WIDTH, dtype=torch.float64)
    y = torch.randn(m * ROWS, WIDTH, dtype=torch.float64)
    mean(torch.nn.Sequential(*whole)(x), y).backward()

    mine = sorted({part.stage_index for a in read(path)[rank] if a for part in parts(a)})
    cut = network(stages)
    # what goes in and out, or else the stages ask each other, for which PyTorch needs NumPy
    shapes = [
        torch.empty(ROWS, WIDTH, dtype=torch.float64, requires_grad=s > 0)
        for s in range(stages + 1)
    ]
    runtime = pp._PipelineScheduleRuntime(
        [
            PipelineStage(cut[s], s, stages, torch.device("cpu"), shapes[s], shapes[s + 1])
            for s in mine
        ],
        m,
        loss_fn=mean,
    )
    runtime._load_csv(path)
    inputs, target, losses = [x] if 0 in mine else [], y if stages - 1 in mine else None, []
    runtime.step(*inputs, target=target, losses=losses)

    for s in mine:
        for name, weight in whole[s].named_parameters():
            got = cut[s].get_parameter(name).grad
            if got is None:
                return f"stage {s} has no gradient of {name}"
            if not torch.allclose(got, weight.grad, rtol=1e-12, atol=1e-14):
                distance = (got - weight.grad).abs().max().item()
                return f"gradient of {name} of stage {s} is off by {distance:.1e}"
    if stages - 1 in mine and len(losses) != m:
        return f"{len(losses)} losses, not {m}"
    return None


def train_process(rank, p, files, store, report):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=p,
        timeout=datetime.timedelta(seconds=60),  # what ends a deadlock
    )
    wrong = []
    for path in files:
        try:
            why = train(path, rank)
        except Exception as error:
            why = one_line(error)
        if why:
            wrong.append(f"{os.path.basename(path)}, process {rank}: {why}")
            break  # the processes are no longer in step
    with open(f"{report}.{rank}", "w") as file:
        json.dump(wrong, file)
    dist.destroy_process_group()


def check_training(files, work):
    """All files of one p by one set of processes, which are forked: PyTorch is imported already."""
    # the processes talk over the loopback, whatever name the machine has
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    by_p = collections.defaultdict(list)
    for path in files:
        p, stages, m = sizes(read(path))
        if p <= 4 and stages <= 12 and m in ((8,) if quick else (1, 3, 8)):
            by_p[p].append(path)
    context = multiprocessing.get_context("fork")
    for p, paths in sorted(by_p.items()):
        store, report = os.path.join(work, f"store{p}"), os.path.join(work, f"report{p}")
        processes = [
            context.Process(target=train_process, args=(rank, p, paths, store, report))
            for rank in range(p)
        ]
        for process in processes:
            process.start()
        wrong = []
        for rank, process in enumerate(processes):
            process.join(300)
            if process.is_alive():
                process.kill()
                process.join()
                wrong.append(f"process {rank} hangs")
            elif process.exitcode:
                wrong.append(f"process {rank} ends with status {process.exitcode}")
            else:
                with open(f"{report}.{rank}") as file:
                    wrong += json.load(file)
        kinds = len({kind_of(path) for path in paths})
        verdict(
            f"trained by PyTorch in {p} process{'es' * (p > 1)}: {len(paths)} schedules of {kinds} "
            "kinds, gradients equal plain autograd's",
            wrong,
        )


# --- PyTorch's to ours ----------------------------------------------------------------------------


def ask(program, paths):
    """What pipemlp says of each file: "ok", or a result's name and a sentence."""
    if not paths:
        return []
    run = subprocess.run(
        [program, "check", *paths], stdout=subprocess.PIPE, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths), run.stdout
    return lines


CLASSES = (
    "GPipe",
    "1F1B",
    "Interleaved1F1B",
    "InterleavedZeroBubble",
    "LoopedBFS",
    "ZBVZeroBubble",
    "DualPipeV",
)


def write_theirs(work):
    """The schedules of PyTorch's own classes, as files: {class: [path]}. Left out are actions that
    PyTorch's loader would refuse, too: those that only concern FSDP."""
    theirs = {}
    ps = (2, 4) if quick else (1, 2, 3, 4, 8)
    for name in CLASSES:
        try:
            kind = pp.get_schedule_class(name)
        except ValueError:
            continue  # not in this version
        single = issubclass(kind, pp.PipelineScheduleSingle)
        for p in ps:
            for v in (1,) if single else (2, 3):
                for m in (2, 4, 8) if quick else (1, 2, 3, 4, 6, 8, 12, 16):
                    stage = stand_in(p, p * v)
                    try:
                        schedule = kind(stage if single else [stage] * v, m)
                    except ValueError:
                        continue  # it cannot have this size, and says so
                    order = getattr(schedule, "pipeline_order", None)
                    if not order:
                        continue  # not every class has one in every version
                    for rank, actions in order.items():
                        order[rank] = [a for a in actions if a is None or a.is_compute_op]
                    path = os.path.join(work, f"{name}_p{p}_v{v}_m{m}.csv")
                    pp.PipelineScheduleMulti._dump_csv(schedule, path)
                    theirs.setdefault(name, []).append(path)
    return theirs


def without_overlaps(path):
    """The same file with each OVERLAP_F_B as the actions that it stands for."""
    rows = [[part for a in row if a for part in parts(a)] for row in read(path)]
    flat = path.removesuffix(".csv") + "_flat.csv"
    write(flat, rows)
    return flat


def check_theirs(program, work):
    """The files that both take."""
    taken = []
    for name, paths in write_theirs(work).items():
        if any("OVERLAP" in open(path).read() for path in paths):
            count = ask(program, paths).count("ok")
            note(f"{name} as PyTorch writes it, with OVERLAP_F_B: {count} of {len(paths)} read")
            paths = [without_overlaps(path) for path in paths]
        wrong, agreed, refused, strict = [], 0, 0, 0
        for path, said in zip(paths, ask(program, paths)):
            why = refusal(path)
            if said == "ok" and why is None:
                again = path.removesuffix(".csv") + "_again.csv"
                with open(again, "w") as file:
                    subprocess.run([program, "print", path], stdout=file, check=True)
                if texts(read(again)) != texts(read(path)):
                    wrong.append(f"{os.path.basename(path)}: is printed differently")
                elif refusal(again):
                    wrong.append(f"{os.path.basename(again)}: {refusal(again)}")
                else:
                    agreed += 1
                    taken.append(path)
            elif said != "ok" and why:
                refused += 1
            elif said != "ok" and excuse(said):
                strict += 1
            else:
                wrong.append(f"{os.path.basename(path)}: we say {said}, PyTorch says {why or 'ok'}")
        verdict(
            f"{name}, written by PyTorch: {len(paths)} files, {agreed} read, proved, printed and "
            f"read by PyTorch again"
            + f", {refused} refused by both" * (refused > 0)
            + f", {strict} refused by us alone" * (strict > 0),
            wrong,
        )
    return taken


# Our kinds that are to be PyTorch's, action for action, where a B counts as I, W. LoopedBFS is not:
# PyTorch takes the backwards in descending order, which would change the bits of the gradients.
# PyTorch 2.15 has no right 1F1B to compare with: the last row that it gives begins with F1.
TWINS = {
    "gpipe": "GPipe",
    "interleaved": "Interleaved1F1B",
    "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}


def halves(rows):
    """Each B as I, W."""
    return [re.sub(r"(\d+)B(\d+)", r"\1I\2,\1W\2", ",".join(row)) for row in texts(rows)]


def check_twins(files, theirs):
    for kind, twin in TWINS.items():
        known = {}
        for path in theirs:
            if os.path.basename(path).startswith(twin + "_"):
                rows = read(path)
                known[sizes(rows)] = halves(rows)
        wrong, count = [], 0
        for path in files:
            rows = read(path)
            if kind_of(path) == kind and sizes(rows) in known:
                count += 1
                if halves(rows) != known[sizes(rows)]:
                    wrong.append(f"{os.path.basename(path)} differs")
        if count:
            verdict(f"{kind}: {count} sizes are PyTorch's {twin}, action for action", wrong)


def check_updates(program, work):
    """PyTorch has no updates: we may read them, but must not print what it cannot read."""
    path, again = os.path.join(work, "updates.csv"), os.path.join(work, "updates_again.csv")
    write(path, [["0F0", "0B0", "0U"], ["1F0", "1B0", "1U"]])
    said = ask(program, [path])[0]
    with open(again, "w") as file:
        subprocess.run([program, "print", path], stdout=file, check=True)
    why = refusal(again)
    if said != "ok" or why:
        bad(f"updates: we say {said}, PyTorch says of what we print {why or 'ok'}")
    elif refusal(path) is None:
        note("updates: PyTorch reads them now")
    else:
        ok("updates, which PyTorch does not read, are not printed")


# --- what must be refused -------------------------------------------------------------------------

# Reasons for which pipemlp refuses what PyTorch takes; the manual states each rule.
EXCUSES = (
    ("ascending order", "W out of order"),
    ("hands over", "hand-offs in another order than they are taken"),
    ("offers micro-batch", "hand-offs in another order than they are taken"),
    ("twice", "done twice"),
)


def excuse(said):
    return next((name for part, name in EXCUSES if part in said), None)


GOOD = [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1I1", "1W1"]]
BROKEN = {
    "a missing backward": [["0F0", "0F1", "0B0"], ["1F0", "1B0", "1F1", "1B1"]],
    "a missing forward": [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1B1"]],
    "a backward before its forward": [["0F0", "0B1", "0F1", "0B0"], ["1F0", "1B0", "1F1", "1B1"]],
    "a W before its I": [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1W0", "1I0", "1F1", "1B1"]],
    "an I without W": [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1I1"]],
    "a stage on two workers": [["0F0", "0F1", "0B0", "0B1", "1F1"], ["1F0", "1B0", "1B1"]],
    "workers that wait in a circle": [["0F0", "0B0", "0F1", "0B1"], ["1F0", "1F1", "1B0", "1B1"]],
    "an unknown operation": [["0F0", "0F1", "0X0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]],
}


def check_refusals(program, work):
    path = os.path.join(work, "good.csv")
    write(path, GOOD)
    why, said = refusal(path), ask(program, [path])[0]
    if why or said != "ok":
        bad(f"a good schedule: we say {said}, PyTorch says {why or 'ok'}")
    for what, rows in BROKEN.items():
        path = os.path.join(work, "broken.csv")
        write(path, rows)
        why, said = refusal(path), ask(program, [path])[0]
        if why and said != "ok":
            ok(f"refused by both: {what}")
        else:
            bad(f"{what}: we say {said}, PyTorch says {why or 'ok'}")


def change(rows, chance):
    """A copy with one thing changed."""
    rows = [list(row) for row in rows]
    row = chance.choice(rows)
    i = chance.randrange(len(row))
    cell = pp._Action.from_str(row[i])
    what = chance.randrange(7)
    if what == 0:
        del row[i]
    elif what == 1:
        row.insert(chance.randrange(len(row) + 1), row[i])
    elif what == 2:  # two neighbours
        row[i - 1], row[i] = row[i], row[i - 1]
    elif what == 3:
        j = chance.randrange(len(row))
        row[i], row[j] = row[j], row[i]
    elif what == 4:
        row[i] = f"{cell.stage_index}{chance.choice('FIWB')}{cell.microbatch_index}"
    elif what == 5:
        row[i] = str(cell._replace(microbatch_index=cell.microbatch_index ^ 1))
    else:
        chance.choice(rows).append(row.pop(i))
    return rows


def check_changes(program, files, work):
    """Whatever we take, PyTorch must take: schedules with one thing changed, some still good."""
    chance = random.Random(1)
    paths, wrong = [], []
    count = 200 if quick else 1500
    while len(paths) < count:
        rows = change(texts(read(chance.choice(files))), chance)
        if chance.randrange(4) == 0:
            rows = change([row for row in rows if row] or [["0F0"]], chance)
        if all(rows):
            paths.append(os.path.join(work, f"changed{len(paths)}.csv"))
            write(paths[-1], rows)
    counts = collections.Counter()
    for path, said in zip(paths, ask(program, paths)):
        why = refusal(path)
        if said == "ok" or why is None:
            if said == "ok" and why is None:
                counts["taken by both"] += 1
            elif said != "ok" and excuse(said):
                counts[f"taken by PyTorch only ({excuse(said)})"] += 1
            else:
                wrong.append(f"{os.path.basename(path)}: we say {said}, PyTorch says {why or 'ok'}")
        else:
            counts["refused by both"] += 1
    if not wrong and (counts["taken by both"] == 0 or counts["refused by both"] == 0):
        wrong.append("the changed schedules are all alike")
    verdict(
        f"{count} schedules with something changed: "
        + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())),
        wrong,
    )


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program")
    arguments.add_argument("--work")
    arguments.add_argument("files", nargs="+")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = os.path.abspath(options.work or temporary)
        os.makedirs(work, exist_ok=True)
        note(f"PyTorch {torch.__version__}")
        files = check_ours(options.files, work)
        check_training(files, work)
        if options.program and files:
            program = os.path.abspath(options.program)
            theirs = check_theirs(program, work)
            check_twins(files, theirs)
            check_updates(program, work)
            check_refusals(program, work)
            check_changes(program, files + theirs, work)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
