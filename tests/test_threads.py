"""Threads change no result, share plans, survive forks and settings that change, and rest when there is no work."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gspattern as gs

BACKENDS = gs.backends()
rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _threads_are_given_back():
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


@functools.cache
def large(pattern):
    """A matrix so large that one column of x is worth threads, if products come one after another, with its weights."""
    weights = rng.normal(size=(1040, 1056)).astype(np.float32)
    sparsity = None if pattern == "2:4" else 0.45
    chosen = gs.choose_mask(np.abs(weights), pattern, sparsity, method="greedy")
    weights *= chosen.mask
    matrix = gs.encode(weights, pattern, chosen.mask, chosen.row_order)
    assert matrix.nnz > 2**19
    return matrix, weights.astype(np.float64)


def inputs(n):
    return rng.normal(size=(1056, n)).astype(np.float32)


def assert_near(y, weights, x):
    """As near as a sum in float32 can be asked to be."""
    x = x.astype(np.float64)
    terms = (weights != 0).sum(axis=1)[:, None]
    bound = 2 * (terms + 2) * np.finfo(np.float32).eps * (np.abs(weights) @ np.abs(x))
    assert (np.abs(y - weights @ x) <= bound).all()


def repeat(product, times=20):
    """The last of many: short products take threads only when they come one after another."""
    for _ in range(times):
        y = product()
    return y


# ----------------------------------------------------------------- results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "pattern",
    ["gs(16,16)", "gs(cpu)", "gs(16,1)+scatter", "irregular", "block(4,4)", "block(1,16)", "block(16,1)", "2:4"],
)  # fmt: skip
def test_products_are_the_same_with_any_number_of_threads(pattern, backend):
    matrix, weights = large(pattern)
    bias = rng.normal(size=1040).astype(np.float32)
    columns, few, many = inputs(33), np.asfortranarray(inputs(5)), inputs(80).T.copy()
    products = [
        lambda: matrix @ few[:, 0],
        lambda: matrix @ few,
        lambda: matrix @ columns,
        lambda: matrix.linear(many[:1], bias, "gelu"),
        lambda: matrix.linear(many),
    ]
    results = {}
    with gs.use_backend(backend):
        for threads in (1, 2, 7):
            gs.set_num_threads(threads)
            results[threads] = [repeat(product, 4) for product in products]
    for threads in (2, 7):
        for y, alone in zip(results[threads], results[1], strict=True):
            np.testing.assert_array_equal(y, alone)
    assert_near(results[7][1], weights, few)
    assert_near(results[7][2], weights, columns)
    assert_near(results[7][4].T, weights, many.T)


@pytest.mark.parametrize(
    "pattern", ["gs(16,16)", "gs(8,2)+scatter", "gs(cpu)", "irregular", "block(2,3)", "2:4"]
)
def test_masks_and_matrices_are_the_same_with_any_number_of_threads(pattern):
    weights = rng.normal(size=(75, 160)).astype(np.float32)
    sparsity = None if pattern == "2:4" else 0.8
    masks, matrices = [], []
    for threads in (1, 2, 7):
        gs.set_num_threads(threads)
        chosen = gs.choose_mask(np.abs(weights), pattern, sparsity)
        masks.append(chosen.mask)
        matrix = gs.encode(weights, pattern, chosen.mask, chosen.row_order)
        np.testing.assert_array_equal(matrix.to_dense(), weights * chosen.mask)
        matrices.append(matrix.arrays())
    for mask, arrays in zip(masks[1:], matrices[1:], strict=True):
        np.testing.assert_array_equal(mask, masks[0])
        for name, array in matrices[0].items():
            np.testing.assert_array_equal(arrays[name], array)


# ------------------------------------------------------------------ sharing


@pytest.mark.parametrize("callers", [2, 5])
def test_python_threads_multiply_at_once(callers):
    """With one plan, and threads of the library below them."""
    matrix, _ = large("gs(16,16)")
    xs = [inputs(3) for _ in range(callers)]
    gs.set_num_threads(1)
    expected = [matrix @ x for x in xs]
    gs.set_num_threads(2)
    start = threading.Barrier(callers)

    def work(i):
        start.wait()
        return all(np.array_equal(matrix @ xs[i], expected[i]) for _ in range(200))

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(work, range(callers)))


def test_the_number_of_threads_may_change_at_any_time():
    matrix, _ = large("gs(16,1)+scatter")
    x = inputs(3)
    scores = np.abs(rng.normal(size=(64, 64))).astype(np.float32)
    gs.set_num_threads(1)
    expected = matrix @ x
    mask = gs.choose_mask(scores, "gs(8,2)", 0.75).mask
    done = threading.Event()

    def change():
        threads = 1
        while not done.is_set():
            threads = threads % 7 + 1
            gs.set_num_threads(threads)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for i in range(200):
            np.testing.assert_array_equal(matrix @ x, expected)
            if i % 20 == 0:
                np.testing.assert_array_equal(gs.choose_mask(scores, "gs(8,2)", 0.75).mask, mask)
                gs.encode(scores, "gs(8,2)", mask)
    finally:
        done.set()
        changer.join()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_signals_do_not_disturb_products():
    matrix, _ = large("irregular")
    x = inputs(3)
    gs.set_num_threads(1)
    expected = matrix @ x
    gs.set_num_threads(2)
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(threading.current_thread()))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        end = time.monotonic() + 20
        while len(seen) < 20 and time.monotonic() < end:
            np.testing.assert_array_equal(matrix @ x, expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) >= 20
    assert set(seen) == {threading.main_thread()}


def test_idle_threads_rest():
    matrix, _ = large("gs(16,16)")
    x = inputs(3)
    gs.set_num_threads(4)
    repeat(lambda: matrix @ x)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads have no affinity here")
def test_no_thread_stays_pinned():
    """Threads that move away from the caller's CPU may use all CPUs again."""
    matrix, _ = large("gs(cpu)")
    allowed = os.sched_getaffinity(0)
    gs.set_num_threads(2)
    plan, x = matrix.plan(64), inputs(64)
    for cpu in sorted(allowed) * 20:
        os.sched_setaffinity(0, {cpu})  # of this thread, which may land where the pool's is
        os.sched_setaffinity(0, allowed)
        repeat(lambda: plan.multiply(x), 5)
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    assert len(tasks) > 1
    assert {task: os.sched_getaffinity(task) for task in tasks} == dict.fromkeys(tasks, allowed)


def test_with_the_threads_of_torch():
    """Layers of both kinds in turn, whose threads wait awake for a while."""
    torch = pytest.importorskip("torch")
    from gspattern.torch import GSLinear

    weights = rng.normal(size=(512, 512)).astype(np.float32)
    layer, dense = GSLinear(gs.encode(weights, "irregular")), torch.nn.Linear(512, 512)
    x = torch.from_numpy(rng.normal(size=(64, 512)).astype(np.float32))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                for _ in range(20):
                    hidden = dense(x)
                    y = layer(hidden)
            assert gs.get_num_threads() == threads
            assert_near(y.numpy().T, weights.astype(np.float64), hidden.numpy().T)
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- processes

PROGRAM = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
import gspattern as gs

rng = np.random.default_rng(0)
weights = rng.normal(size=(512, 512)).astype(np.float32)
x = rng.normal(size=(512, 64)).astype(np.float32)
m = gs.encode(weights, "irregular")

def right():
    return all(np.array_equal(m @ x, expected) for _ in range(20))

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

def child_is_right(work):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0
"""


def run(body, **environment):
    """The program in an interpreter of its own, which must not hang; what it prints."""
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        # From Python 3.12 on, forking with threads is warned of.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + body],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="this system does not list threads in /proc"
)


@needs_fork
@needs_proc
def test_a_forked_child_multiplies_with_threads_of_its_own():
    assert (
        run("""
gs.set_num_threads(1)
expected = m @ x
gs.set_num_threads(3)
assert right() and threads() == 3

def child():
    return threads() == 1 and right() and threads() == 3 and child_is_right(right)

print(child_is_right(child), right(), child_is_right(child))
""")
        == "True True True"
    )


@needs_fork
def test_a_child_of_a_fork_amid_products():
    """Forked while another thread multiplies: the child has neither that thread nor what it was at."""
    assert (
        run("""
gs.set_num_threads(1)
expected = m @ x
gs.set_num_threads(2)
done = threading.Event()
wrong = []

def work():
    while not done.is_set():
        if not right():
            wrong.append(1)

thread = threading.Thread(target=work)
thread.start()
print(all(child_is_right(right) for _ in range(10)))
done.set()
thread.join()
print(wrong)
""")
        == "True\n[]"
    )


@needs_fork
def test_multiprocessing_after_use():
    assert (
        run("""
import multiprocessing

gs.set_num_threads(1)
expected = m @ x
gs.set_num_threads(2)
assert right()

def work(i):
    return right()

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(all(pool.map(work, range(8))), right())
""")
        == "True True"
    )


@needs_proc
@pytest.mark.parametrize("work", ["m @ x", "gs.choose_mask(np.abs(weights), 'gs(16,16)', 0.8)"])
def test_the_environment_sets_the_number_of_threads(work):
    for number in ("1", "3"):
        started = run(
            f"""
before = threads()
for _ in range(20):
    {work}
print(threads() - before, gs.get_num_threads())
""",
            GSPATTERN_NUM_THREADS=number,
        )
        # The matrix was encoded before: whoever came first started them.
        assert started.split()[1] == number
        total = run(f"for _ in range(20): {work}\nprint(threads())", GSPATTERN_NUM_THREADS=number)
        assert total == number


def test_the_interpreter_ends_while_others_multiply():
    assert (
        run("""
gs.set_num_threads(2)
expected = m @ x

def forever():
    while True:
        m @ x

for _ in range(2):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
print("end")
""")
        == "end"
    )
