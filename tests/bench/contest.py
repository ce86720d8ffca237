"""Runs programs that speak the protocol of peer.h, side by side and in turns."""
import concurrent.futures
import contextlib
import glob
import os
import random
import re
import select
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, 'build', 'bench')
BEGUN = time.monotonic()
CORES = len(os.sched_getaffinity(0))
TICK = 1 / os.sysconf('SC_CLK_TCK')
PATIENCE = 90      # seconds that a program may take to get ready, or over its time
DISTURBED = 0.12   # share of the processors that others may have during a turn
PAUSE = 0.04       # behind the turns of libraries whose threads spin before they sleep
BLOCK = 4          # turns between two of the references
PAIR = 'eager-1f1b'  # the schedule of the two workers that all others are held against

running = set()
starting = threading.RLock()
ending = False


class Failure(Exception):
    """Why a contestant takes no part; the text is for the table."""


def say(text):
    sys.stderr.write(f'{time.monotonic() - BEGUN:5.0f} s  {text}\n')
    sys.stderr.flush()


def kill_all():
    """For good: nothing can be started any more."""
    global ending
    with starting:
        ending = True
        for process in list(running):
            process.kill()


def fields(line):
    """{'loss': '1.5', 'version': 'a b'} of a line `ready loss=1.5 version="a b"`."""
    return dict(word.split('=', 1) for word in shlex.split(line) if '=' in word)


# --- who uses the processors ----------------------------------------------------------------------

unreadable = contextlib.suppress(OSError, ValueError, IndexError)


def used_by(paths):
    """Seconds of the processors that these processes, /proc/N/stat, have used so far."""
    ticks = 0
    for path in paths:
        with unreadable, open(path) as stat:
            words = stat.read().rsplit(')', 1)[1].split()
            ticks += int(words[11]) + int(words[12])
    return ticks * TICK


def used_by_all():
    """Seconds that all processes have used, and that the host gave to others, so far."""
    with unreadable, open('/proc/stat') as stat:
        words = [int(word) for word in stat.readline().split()[1:]]
        return (sum(words[:3]) + sum(words[5:7])) * TICK, words[7] * TICK
    return 0, 0


class Meter:
    """What share of the processors had others, and what share had other machines of this host."""

    def __init__(self, paths=None):
        self.paths = paths
        self.begin = self.now()

    def now(self):
        own = used_by(self.paths) if self.paths else sum(os.times()[:4])
        return (time.monotonic(), own, *used_by_all())

    def read(self):
        wall, own, busy, stolen = (b - a for a, b in zip(self.begin, self.now()))
        whole = max(wall * CORES, 1e-9)
        return {'seconds': wall, 'others': max(0.0, busy - own) / whole, 'stolen': stolen / whole}


# --- a program ------------------------------------------------------------------------------------

class Program:
    """In a session of its own, so that all of its processes can be killed."""

    def __init__(self, command, environment, log):
        self.log, self.buffer, self.paths = log, b'', []
        env = {name: value for name, value in {**os.environ, **environment}.items()
               if value is not None}
        with open(log, 'wb') as errors, starting:
            if ending:
                raise Failure('not started')
            try:
                self.popen = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.PIPE,
                                              stdout=subprocess.PIPE, stderr=errors,
                                              start_new_session=True)
            except OSError:
                raise Failure(f'missing: {os.path.basename(command[0])}') from None
            running.add(self)

    def complaint(self):
        with open(self.log, errors='replace') as log:
            lines = [line.strip() for line in log if line.strip()]
        text = lines[-1][:160] if lines else f'exit status {self.popen.poll()}'
        absent = re.search(r"No module named '?([\w.]+)|(lib[\w.]+): cannot open", text)
        return f'missing: {absent[1] or absent[2]}' if absent else f'failed: {text}'

    def answer(self, seconds):
        """Its next line; a program that does not give one is ended."""
        deadline, output = time.monotonic() + seconds, self.popen.stdout
        while b'\n' not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                self.kill()
                raise Failure(f'hung: no answer within {seconds:.0f} s')
            more = os.read(output.fileno(), 65536)
            if not more:
                self.kill()
                raise Failure(self.complaint())
            self.buffer += more
        line, self.buffer = self.buffer.split(b'\n', 1)
        return line.decode(errors='replace')

    def everything(self, seconds):
        """What it writes until its end, and its exit status."""
        lines = []
        try:
            while True:
                lines.append(self.answer(seconds))
        except Failure as failure:
            status = self.popen.returncode
            return lines, status and (str(failure) if status < 0 else self.complaint())

    def ask(self, line, seconds):
        with contextlib.suppress(OSError):  # its end shows in the answer
            self.popen.stdin.write(line.encode() + b'\n')
            self.popen.stdin.flush()
        return self.answer(seconds)

    def find_processes(self):
        self.paths = []
        for path in glob.glob('/proc/[0-9]*/stat'):
            with unreadable, open(path) as stat:
                if int(stat.read().rsplit(')', 1)[1].split()[3]) == self.popen.pid:
                    self.paths.append(path)

    def kill(self):
        running.discard(self)
        with contextlib.suppress(OSError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


# --- a contestant ---------------------------------------------------------------------------------

class Variant:
    """One way to run a contestant: other micro-batches, another library beneath."""

    def __init__(self, label, command, environment):
        self.label, self.command, self.environment = label, command, environment
        self.program, self.ready, self.failure = None, {}, ''
        self.turns = []  # (when, samples per second)
        self.disturbed, self.pause = 0, 0.005

    def load(self, log):
        self.program = Program([*self.command, '--wait', '1'], self.environment, log)
        self.program.answer(PATIENCE)

    def check(self):
        line = self.program.ask('go', PATIENCE)
        try:
            self.ready = fields(line)
            float(self.ready['loss'])
        except (ValueError, KeyError):
            raise Failure(f'failed: says "{line[:80]}"') from None
        self.program.find_processes()

    def turn(self, seconds):
        """(samples per second, share of the processors that others had)"""
        meter = Meter(self.program.paths)
        answer = fields(self.program.ask(f'run {seconds}', PATIENCE + seconds))
        found = meter.read()
        try:
            speed = float(answer['samples']) / float(answer['seconds'])
        except (KeyError, ValueError, ZeroDivisionError):  # what it is not supposed to say
            raise Failure(f'failed: answers {answer}') from None
        time.sleep(self.pause)
        return speed, found['others'] + found['stolen']

    def stop(self):
        if self.program:
            self.program.kill()


class Contestant:
    """What has a row in the table. Its variants are tried first; the fastest one takes part."""

    def __init__(self, key, title, group, threads, variants, **more):
        self.key, self.title, self.group, self.threads = key, title, group, threads
        self.variants, self.more = variants, more
        self.chosen, self.failure, self.tried = None, '', {}
        if group == 'peer' and threads > 1:
            for variant in variants:
                variant.pause = PAUSE

    @property
    def ready(self):
        return self.chosen.ready if self.chosen else {}

    def alive(self):
        return [v for v in self.variants if not v.failure and v.program]

    def load(self, folder):
        for i, variant in enumerate(self.variants):
            with failing(variant):
                variant.load(os.path.join(folder, f'{self.key}.{i}.txt'))

    def check(self):
        for variant in self.alive():
            with failing(variant):
                variant.check()
        self.settle()

    def judge(self, verdict):
        """verdict(variant) is what is wrong with its answer, or ''."""
        for variant in self.alive():
            variant.failure = verdict(variant)
            if variant.failure:
                variant.stop()
        self.settle()

    def settle(self):
        if not self.alive():
            self.chosen = None
            self.failure = next((v.failure for v in self.variants if v.failure), 'failed')
        elif len(self.alive()) == 1:
            self.chosen = self.alive()[0]

    def choose(self, rounds=3, seconds=0.06):
        """Keeps the variant that is fastest in a few short turns, which do not count."""
        trials = {v: [] for v in self.alive()}
        for _ in range(rounds if len(trials) > 1 else 0):
            for variant, speeds in trials.items():
                with failing(variant):
                    if not variant.failure:
                        speeds.append(variant.turn(seconds)[0])
        self.tried = {v.label: statistics.median(s) for v, s in trials.items() if s}
        self.settle()
        if not self.chosen and self.alive():
            self.chosen = max(self.alive(), key=lambda v: self.tried[v.label])
        for variant in self.alive():
            if variant is not self.chosen:
                variant.stop()

    def turn(self, seconds, again=2):
        """Takes a turn; again, if others were using the processors meanwhile."""
        variant = self.chosen
        with failing(variant):
            speed, others = variant.turn(seconds)
            while others > DISTURBED and again > 0:
                again -= 1
                variant.disturbed += 1
                second = variant.turn(seconds)
                if second[1] < others:
                    speed, others = second
            variant.turns.append((time.monotonic(), speed))
        if variant.failure:
            self.chosen, self.failure = None, variant.failure
            say(f'  {self.title}: {self.failure}')

    def stop(self):
        for variant in self.variants:
            variant.stop()


@contextlib.contextmanager
def failing(variant):
    """A failure is the variant's, and ends it."""
    try:
        yield
    except Failure as failure:
        variant.failure = str(failure)
        variant.stop()


def start_all(contestants, folder):
    """They load as many at a time as there are processors; those that use several compute alone."""
    os.makedirs(folder, exist_ok=True)
    one, several = [], []
    for contestant in contestants:
        (several if contestant.threads > 1 else one).append(contestant)
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda c: c.load(folder), contestants))
        list(pool.map(lambda c: c.check(), one))
    for contestant in several:
        contestant.check()


def take_turns(contestants, references, rounds, seconds, budget, name):
    """In each round everybody has a turn, in an order drawn anew, and between them the references
    have theirs. Ends after `rounds`, or earlier when the time is up, but not before five."""
    order = random.Random(1)
    begin = said = time.monotonic()
    for i in range(rounds):
        others = [c for c in contestants if c not in references]
        order.shuffle(others)
        blocks = [others[at:at + BLOCK] for at in range(0, len(others), BLOCK)]
        for block in [*blocks, []]:
            for contestant in [*references, *block]:
                if contestant.chosen:
                    contestant.turn(seconds)
        gone = time.monotonic() - begin
        last = i + 1 == rounds or i + 1 >= 5 and gone / (i + 1) * (i + 2) > budget
        if last or time.monotonic() - said > 5:
            say(f'  {name}: {i + 1} of {rounds} rounds')
            said = time.monotonic()
        if last:
            break


# --- figures --------------------------------------------------------------------------------------

def quartiles(values):
    """Median, lower and upper quartile."""
    values = sorted(values)
    if len(values) < 2:
        return {'median': values[0], 'low': values[0], 'high': values[0], 'n': len(values)}
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return {'median': median, 'low': low, 'high': high, 'n': len(values)}


def speed_of(contestant):
    return quartiles([speed for _, speed in contestant.chosen.turns])


def times_faster(contestant, reference):
    """How many times as fast as the reference: each turn against the reference's turns just before
    and after it, in short, within one round."""
    if contestant is reference:
        return {'median': 1.0, 'low': 1.0, 'high': 1.0, 'n': len(contestant.chosen.turns)}
    ratios = []
    for when, speed in contestant.chosen.turns:
        turns = reference.chosen.turns
        before = [s for t, s in turns if t <= when][-1:]
        after = [s for t, s in turns if t > when][:1]
        if before or after:
            ratios.append(speed / statistics.mean(before + after))
    return quartiles(ratios) if ratios else None
