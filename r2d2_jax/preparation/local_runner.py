"""Who does the parts of a long work on a corpus, such as the shards of a preparation: this process, or several."""

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.preparation_progress import Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask, write_shard

_POLL_SECONDS = 0.1
Tell = Callable[[Any], Any]

_work: Callable[[Any, Tell], None]  # of a worker process; set when it starts, as is _tell
_tell: Tell


def in_processes(count: int) -> Callable[[Job, Sequence[ShardTask], Watch], None]:
    """A runner that writes shards in `count` processes; with one, in this one.

    Raises:
        UserError: (by the runner) whatever a shard raises, too many unusable entries, or a process that was killed.
            Finished shards are kept.
    """
    check_processes(count)

    def run(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        try:
            run_tasks(functools.partial(write_shard, job), tasks, watch.take, count)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that writes shards was killed, perhaps for want of memory; lower --processes "
                "and start again: finished shards are kept"
            ) from error

    return run


def check_processes(count: int) -> None:
    """Raises UserError unless `count` can be a number of processes."""
    if count < 1:
        raise UserError(f"--processes is {count}; expected 1 or more")


def run_tasks(work: Callable[[Any, Tell], None], tasks: Sequence[Any], take: Tell, count: int) -> None:
    """Does every task once, in `count` processes; with one, in this one.

    Args:
        work: called with a task and a function to which it tells its news; it can be pickled, as can tasks and news.
        tasks: in the order in which they are begun.
        take: is given all news here, in this process; those of one task in their order.
        count: number of processes.

    Raises:
        BrokenProcessPool: a process was killed.
        Exception: whatever `work` or `take` raises; all processes have ended then.
    """
    if count == 1:
        for task in tasks:
            work(task, take)
    elif tasks:
        _run_in_pool(work, tasks, take, min(count, len(tasks)))


def _run_in_pool(work: Callable[[Any, Tell], None], tasks: Sequence[Any], take: Tell, count: int) -> None:
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _start_worker, (work, news))
    try:
        pending = {pool.submit(_do, task) for task in tasks}
        while pending:
            done, pending = concurrent.futures.wait(pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            while not news.empty():
                take(news.get())
            for future in done:
                future.result()
    except BrokenProcessPool:
        raise
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    while not news.empty():
        take(news.get())


def _start_worker(work: Callable[[Any, Tell], None], news: Any) -> None:
    global _work, _tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process sees to it
    _work, _tell = work, news.put
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A killed process cannot take its workers along, and they would go on writing beside its successor's.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _do(task: Any) -> None:
    _work(task, _tell)
