"""Who writes the shards of a preparation: this process, or several."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from r2d2_jax.data.preparation_progress import Watch
from r2d2_jax.data.shard_tasks import Job, ShardTask, write_shard
from r2d2_jax.errors import UserError

_POLL_SECONDS = 0.1
_tell: Callable[[Any], None]  # of a worker process; set when it starts
_job: Job


def in_processes(count: int) -> Callable[[Job, Sequence[ShardTask], Watch], None]:
    """A runner that writes shards in `count` processes; with one, in this one.

    Raises:
        UserError: (by the runner) whatever a shard raises, too many unusable entries, or a process that was killed.
            Finished shards are kept.
    """
    if count < 1:
        raise UserError(f"--processes is {count}; expected 1 or more")

    def run(job: Job, tasks: Sequence[ShardTask], watch: Watch) -> None:
        if count == 1:
            for task in tasks:
                write_shard(job, task, watch.take)
        elif tasks:
            _run_in_pool(job, tasks, watch, min(count, len(tasks)))

    return run


def _run_in_pool(job: Job, tasks: Sequence[ShardTask], watch: Watch, count: int) -> None:
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _start_worker, (job, news))
    try:
        pending = {pool.submit(_write, task) for task in tasks}
        while pending:
            done, pending = concurrent.futures.wait(pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            while not news.empty():
                watch.take(news.get())
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise UserError("a process that writes shards was killed, perhaps for want of memory; lower --processes and "
                        "start again: finished shards are kept") from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    while not news.empty():
        watch.take(news.get())


def _start_worker(job: Job, news: Any) -> None:
    global _job, _tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process sees to it
    _job, _tell = job, news.put
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A killed process cannot take its workers along, and they would go on writing beside its successor's.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _write(task: ShardTask) -> None:
    write_shard(_job, task, _tell)
