//! A small thread pool for short, frequent jobs.
//!
//! A kernel call lasts microseconds, so the caller works too, helpers are woken only when asked for, and the caller never
//! waits for a helper that has not started: it closes the job and waits for those that are inside.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

/// The job that helpers may join: a closure that takes items until none is left.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: the pointee is `Sync`, and `run` keeps it alive until every helper that took it has left.
unsafe impl Send for Job {}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Helpers that may still join the open job.
    places: usize,
    /// Helpers inside the job.
    inside: usize,
    /// A helper's items panicked.
    panicked: bool,
    helpers: usize,
}

struct Pool {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
    /// One job at a time; a second caller works alone.
    turn: Mutex<()>,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        state: Mutex::default(),
        work: Condvar::new(),
        done: Condvar::new(),
        turn: Mutex::new(()),
    })
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every unlock, so a poisoned lock is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn help(&self) {
        let mut state = self.lock();
        loop {
            let Some(job) = state.job.filter(|_| state.places > 0) else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.places -= 1;
            state.inside += 1;
            drop(state);
            // SAFETY: `run` does not return, so the closure lives, until `inside` is back to zero.
            let work = unsafe { &*job.0 };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            state = self.lock();
            state.panicked |= outcome.is_err();
            state.inside -= 1;
            if state.inside == 0 {
                self.done.notify_one();
            }
        }
    }

    fn open(&'static self, job: Job, helpers: usize) {
        let mut state = self.lock();
        while state.helpers < helpers {
            let name = format!("das-cpu-{}", state.helpers);
            if std::thread::Builder::new()
                .name(name)
                .spawn(|| self.help())
                .is_err()
            {
                break; // The caller can do all the work.
            }
            state.helpers += 1;
        }
        state.job = Some(job);
        state.places = helpers;
        drop(state);
        for _ in 0..helpers {
            self.work.notify_one();
        }
    }

    /// Lets no further helper in, waits for those inside, and tells whether one panicked.
    fn close(&self) -> bool {
        let mut state = self.lock();
        state.job = None;
        state.places = 0;
        while state.inside > 0 {
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut state.panicked)
    }
}

/// Closes the job also when the caller's own share panics: helpers borrow from its stack.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        let panicked = pool().close();
        if panicked && !std::thread::panicking() {
            panic!("a helper thread panicked");
        }
    }
}

/// Calls `item(i)` once for every `i < count`, on up to `threads` threads, the caller's among them.
///
/// # Panics
/// If an item panics.
pub fn run(threads: usize, count: usize, item: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            // Relaxed: the counter hands out indices and nothing else; the pool's lock orders the results.
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            item(i);
        }
    };
    let helpers = threads.min(count).saturating_sub(1);
    if helpers == 0 {
        return work();
    }
    let _turn = match pool().turn.try_lock() {
        Ok(turn) => turn,
        Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        Err(TryLockError::WouldBlock) => return work(),
    };
    let share: &(dyn Fn() + Sync) = &work;
    // SAFETY: only the lifetime is erased; `Open` is dropped before `work` and waits until no helper uses it.
    let job = Job(unsafe {
        std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync + 'static)>(
            share,
        )
    });
    pool().open(job, helpers);
    let _open = Open;
    work();
}

/// The results of `item(i)` for every `i < count`, made as by [`run`].
///
/// # Panics
/// If an item panics.
pub fn map<T: Default + Send + Sync>(
    threads: usize,
    count: usize,
    item: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let results: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    run(threads, count, |i| {
        let _ = results[i].set(item(i)); // every item runs once
    });
    let take = |result: OnceLock<T>| result.into_inner().unwrap_or_default();
    results.into_iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::{map, run};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_runs_once_for_any_number_of_threads() {
        for threads in [0, 1, 2, 5] {
            for count in [0, 1, 2, 7, 1000] {
                let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                run(threads, count, |i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn results_stand_in_the_order_of_the_items() {
        for threads in [1, 3] {
            assert_eq!(
                map(threads, 100, |i| i * i),
                (0..100).map(|i| i * i).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn callers_in_parallel_do_not_mix() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        run(3, 20, |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 190);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let outcome = std::panic::catch_unwind(|| run(3, 100, |i| assert!(i < 50)));
        assert!(outcome.is_err());
        run(3, 10, |_| ());
    }
}
