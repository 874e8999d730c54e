//! The threads that operations share. A caller works on its own job from the first moment and idle threads join it, so
//! that a job costs no more than on one thread; threads look for the next job for a moment before they sleep, because
//! waking one costs more than a small operation.

use std::any::Any;
use std::cell::Cell;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a thread without work looks for some. A sleeping thread takes 10 µs here to come back (a virtual machine,
/// whose idle cores leave to the host), one that looks less than one.
const SPIN: Duration = Duration::from_micros(50);

/// Looks between two readings of the clock.
const LOOKS: usize = 64;

static TEAM: Team = Team {
    state: Mutex::new(State { jobs: Vec::new(), workers: 0, sleeping: 0 }),
    wake: Condvar::new(),
    posted: AtomicUsize::new(0),
};

thread_local! {
    /// The number of threads that this thread's jobs use; 0 for the default.
    static LIMIT: Cell<usize> = const { Cell::new(0) };
}

struct Team {
    state: Mutex<State>,
    wake: Condvar,
    /// Number of jobs so far: what idle threads look at.
    posted: AtomicUsize,
}

struct State {
    jobs: Vec<Posted>,
    workers: usize,
    sleeping: usize,
}

/// A job on its caller's stack.
#[derive(Clone, Copy)]
struct Posted(*const Job<'static>);

// SAFETY: a job is shared by reference, and all of it is `Sync`.
unsafe impl Send for Posted {}

struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    pieces: usize,
    /// The first piece that nobody has taken.
    next: AtomicUsize,
    /// Helpers that may still join; changed under the team's lock.
    room: AtomicUsize,
    /// Helpers at work.
    helpers: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.pieces
    }

    /// Takes pieces until there are none.
    fn work(&self) {
        let all = || {
            loop {
                let piece = self.next.fetch_add(1, Ordering::Relaxed);
                if piece >= self.pieces {
                    break;
                }
                (self.run)(piece);
            }
        };
        if let Err(cause) = catch_unwind(AssertUnwindSafe(all)) {
            self.next.store(self.pieces, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(cause);
        }
    }
}

/// Threads that jobs of this thread use: `BIMETAL_THREADS`, or one for each core.
pub(super) fn threads() -> usize {
    static DEFAULT: LazyLock<usize> = LazyLock::new(|| {
        let wanted = std::env::var("BIMETAL_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
        wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    });
    match LIMIT.get() {
        0 => *DEFAULT,
        n => n,
    }
}

/// Runs `f`, whose jobs use `n` threads.
///
/// # Errors
/// Threads that the system refuses.
pub(super) fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> std::io::Result<R> {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    hire(&mut lock(), n.saturating_sub(1))?;
    let _restore = Restore(LIMIT.replace(n));
    Ok(f())
}

/// Runs `run(piece)` for every piece, on this thread and others that are idle. A panic in a piece is this thread's.
pub(super) fn each(pieces: usize, run: &(dyn Fn(usize) + Sync)) {
    let helpers = threads().min(pieces).saturating_sub(1);
    if helpers == 0 {
        return (0..pieces).for_each(run);
    }
    let job = Job {
        run,
        pieces,
        next: AtomicUsize::new(0),
        room: AtomicUsize::new(helpers),
        helpers: AtomicUsize::new(0),
        panic: Mutex::new(None),
    };
    let posted = Posted((&raw const job).cast());
    let mut state = lock();
    // Threads that the system refuses are done without.
    let _ = hire(&mut state, helpers);
    state.jobs.push(posted);
    TEAM.posted.fetch_add(1, Ordering::Release);
    let asleep = state.sleeping > 0;
    drop(state);
    if asleep {
        TEAM.wake.notify_one();
    }
    job.work();
    // From here on nobody joins, and those who have are waited for: the job is on this stack.
    lock().jobs.retain(|other| !std::ptr::eq(other.0, posted.0));
    let mut looks = 0;
    while job.helpers.load(Ordering::Acquire) > 0 {
        looks += 1;
        if looks < 1 << 14 { hint::spin_loop() } else { std::thread::yield_now() }
    }
    if let Some(cause) = job.panic.into_inner().unwrap_or_else(|e| e.into_inner()) {
        resume_unwind(cause);
    }
}

fn lock() -> MutexGuard<'static, State> {
    TEAM.state.lock().unwrap_or_else(|e| e.into_inner())
}

/// Has at least `wanted` workers.
fn hire(state: &mut State, wanted: usize) -> std::io::Result<()> {
    while state.workers < wanted {
        std::thread::Builder::new().name(format!("bimetal-{}", state.workers + 1)).spawn(serve)?;
        state.workers += 1;
    }
    Ok(())
}

/// A worker's life.
fn serve() {
    loop {
        let seen = TEAM.posted.load(Ordering::Acquire);
        let Some(job) = join() else {
            idle(seen);
            continue;
        };
        // SAFETY: the caller waits for its helpers, of which this thread has been one since `join`.
        let job = unsafe { &*job.0 };
        job.work();
        job.helpers.fetch_sub(1, Ordering::Release);
    }
}

/// Becomes a helper of a job that has room for one.
fn join() -> Option<Posted> {
    let state = lock();
    for &posted in &state.jobs {
        // SAFETY: a job stays where it is while it is in the list, which is locked.
        let job = unsafe { &*posted.0 };
        let room = job.room.load(Ordering::Relaxed);
        if room == 0 || !job.has_more() {
            continue;
        }
        job.room.store(room - 1, Ordering::Relaxed);
        job.helpers.fetch_add(1, Ordering::Relaxed);
        // Who comes wakes the next, so that the caller wakes one only.
        if room > 1 && state.sleeping > 0 {
            TEAM.wake.notify_one();
        }
        return Some(posted);
    }
    None
}

/// Returns when a job has come since `seen`.
fn idle(seen: usize) {
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..LOOKS {
            if TEAM.posted.load(Ordering::Relaxed) != seen {
                return;
            }
            hint::spin_loop();
        }
    }
    let mut state = lock();
    while TEAM.posted.load(Ordering::Acquire) == seen {
        state.sleeping += 1;
        state = TEAM.wake.wait(state).unwrap_or_else(|e| e.into_inner());
        state.sleeping -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(pieces: usize) -> usize {
        let sum = AtomicUsize::new(0);
        each(pieces, &|k| {
            sum.fetch_add(k + 1, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_piece_runs_once_whatever_the_number_of_threads() {
        for n in [1, 2, 3, 8] {
            for pieces in [0, 1, 2, 7, 100] {
                let sum = with_threads(n, || (0..50).all(|_| total(pieces) == pieces * (pieces + 1) / 2));
                assert!(sum.unwrap(), "{pieces} pieces on {n} threads");
            }
        }
    }

    #[test]
    fn jobs_nest_and_callers_do_not_wait_for_each_other() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    with_threads(3, || each(5, &|_| _ = sum.fetch_add(total(9), Ordering::Relaxed))).unwrap();
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 5 * 45);
    }

    #[test]
    fn a_panic_is_the_callers_and_the_team_goes_on() {
        let caught = catch_unwind(|| with_threads(4, || each(64, &|k| assert!(k != 40, "piece {k}"))));
        let cause = caught.unwrap_err();
        assert_eq!(cause.downcast_ref::<String>().map(String::as_str), Some("piece 40"));
        assert_eq!(total(10), 55);
    }
}
