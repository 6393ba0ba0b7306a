//! Threads that help with work in parts. Who has work does it himself; helpers that are awake in time take parts off him. So a
//! helper that comes late, on a busy machine, delays nobody; one that loses its core in the middle of a part is waited for.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use crate::sync::unmodelled::{Arc, AtomicUsize, Condvar, Mutex, OnceLock, Ordering, lock};

/// Helpers at most.
const HELPERS: usize = 3;
/// Looks at whether the last parts are done, before sleeping until they are.
const SPINS: usize = 200;
/// A helper's looks at whether there is something to do, while someone has said that there will be: a tenth of a millisecond or
/// two. To wake it takes half as long.
const LOOKS: usize = 4000;

/// Work in parts that do not depend on each other.
pub(crate) trait Parts: Send + Sync + 'static {
    /// Does a part.
    fn run(&self, part: usize);
}

/// Where a thread takes its parts.
#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

/// A piece of work in progress.
#[derive(Default)]
struct Job {
    work: Option<Arc<dyn Parts>>,
    first: usize,
    parts: usize,
    /// Parts taken in all, by who has the work from the front, by helpers from the back: so that in step after step the same
    /// thread has much the same parts, and what they work on in its cache.
    taken: AtomicUsize,
    front: AtomicUsize,
    back: AtomicUsize,
    /// Parts done, and whether all were done without a panic.
    done: AtomicUsize,
    failed: AtomicUsize,
}

impl Job {
    fn new(work: Arc<dyn Parts>, parts: Range<usize>) -> Self {
        Self {
            work: Some(work),
            first: parts.start,
            parts: parts.len(),
            ..Self::default()
        }
    }

    /// Takes a part, if there is one left.
    fn take(&self, end: End) -> Option<usize> {
        // Relaxed, all three: only uniqueness matters, and the two ends do not meet before all are taken.
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.parts {
            return None;
        }
        Some(match end {
            End::Front => self.front.fetch_add(1, Ordering::Relaxed), // as above
            End::Back => self.parts - 1 - self.back.fetch_add(1, Ordering::Relaxed), // as above
        })
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.parts // a hint: `take` finds out
    }

    /// Takes parts as long as there are any. Returns whether it did the last to be done.
    fn help(&self, end: End) -> bool {
        let mut last = false;
        loop {
            let Some(part) = self.take(end) else {
                return last;
            };
            let work = self.work.as_ref().expect("it has parts");
            if catch_unwind(AssertUnwindSafe(|| work.run(self.first + part))).is_err() {
                self.failed.fetch_add(1, Ordering::Relaxed); // published by the next line
            }
            // AcqRel: who sees all parts done sees what was done in them.
            last = self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.parts;
        }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.parts // pairs with `help`
    }
}

/// The helpers of this process.
struct Pool {
    helpers: usize,
    /// The present job, if any.
    job: Mutex<Option<Arc<Job>>>,
    /// Jobs posted so far, and callers who are about to post more.
    jobs: AtomicUsize,
    callers: AtomicUsize,
    /// Told when there is a job, and when one is done.
    posted: Condvar,
    finished: Condvar,
}

impl Pool {
    fn get() -> &'static Arc<Self> {
        static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
        POOL.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let mut pool = Self {
                helpers: 0,
                job: Mutex::new(None),
                jobs: AtomicUsize::new(0),
                callers: AtomicUsize::new(0),
                posted: Condvar::new(),
                finished: Condvar::new(),
            };
            pool.helpers = HELPERS.min(cores - 1);
            let pool = Arc::new(pool);
            for _ in 0..pool.helpers {
                let pool = Arc::clone(&pool);
                // With fewer helpers there is only less help.
                let _ = std::thread::Builder::new()
                    .name("das-step".into())
                    .spawn(move || pool.serve());
            }
            pool
        })
    }

    /// Waits a while for a job beyond those there have been, if someone is about to post one. Returns whether it came.
    fn look_out(&self, jobs: usize) -> bool {
        // Relaxed, both: hints, the lock tells.
        let comes = || self.callers.load(Ordering::Relaxed) > 0;
        let came = || self.jobs.load(Ordering::Relaxed) != jobs;
        for _ in 0..LOOKS {
            if came() || !comes() {
                break;
            }
            std::hint::spin_loop();
        }
        came()
    }

    fn serve(&self) {
        let mut awake = true;
        let mut job = lock(&self.job);
        loop {
            let jobs = self.jobs.load(Ordering::Relaxed); // changes under the lock
            if let Some(present) = job.take() {
                if !present.is_taken() {
                    *job = Some(Arc::clone(&present)); // there is something for others too
                }
                drop(job);
                let last = present.help(End::Back);
                drop(present);
                if last {
                    drop(lock(&self.job)); // who waits has seen it undone and now sleeps, or sees it done
                    self.finished.notify_all();
                }
                awake = true;
            } else if awake {
                drop(job);
                awake = self.look_out(jobs);
            } else {
                job = self
                    .posted
                    .wait(job)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                awake = true;
                continue;
            }
            job = lock(&self.job);
        }
    }
}

/// Keeps the helpers awake, for work that is about to come.
pub(crate) struct Awake(());

/// Wakes the helpers, which takes a while. Until the value is dropped they look out for work, though not for long.
pub(crate) fn wake() -> Awake {
    let pool = Pool::get();
    pool.callers.fetch_add(1, Ordering::Relaxed); // a hint
    drop(lock(&pool.job)); // who has looked in vain sleeps by now, and is told
    pool.posted.notify_all();
    Awake(())
}

impl Drop for Awake {
    fn drop(&mut self) {
        Pool::get().callers.fetch_sub(1, Ordering::Relaxed); // a hint
    }
}

/// Whether there are helpers.
pub(crate) fn has_helpers() -> bool {
    Pool::get().helpers > 0
}

/// A caller's place for what it wants done, which serves again.
#[derive(Default)]
pub(crate) struct Place(Arc<Job>);

impl Place {
    /// Lets go of the last work, unless a helper is still about to leave it.
    pub(crate) fn clear(&mut self) {
        if let Some(job) = Arc::get_mut(&mut self.0) {
            job.work = None;
        }
    }

    fn put(&mut self, job: Job) -> Arc<Job> {
        match Arc::get_mut(&mut self.0) {
            Some(place) => *place = job,
            None => self.0 = Arc::new(job),
        }
        Arc::clone(&self.0)
    }
}

/// Does work in parts with whatever help there is, and returns when all is done.
///
/// # Panics
/// If a part did.
pub(crate) fn run(place: &mut Place, work: Arc<dyn Parts>, parts: Range<usize>) {
    let pool = Pool::get();
    let wanted = parts.len().saturating_sub(1).min(pool.helpers);
    let job = place.put(Job::new(work, parts));
    if wanted > 0 {
        let mut present = lock(&pool.job);
        *present = Some(Arc::clone(&job));
        pool.jobs.fetch_add(1, Ordering::Relaxed); // a hint to who looks for it: the lock publishes
    }
    (0..wanted).for_each(|_| pool.posted.notify_one());
    job.help(End::Front);
    for _ in 0..SPINS {
        if job.is_done() {
            break;
        }
        std::hint::spin_loop();
    }
    let mut present = lock(&pool.job);
    while !job.is_done() {
        // A helper that finishes between the look and the sleep holds the lock to tell: it cannot be missed.
        let (again, _) = pool
            .finished
            .wait_timeout(present, Duration::from_millis(1))
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        present = again;
    }
    if present
        .as_ref()
        .is_some_and(|present| Arc::ptr_eq(present, &job))
    {
        *present = None; // nobody came for it
    }
    drop(present);
    let failed = job.failed.load(Ordering::Relaxed); // published by the last part done
    drop(job);
    place.clear();
    assert!(failed == 0, "{failed} parts of a batch failed");
}
