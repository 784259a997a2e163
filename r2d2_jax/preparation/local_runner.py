"""Runs the tasks of a long work on a corpus, such as the shards of a preparation, in this process or in several."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.progress import Progress, Watch
from r2d2_jax.preparation.shard_task import Job, ShardTask, write_shard
from r2d2_jax.preparation.work_folder import remove_half_written

_POLL_SECONDS = 0.1
Report = Callable[[Progress], Any]
Work = Callable[[Any, Report], None]

_work: Work  # of a worker process; set when it starts, as is _report
_report: Report


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
        finally:
            remove_half_written(job.folder)  # by workers that were killed because another one failed

    return run


def check_processes(count: int) -> None:
    """Raises UserError unless `count` can be a number of processes."""
    if count < 1:
        raise UserError(f"--processes is {count}; expected 1 or more")


def run_tasks(work: Work, tasks: Sequence[Any], take: Report, count: int) -> None:
    """Does every task once, in `count` processes; with one, in this process.

    Args:
        work: called with a task and a function to report progress to; both it and the tasks can be pickled.
        tasks: in the order in which they are begun.
        take: called in this process with all progress; that of one task comes in order.
        count: number of processes.

    Raises:
        BrokenProcessPool: a process was killed.
        Exception: whatever `work` or `take` raises, after all processes have ended.
    """
    if count == 1:
        for task in tasks:
            work(task, take)
    elif tasks:
        with _interrupts_held() as held:
            _run_in_pool(work, tasks, take, min(count, len(tasks)), held)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[list[int]]:
    """A signal that would raise KeyboardInterrupt at any line is put into the list instead, and raises it at the end.

    Inside of an executor it may leave a lock held, and the executor's end would wait for that lock forever.
    """
    held: list[int] = []
    taken = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.default_int_handler]
    if threading.current_thread() is not threading.main_thread():
        taken = []  # signals reach the main thread alone
    for number in taken:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield held
    finally:
        for number in taken:
            signal.signal(number, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


def _run_in_pool(work: Work, tasks: Sequence[Any], take: Report, count: int, held: Sequence[int]) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _start_worker, (work, reports))
    try:
        pending = {pool.submit(_do, task) for task in tasks}
        while pending:
            done, pending = concurrent.futures.wait(pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            while not reports.empty():
                take(reports.get())
            if held:
                raise KeyboardInterrupt
            for future in done:
                future.result()
    except BrokenProcessPool:
        if held:  # the signal went to the workers, too
            raise KeyboardInterrupt from None
        raise
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    while not reports.empty():
        take(reports.get())


def _start_worker(work: Work, reports: Any) -> None:
    global _work, _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    _work, _report = work, reports.put
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    """Ends this process once the parent has ended: if that was killed, its workers would write on beside new ones."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _do(task: Any) -> None:
    _work(task, _report)
